"""TrainConfig -> a finished run folder. Starting the same configuration again resumes it."""

import json
import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from moss.config.compose import to_yaml
from moss.config.identity import provenance, run_folder
from moss.config.schema import to_plain
from moss.config.train import Accelerator, Precision, Task, TrainConfig
from moss.data.files import atomic_write
from moss.data.loader import ExampleBuilder
from moss.data.shard import open_datasets
from moss.data.text_tokenizer import build_text_tokenizer
from moss.errors import CheckpointError, ConfigError
from moss.model.build import build_model
from moss.model.checkpoint import ModelCard, load_weights
from moss.sequence.layout import DelayLayout
from moss.training.callbacks import StepProgress, StopOnNonFinite, ThroughputMonitor
from moss.training.checkpoint import FolderCheckpointIO, StepCheckpoints, complete_checkpoints, remove_unfinished
from moss.training.lit_data import TokenData
from moss.training.lit_lm import LitGenerator
from moss.training.metrics_file import MetricsFile

logger = logging.getLogger(__name__)


def train(config: TrainConfig) -> Path:
    """Train until `schedule.max_steps`, from the newest checkpoint of this configuration's folder if it has one.

    Returns:
        The run folder.

    Raises:
        MossError: Data, checkpoint or configuration cannot be used; what was written before is kept.
    """
    if config.task is Task.tokenizer:
        from moss.training.tokenizer_run import train_tokenizer

        return train_tokenizer(config)
    folder = run_folder(config)
    if is_finished(folder, config):
        return folder
    prepare(folder, config)
    datasets = open_datasets(config.data.shards)
    text_tokenizer = build_text_tokenizer(config.text_tokenizer)
    check_text_tokenizer(config, text_tokenizer.vocab_size, text_tokenizer.special_tokens)
    layout = DelayLayout(
        encode=text_tokenizer.encode,
        special=config.model.special_tokens,
        num_codebooks=config.model.num_codebooks,
        codebook_size=config.model.codebook_size,
    )
    builder = ExampleBuilder(layout)
    data = TokenData(datasets, builder, config)
    model = build_model(config.model)
    if config.model.init_from is not None:
        load_weights(model, config.model.init_from)
    card = datasets[0].tokenizer

    def card_json(step: int) -> str:
        return ModelCard(
            model=config.model,
            text_tokenizer=config.text_tokenizer,
            text_fingerprint=text_tokenizer.fingerprint,
            tokenizer={name: getattr(card, name) for name in card.__slots__},
            tokenizer_config=to_plain(config.tokenizer),
            step=step,
        ).to_json()

    parameters = sum(p.numel() for p in model.parameters())
    logger.info("%s: %.2fM parameters, %d training examples", folder, parameters / 1e6, data.stream.num_examples)
    fit(
        config,
        folder,
        LitGenerator(model, config),
        data,
        FolderCheckpointIO(card_json),
        [ThroughputMonitor(config.logger.every_steps)],
    )
    return folder


def is_finished(folder: Path, config: TrainConfig) -> bool:
    """Whether the folder holds the checkpoint of the last step already."""
    done = complete_checkpoints(folder / "checkpoints")
    if done and done[-1].name.endswith(f"-{config.schedule.max_steps:08d}"):
        logger.info("%s: finished already (step %d)", folder, config.schedule.max_steps)
        point_latest(folder)
        return True
    return False


def prepare(folder: Path, config: TrainConfig) -> None:
    """Create the run folder, fix seeds and threads, and write down what is about to run."""
    folder.mkdir(parents=True, exist_ok=True)
    point_latest(folder)
    remove_unfinished(folder / "checkpoints")
    if config.parallel.cpu_threads:
        torch.set_num_threads(config.parallel.cpu_threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Lightning's advice about loaders and modules does not fit batches that are packed rows.
    warnings.filterwarnings("ignore", module="lightning")
    seed_everything(config.seed, verbose=False)
    with atomic_write(folder / "config.yaml") as temporary:
        temporary.write_text(to_yaml(config), encoding="utf-8")
    starts = folder / "run.json"
    record = json.loads(starts.read_text(encoding="utf-8")) if starts.exists() else {"starts": []}
    record["starts"].append({"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **provenance()})
    record["seed"] = config.seed
    with atomic_write(starts) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def point_latest(folder: Path) -> None:
    """Make `<runs_dir>/latest` mean this run; where links are not possible, the folder's own name remains."""
    link, new = folder.parent / "latest", folder.parent / f".latest-{os.getpid()}"
    try:
        new.symlink_to(folder.name)
        new.replace(link)
    except OSError as error:
        logger.warning("%s: could not be linked to %s (%s)", link, folder.name, error.strerror)


def check_text_tokenizer(config: TrainConfig, vocab_size: int, special_tokens: Any) -> None:
    """Refuse a text tokenizer whose ids are not the model's.

    Raises:
        ConfigError: The text table is too small, or a control token has another id.
    """
    kind = config.text_tokenizer.kind.value
    if vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size={config.model.vocab_size} is smaller than the {kind} text tokenizer's {vocab_size} ids"
        )
    if special_tokens != config.model.special_tokens:
        raise ConfigError(
            f"the {kind} text tokenizer has {special_tokens}, the model {config.model.special_tokens}; "
            "choose the text_tokenizer that the model was made for"
        )


def fit(
    config: TrainConfig,
    folder: Path,
    module: LightningModule,
    data: LightningDataModule,
    checkpoint_io: FolderCheckpointIO,
    callbacks: list[Callback],
) -> None:
    """Run Lightning's loop from the newest checkpoint to the last step.

    Raises:
        CheckpointError: Resuming failed.
        ConfigError: There is no device of the kind that is asked for.
        KeyboardInterrupt: Ctrl-C; checkpoints written so far are kept.
    """
    if config.parallel.accelerator is Accelerator.cuda and not torch.cuda.is_available():
        raise ConfigError("parallel.accelerator=cuda: no CUDA device is available here; choose auto or cpu")
    checkpoints = folder / "checkpoints"
    done = complete_checkpoints(checkpoints)
    start_step = int(done[-1].name.rsplit("-", 1)[1]) if done else 0
    if done:
        logger.info("resuming from %s", done[-1])
    rows_per_step = config.data.micro_batches_per_step if config.task is Task.generator else 1
    trainer = Trainer(
        accelerator={Accelerator.cuda: "gpu"}.get(config.parallel.accelerator, config.parallel.accelerator.value),
        devices=1,
        precision="bf16-mixed" if config.parallel.precision is Precision.bf16 else "32-true",
        max_steps=config.schedule.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=rows_per_step,
        gradient_clip_val=config.optim.max_grad_norm,
        val_check_interval=config.schedule.validate_every_steps * rows_per_step,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=config.logger.every_steps,
        logger=loggers(config, folder, start_step),
        callbacks=[
            *callbacks,
            StopOnNonFinite(),
            StepCheckpoints(checkpoints, config.checkpoint),
            StepProgress(config.logger.every_steps),
        ],
        plugins=[checkpoint_io],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    try:
        trainer.fit(module, datamodule=data, ckpt_path=str(done[-1]) if done else None)
    # Lightning turns Ctrl-C into an exit of its own.
    except SystemExit as error:
        raise KeyboardInterrupt from error
    if trainer.interrupted:
        raise KeyboardInterrupt
    if trainer.global_step < config.schedule.max_steps:
        raise CheckpointError(
            f"{folder}: stopped at step {trainer.global_step} of {config.schedule.max_steps}; start again to resume"
        )


def loggers(config: TrainConfig, folder: Path, start_step: int) -> list[Logger]:
    """metrics.csv always, TensorBoard and Weights & Biases as configured."""
    chosen: list[Logger] = [MetricsFile(folder / "metrics.csv", start_step)]
    if config.logger.tensorboard:
        chosen.append(
            TensorBoardLogger(
                folder, name="tensorboard", version="", default_hp_metric=False, purge_step=start_step or None
            )
        )
    if config.logger.wandb:
        try:
            from lightning.pytorch.loggers import WandbLogger

            chosen.append(
                WandbLogger(
                    project=config.logger.wandb_project,
                    name=folder.name,
                    id=folder.name,
                    save_dir=folder,
                    offline=config.logger.wandb_offline,
                    resume="allow",
                )
            )
        except ModuleNotFoundError as error:
            raise ConfigError("logger.wandb=true needs the package wandb: pip install 'moss[tracking]'") from error
    return chosen
