"""Rules between the settings of a training run, and of one section alone."""

from pathlib import Path

import pytest

from moss.config.compose import load_config
from moss.config.generation import GenerationConfig
from moss.config.schema import check
from moss.config.train import TrainConfig
from moss.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["loss.depth_frac=0.5"], "loss.depth_frac: model.architecture=delay has no depth transformer"),
        (["loss.depth_frac=0"], "loss.depth_frac: must be in (0, 1], got 0"),
        (
            ["data.sequence_dropout_prob=0.1"],
            "data.sequence_dropout_prob: belongs to model.architecture=local or local_v15",
        ),
        (["data.clone_frac=2"], "data.clone_frac: must be in [0, 1], got 2"),
        (
            ["data.mixture=[{shards: a}]"],
            "data.mixture: is given together with shards; name every folder in one of them",
        ),
        (["data.shards=[]", "data.mixture=[{shards: a, weight: 0}]"], "weight: must be positive, got 0"),
        (["data.shards=[]"], "data.shards: is empty"),
        (["lora.rank=-1"], "lora.rank: must be 0 (off) or more, got -1"),
        (["lora.dropout=1"], "lora.dropout: must be in [0, 1), got 1"),
        (["lora.targets=[heads]"], "lora.targets: expected some of attention, mlp; got ['heads']"),
        (["optim.lr_scales={a: 0}"], "lr_scales"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(words: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(TrainConfig, "train", words)
    assert problem in str(raised.value)


def test_a_mixture_takes_the_place_of_shards() -> None:
    words = ["data.shards=[]", "data.mixture=[{shards: a, weight: 3}, {shards: b}]", "model=local_xs"]
    config = load_config(TrainConfig, "train", [*words, "loss.depth_frac=0.5", "data.sequence_dropout_prob=0.1"])
    assert config.data.folders == [Path("a"), Path("b")]
    assert [entry.weight for entry in config.data.mixture] == [3.0, 1.0]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"num_codebooks": 0}, "num_codebooks: must be at least 1, got 0"),
        ({"runaway_repeats": -1}, "runaway_repeats: must be 0 (off) or more, got -1"),
        ({"audio": {"penalty_window": -1}}, "audio.penalty_window: must be 0 (everything) or more, got -1"),
        ({"attention": "fast"}, "attention: expected one of auto, sdpa, flash_attention_2, eager, got 'fast'"),
        ({"offload": "disk"}, "offload: expected one of none, cpu, got 'disk'"),
    ],
)
def test_impossible_generation_settings(values: dict[str, object], problem: str) -> None:
    assert any(found.startswith(problem) for found in check(GenerationConfig, values))
