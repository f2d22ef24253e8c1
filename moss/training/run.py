"""TrainConfig -> a finished run folder. Starting the same configuration again resumes it."""

import contextlib
import json
import logging
import os
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from moss.config.compose import to_yaml
from moss.config.identity import provenance, run_folder
from moss.config.schema import to_plain
from moss.config.train import Accelerator, Precision, Task, TrainConfig
from moss.data.files import atomic_write
from moss.data.loader import ExampleBuilder, TokenStream
from moss.data.shard import open_datasets
from moss.data.text_tokenizer import TextTokenizer, build_text_tokenizer
from moss.errors import CheckpointError, ConfigError
from moss.model.build import build_model
from moss.model.checkpoint import ModelCard, load_generator, load_weights
from moss.model.lora import apply_lora
from moss.sequence.layout import build_layout
from moss.training.callbacks import StepProgress, StopOnNonFinite, ThroughputMonitor
from moss.training.checkpoint import FolderCheckpointIO, StepCheckpoints, complete_checkpoints, remove_unfinished
from moss.training.lit_data import TokenData
from moss.training.lit_lm import LitGenerator
from moss.training.metrics_file import MetricsFile
from moss.training.processes import processes, trainer_devices
from moss.training.regenerate import REGENERATION_FILE, first_examples, write_regeneration
from moss.training.run_lock import exclusive
from moss.training.start import keep_published_files, with_checkpoint_settings

logger = logging.getLogger(__name__)


def train(config: TrainConfig) -> Path:
    """Train until `schedule.max_steps`, from the newest checkpoint of this configuration's folder if it has one.

    The folder is named after the configuration as it is given. With `model.init_from`, the config.yaml in it and the
    checkpoints hold what is used: the settings of that checkpoint, see `with_checkpoint_settings`.

    Returns:
        The run folder.

    Raises:
        MossError: Data, checkpoint or configuration cannot be used, or another process trains in the folder; what was
            written before is kept.
    """
    if config.task is Task.tokenizer:
        refuse_generator_options(config)
        from moss.training.tokenizer_run import train_tokenizer

        # The other processes of a run train in the folder that the first one holds.
        with exclusive(run_folder(config)) if processes().is_first else contextlib.nullcontext():
            return train_tokenizer(config)
    refuse_several_processes()
    # The folder's name is that of the composed configuration, whatever the checkpoint it starts from says.
    folder = run_folder(config)
    with exclusive(folder):
        if not is_finished(folder, config):
            config = with_checkpoint_settings(config)
            prepare(folder, config)
            train_generator(config, folder)
        if config.schedule.regenerate_examples and not (folder / REGENERATION_FILE).exists():
            regenerate_examples(config, folder)
    return folder


def refuse_several_processes() -> None:
    """Several processes would each train a generator of their own, in one folder.

    Raises:
        ConfigError: There are several.
    """
    count = processes().count
    if count > 1:
        raise ConfigError(f"task=generator trains in one process so far, {count} were started; start one")


def refuse_generator_options(config: TrainConfig) -> None:
    """Say which settings mean nothing to a tokenizer, instead of leaving them out in silence.

    Raises:
        ConfigError: One of them is set.
    """
    given = {
        "lora.rank": config.lora.rank,
        "parallel.gradient_checkpointing": config.parallel.gradient_checkpointing,
        "schedule.regenerate_examples": config.schedule.regenerate_examples,
    }
    used = [f"{name}={value}" for name, value in given.items() if value]
    if used:
        raise ConfigError(f"{', '.join(used)}: belongs to task=generator; leave it out")


def train_generator(config: TrainConfig, folder: Path) -> None:
    """Train a generator in a prepared folder.

    Raises:
        MossError: Data, checkpoint or configuration cannot be used.
    """
    datasets = open_datasets(config.data.folders)
    builder, text_tokenizer = build_builder(config)
    data = TokenData(datasets, builder, config)
    model = build_model(config.model)
    if config.model.init_from is not None:
        load_weights(model, config.model.init_from)
        keep_published_files(config.model.init_from, folder)
    apply_lora(model, config.lora)
    if config.parallel.gradient_checkpointing:
        model.set_gradient_checkpointing(True)
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

    module = LitGenerator(model, config)
    parameters = [sum(p.numel() for p in model.parameters() if p.requires_grad or not trained) for trained in (0, 1)]
    logger.info(
        "%s: %.2fM parameters, %.2fM trained, %d training examples",
        folder,
        parameters[0] / 1e6,
        parameters[1] / 1e6,
        data.stream.num_examples,
    )
    watch: list[Callback] = [ThroughputMonitor(config.logger.every_steps)]
    fit(config, folder, module, data, FolderCheckpointIO(card_json, folder), watch)


def build_builder(config: TrainConfig) -> tuple[ExampleBuilder, TextTokenizer]:
    """What lays the run's examples out, and the text tokenizer inside.

    Raises:
        ConfigError: The text tokenizer is not the model's.
    """
    text_tokenizer = build_text_tokenizer(config.text_tokenizer)
    check_text_tokenizer(config, text_tokenizer)
    return ExampleBuilder(build_layout(config.model, text_tokenizer.encode), config.model.member), text_tokenizer


def regenerate_examples(config: TrainConfig, folder: Path) -> None:
    """Speak the first training examples with the run's last checkpoint; see `moss.training.regenerate`.

    Raises:
        MossError: Data or checkpoint cannot be used.
    """
    checkpoint = complete_checkpoints(folder / "checkpoints")[-1]
    model, card = load_generator(checkpoint)
    builder, _ = build_builder(replace(config, model=card.model))
    # The whole rows are wanted, not what dropout left of them.
    data = replace(config.data, sequence_dropout_prob=0.0, micro_batches_per_step=1)
    stream = TokenStream(
        open_datasets(data.folders), builder, data, config.seed, max_positions=config.model.max_positions
    )
    on_cuda = config.parallel.accelerator is not Accelerator.cpu and torch.cuda.is_available()
    model.to("cuda" if on_cuda else "cpu")
    examples = first_examples(stream, config.schedule.regenerate_examples)
    write_regeneration(folder, model, builder.layout, examples)


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
    if config.parallel.cpu_threads:
        torch.set_num_threads(config.parallel.cpu_threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Lightning's advice about loaders and modules does not fit batches that are packed rows.
    warnings.filterwarnings("ignore", module="lightning")
    seed_everything(config.seed, verbose=False)
    if processes().is_first:
        write_start(folder, config)
    else:
        logging.getLogger("moss").setLevel(logging.WARNING)


def write_start(folder: Path, config: TrainConfig) -> None:
    """Create the run folder and write down what is about to run."""
    folder.mkdir(parents=True, exist_ok=True)
    point_latest(folder)
    remove_unfinished(folder / "checkpoints")
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


def check_text_tokenizer(config: TrainConfig, text_tokenizer: TextTokenizer) -> None:
    """Refuse a text tokenizer whose ids are not the model's.

    Raises:
        ConfigError: The text table is too small, or a text could get the id of a control token.
    """
    kind = config.text_tokenizer.kind.value
    if text_tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size={config.model.vocab_size} is smaller than the {kind} text tokenizer's "
            f"{text_tokenizer.vocab_size} ids"
        )
    special = config.model.special_tokens
    taken = [
        f"{name}={getattr(special, name)}" for name in special.used if text_tokenizer.is_text_id(getattr(special, name))
    ]
    if taken:
        raise ConfigError(
            f"the {kind} text tokenizer gives these control ids of the model to ordinary text: {', '.join(taken)}; "
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
        **trainer_devices(processes()),
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
