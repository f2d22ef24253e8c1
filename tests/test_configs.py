"""Every file below configs/ composes, validates and, for models, builds."""

import dataclasses
from pathlib import Path

import pytest
import torch

from moss.config.compose import CONFIG_DIR, load_config
from moss.config.evaluation import EvalConfig
from moss.config.train import TrainConfig
from moss.data.text_tokenizer import build_text_tokenizer
from moss.model.build import build_model

CHOICES = [
    f"{path.parent.relative_to(CONFIG_DIR).as_posix()}={path.stem}"
    for path in sorted(CONFIG_DIR.glob("*/*.yaml"))
    if path.parent.name != "benchmark"
]
MODELS = sorted(path.stem for path in (CONFIG_DIR / "model").glob("*.yaml"))


def test_no_file_lies_where_this_test_does_not_look() -> None:
    found = {path.relative_to(CONFIG_DIR) for path in CONFIG_DIR.rglob("*.yaml")}
    seen = {Path(f"{choice.replace('=', '/')}.yaml") for choice in CHOICES}
    seen |= {path.relative_to(CONFIG_DIR) for path in (CONFIG_DIR / "benchmark").glob("*.yaml")}
    launchers = {path for path in found if path.parts[0] == "hydra"}
    assert found - launchers == seen | {Path("train.yaml"), Path("evaluate.yaml")}


@pytest.mark.parametrize("choice", CHOICES)
def test_training_choice(choice: str) -> None:
    group, name = choice.split("=")
    chosen = load_config(TrainConfig, "train", [choice])
    if group == "experiment":
        assert chosen != load_config(TrainConfig, "train"), f"{name} changes nothing"


@pytest.mark.parametrize("model", MODELS)
def test_model_preset_builds_and_fits_a_text_tokenizer(model: str) -> None:
    config = load_config(TrainConfig, "train", [f"model={model}"])
    small = dataclasses.replace(config.model, num_layers=min(2, config.model.num_layers))
    with torch.device("meta"):
        built = build_model(small)
    assert built.num_channels == 1 + config.model.num_codebooks
    words = [f"text_tokenizer={path.stem}" for path in (CONFIG_DIR / "text_tokenizer").glob("*.yaml")]
    offered = [build_text_tokenizer(load_config(TrainConfig, "train", [word]).text_tokenizer) for word in words]
    special = config.model.special_tokens
    control = [getattr(special, name) for name in special.used]
    assert any(
        made.vocab_size <= config.model.vocab_size and not any(made.is_text_id(token) for token in control)
        for made in offered
    )


@pytest.mark.parametrize("benchmark", sorted(path.stem for path in (CONFIG_DIR / "benchmark").glob("*.yaml")))
def test_benchmark_choice(benchmark: str) -> None:
    words = [f"benchmark={benchmark}", "output=o"]
    words += {"generations": ["generations=g"], "tokenizer": []}[benchmark]
    assert load_config(EvalConfig, "evaluate", words).benchmark == benchmark
