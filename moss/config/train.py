"""Settings of a training run: the root `TrainConfig` and its sections."""

import dataclasses
from enum import StrEnum
from pathlib import Path

from moss.config.model import DEPTH_ARCHITECTURES, ModelConfig, TextTokenizerConfig
from moss.config.schema import below_one, section
from moss.config.tokenizer import TokenizerConfig
from moss.config.tokenizer_training import TokenizerTrainingConfig


class Task(StrEnum):
    """What is trained."""

    generator = "generator"
    """A language model over codes, from shards."""
    tokenizer = "tokenizer"
    """The audio tokenizer itself, from waveforms."""


class Overlong(StrEnum):
    """What happens to an example longer than a micro-batch row."""

    error = "error"
    drop = "drop"


@section
class MixtureEntry:
    """One dataset of a weighted mixture."""

    shards: Path
    """A folder written by data_prep/03_write_shards.py."""
    weight: float = 1.0
    """Share of the examples of an epoch, relative to the other entries."""

    def validate(self) -> list[str]:
        """Weights of a mean."""
        return [] if self.weight > 0 else [f"weight: must be positive, got {self.weight}; leave the entry out instead"]


@section
class DataConfig:
    """Which shards are read and how examples share rows."""

    shards: list[Path] = dataclasses.field(default_factory=list)
    """Folders written by data_prep/03_write_shards.py; each example once an epoch. Or use `mixture`."""
    mixture: list[MixtureEntry] = dataclasses.field(default_factory=list)
    """Folders with weights: an epoch has as many examples as all together, shared by weight."""
    train_split: str = "train"
    validation_split: str = "heldout"
    positions_per_micro_batch: int = 2048
    """Budget of one packed row, in positions."""
    micro_batches_per_step: int = 1
    """Rows of one optimizer step over all ranks and accumulation; the order of training depends on nothing else."""
    packing_window: int = 64
    """How many upcoming examples packing may choose from."""
    overlong: Overlong = Overlong.error
    max_dropped_frac: float = 0.01
    """With overlong=drop: more than this share of dropped examples is an error."""
    duration_frac: float = 0.0
    """Share of examples (drawn anew each epoch) whose prompt states the length in frames."""
    clone_frac: float = 0.0
    """Share of examples without a reference of their own that get another clip of the same speaker as reference
    (drawn anew each epoch)."""
    sequence_dropout_prob: float = 0.0
    """Probability that an example keeps only its first K codebooks, K drawn from 1 .. N - 1 (Local only)."""
    num_workers: int = 0

    @property
    def folders(self) -> list[Path]:
        """Every shard folder, whichever way it is named."""
        return [*self.shards, *(entry.shards for entry in self.mixture)]

    def validate(self) -> list[str]:
        """Ranges."""
        problems = below_one(self, ("positions_per_micro_batch", "micro_batches_per_step", "packing_window"))
        for name in ("duration_frac", "max_dropped_frac", "clone_frac", "sequence_dropout_prob"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"{name}: must be in [0, 1], got {getattr(self, name)}")
        if self.shards and self.mixture:
            problems.append("mixture: is given together with shards; name every folder in one of them")
        return problems


@section
class LossConfig:
    """How the channels' losses become one."""

    channel_weights: list[float] | None = None
    """None: mean over all targets. Two numbers: weight of text and of all codebooks together. Or one per channel."""
    depth_frac: float = 1.0
    """Share of a row's frames whose codes go through the depth transformer (drawn anew each step, loss scaled up, so
    that its expectation is unchanged). 1 is exact. Depth architectures only."""

    def validate(self) -> list[str]:
        """Weights that a mean can be made of."""
        weights = self.channel_weights
        if weights is not None and (not weights or min(weights) < 0 or max(weights) <= 0):
            return [f"channel_weights: weights are 0 or more and at least one is positive, got {weights}"]
        return [] if 0 < self.depth_frac <= 1 else [f"depth_frac: must be in (0, 1], got {self.depth_frac}"]


@section
class OptimConfig:
    """AdamW and its schedule, counted in optimizer steps."""

    lr: float = 1e-4
    min_lr_frac: float = 0.1
    """The cosine ends at this share of `lr`."""
    warmup_steps: int = 100
    weight_decay: float = 0.1
    """On matrices only; norms, gains, biases and embeddings are not decayed."""
    betas: tuple[float, ...] = (0.9, 0.95)
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    fused: bool = False
    """One kernel per group of parameters instead of some per tensor: the same rule, faster for networks of many small
    tensors, other last bits."""
    freeze: list[str] = dataclasses.field(default_factory=list)
    """Patterns (shell style, `*` matches dots too) of parameter names that are not trained."""
    lr_scales: dict[str, float] = dataclasses.field(default_factory=dict)
    """Pattern of parameter names -> multiple of `lr`; the first pattern that matches counts."""

    def validate(self) -> list[str]:
        """Ranges."""
        problems = [
            f"{name}: must be positive, got {getattr(self, name)}"
            for name in ("lr", "eps", "max_grad_norm")
            if getattr(self, name) <= 0
        ]
        if self.warmup_steps < 0:
            problems.append(f"warmup_steps: must be 0 or more, got {self.warmup_steps}")
        for pattern, scale in self.lr_scales.items():
            if scale <= 0:
                problems.append(f"lr_scales: {pattern!r}: must be positive, got {scale}; freeze what must not move")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"betas: expected two numbers in [0, 1), got {list(self.betas)}")
        return problems


class Precision(StrEnum):
    """Arithmetic of forward and backward; master weights are always fp32."""

    fp32 = "fp32"
    bf16 = "bf16"


class Accelerator(StrEnum):
    """Where training runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@section
class ParallelConfig:
    """One process per device; several processes are started by torchrun or srun, never by us."""

    accelerator: Accelerator = Accelerator.auto
    precision: Precision = Precision.fp32
    cpu_threads: int = 0
    """Threads of a CPU run; 0 leaves torch's choice. Part of the run's identity: sums depend on it bit by bit."""
    gradient_checkpointing: bool = False
    """Recompute the activations of backbone and depth blocks in the backward pass: less memory, a third more work."""


@section
class LoraConfig:
    """Low-rank adapters through PEFT; rank 0 trains the weights themselves."""

    rank: int = 0
    alpha: float = 32.0
    dropout: float = 0.0
    targets: list[str] = dataclasses.field(default_factory=lambda: ["attention", "mlp"])
    """`attention` and `mlp`: the projections of backbone and depth blocks."""
    train: list[str] = dataclasses.field(default_factory=list)
    """Patterns of parameters that are trained in full beside the adapters, e.g. `emb_ext.*`."""

    def validate(self) -> list[str]:
        """Ranges."""
        problems = [] if self.rank >= 0 else [f"rank: must be 0 (off) or more, got {self.rank}"]
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout: must be in [0, 1), got {self.dropout}")
        if not self.targets or set(self.targets) - {"attention", "mlp"}:
            problems.append(f"targets: expected some of attention, mlp; got {self.targets}")
        return problems


@section
class CheckpointConfig:
    """When checkpoints are written and how many stay."""

    every_steps: int = 500
    keep: int = 2
    """The newest so many stay; the last one of a run is always kept."""

    def validate(self) -> list[str]:
        """Ranges."""
        return below_one(self, ("every_steps", "keep"))


@section
class LoggerConfig:
    """Where metrics go; `metrics.csv` in the run folder is always written."""

    every_steps: int = 10
    tensorboard: bool = True
    wandb: bool = False
    wandb_project: str = "moss"
    wandb_offline: bool = False


@section
class ScheduleConfig:
    """How long a run goes on."""

    max_steps: int = 1000
    validate_every_steps: int = 200
    max_validation_examples: int = 200
    regenerate_examples: int = 0
    """At the end, speak the first so many training examples greedily and report the share of codes that are right."""

    def validate(self) -> list[str]:
        """Ranges."""
        names = ("max_steps", "validate_every_steps", "max_validation_examples")
        return below_one(self, names)


@section
class TrainConfig:
    """Everything that decides a training run."""

    task: Task = Task.generator
    name: str = "moss"
    """Human part of the run folder's name."""
    runs_dir: Path = Path("runs")
    seed: int = 0
    model: ModelConfig
    tokenizer: TokenizerConfig
    text_tokenizer: TextTokenizerConfig = TextTokenizerConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    lora: LoraConfig = LoraConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logger: LoggerConfig = LoggerConfig()
    tokenizer_training: TokenizerTrainingConfig = TokenizerTrainingConfig()

    def validate(self) -> list[str]:
        """Rules between sections."""
        problems = []
        if not self.name or "/" in self.name:
            problems.append(f"name: must be one folder name, got {self.name!r}")
        if self.optim.warmup_steps > self.schedule.max_steps:
            problems.append(
                f"optim.warmup_steps: {self.optim.warmup_steps} is more than "
                f"schedule.max_steps={self.schedule.max_steps}"
            )
        if self.task is Task.generator and not self.data.folders:
            problems.append("data.shards: is empty; name at least one folder written by data_prep/03_write_shards.py")
        channels = 1 + self.model.num_codebooks
        weights = self.loss.channel_weights
        if weights is not None and len(weights) not in (2, channels):
            problems.append(f"loss.channel_weights: expected 2 or {channels} numbers, got {len(weights)}")
        if self.loss.depth_frac < 1 and self.model.architecture not in DEPTH_ARCHITECTURES:
            problems.append(f"loss.depth_frac: model.architecture={self.model.architecture} has no depth transformer")
        if self.data.sequence_dropout_prob > 0 and self.model.architecture not in ("local", "local_v15"):
            problems.append("data.sequence_dropout_prob: belongs to model.architecture=local or local_v15")
        return problems
