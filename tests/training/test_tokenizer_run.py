"""Training the tokenizer: stages of the recipe, resuming bit for bit, stopping in time, and the scores at the end."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moss.config.compose import load_config
from moss.config.identity import run_folder
from moss.config.schema import build, to_plain
from moss.config.train import TrainConfig
from moss.data.manifest import write_manifest
from moss.errors import ConfigError
from moss.tokenizer.cat import CatTokenizer
from moss.training.run import train
from moss.training.tokenizer_score import HeldoutScores, stoi
from tests.tokenizer.conftest import small_settings
from tests.training.test_tokenizer_data import clip


def tiny_run(folder: Path, runs: Path, **changes: object) -> TrainConfig:
    """Twelve steps: two without codes, then codebooks fitted, then dead codes moved every three steps."""
    if not (folder / "utterances.jsonl").is_file():
        clips = [clip(folder, f"t{i}", 0.8) for i in range(3)] + [clip(folder, "h", 1.2, "heldout")]
        write_manifest(folder / "utterances.jsonl", clips)
    plain = to_plain(load_config(TrainConfig, "train", ["experiment=tokenizer_xs"]))
    plain["runs_dir"] = str(runs)
    plain["tokenizer"] = small_settings()
    training = {
        "manifest": str(folder / "utterances.jsonl"),
        "segment_s": 0.2,
        "segments_per_step": 2,
        "bypass_steps": 2,
        "init_frames": 64,
        "replace_every_steps": 3,
        "codebook_dropout_prob": 0.5,
    }
    plain["tokenizer_training"] |= training | changes
    plain["optim"] |= {"warmup_steps": 2}
    plain["schedule"] |= {"max_steps": 12, "validate_every_steps": 6}
    plain["checkpoint"] |= {"every_steps": 4, "keep": 9}
    plain["parallel"] |= {"accelerator": "cpu", "cpu_threads": 1}
    plain["logger"] |= {"every_steps": 1, "tensorboard": False}
    return build(TrainConfig, plain)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    data = tmp_path_factory.mktemp("speech")
    captured: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moss.training.tokenizer_run.sys.stdout.write", captured.append)
        folder = train(tiny_run(data, tmp_path_factory.mktemp("runs")))
    return data, folder, "".join(captured)


def test_scores_are_written_and_said(whole: tuple[Path, Path, str]) -> None:
    _, folder, output = whole
    record = json.loads((folder / "heldout.json").read_text())
    assert record["checkpoint"] == "step-00000012"
    assert record["frames"] == 60
    assert len(record["used_frac"]) == 4
    assert all(0 < used <= 1 for used in record["used_frac"])
    assert "STOI" in output
    assert f"codebook  3  {record['used_frac'][3]:6.1%} used" in output


def test_weights_of_a_run_make_a_tokenizer(whole: tuple[Path, Path, str]) -> None:
    _, folder, _ = whole
    record = json.loads((folder / "heldout.json").read_text())
    from moss.config.tokenizer import CatConfig
    from moss.tokenizer.build import build_tokenizer

    settings = small_settings() | {"weights": str(folder / "checkpoints" / "step-00000012")}
    assert build_tokenizer(build(CatConfig, settings)).fingerprint == record["fingerprint"]


def test_every_stage_has_run(whole: tuple[Path, Path, str]) -> None:
    _, folder, _ = whole
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    steps = {key: [int(step) for step, name, _ in rows if name == key] for _, key, _ in rows}
    assert min(steps["train/mel"]) < 2
    assert min(steps["train/commitment"]) == 2
    moved = [int(step) for step, name, value in rows if name == "train/codes_moved" and float(value) > 0]
    assert moved
    assert set(moved) <= {5, 8, 11}
    assert "val/used_frac/codebook_03" in steps


@pytest.mark.parametrize("step", [4, 8])
def test_a_resumed_run_ends_with_the_same_bits(whole: tuple[Path, Path, str], tmp_path: Path, step: int) -> None:
    data, folder, _ = whole
    config = tiny_run(data, tmp_path)
    resumed = run_folder(config)
    kept = resumed / "checkpoints" / f"step-{step:08d}"
    shutil.copytree(folder / "checkpoints" / kept.name, kept)
    train(config)
    first = load_file(folder / "checkpoints" / "step-00000012" / "model.safetensors")
    second = load_file(resumed / "checkpoints" / "step-00000012" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_the_wall_time_limit_stops_saves_and_scores(whole: tuple[Path, Path, str], tmp_path: Path) -> None:
    config = tiny_run(whole[0], tmp_path, max_wall_s=1e-3)
    folder = train(config)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000001"]
    assert json.loads((folder / "heldout.json").read_text())["checkpoint"] == "step-00000001"


def test_only_cat_can_be_trained(whole: tuple[Path, Path, str], tmp_path: Path) -> None:
    plain = to_plain(tiny_run(whole[0], tmp_path))
    plain["tokenizer"] = {"kind": "mel_rvq"}
    with pytest.raises(ConfigError, match=r"tokenizer.kind: task=tokenizer trains 'cat', got 'mel_rvq'"):
        train(build(TrainConfig, plain))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("segment_s", 0),
        ("segments_per_step", 0),
        ("bypass_steps", -1),
        ("codebook_dropout_prob", 1.5),
        ("max_wall_s", 0),
    ],
)
def test_settings_out_of_range_are_named(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"tokenizer_training.{setting}: must be .*, got {value}"):
        load_config(TrainConfig, "train", ["experiment=tokenizer_xs", f"tokenizer_training.{setting}={value}"])


def test_stoi_of_the_same_wave_is_one_and_of_a_blip_none() -> None:
    generator = torch.Generator().manual_seed(0)
    wave = torch.randn(48_000, generator=generator) * 0.1
    assert stoi(wave, wave, 24_000) == pytest.approx(1.0)
    assert stoi(wave, torch.randn(48_000, generator=generator) * 0.1, 24_000) < 0.5
    assert stoi(wave[:2400], wave[:2400], 24_000) is None


def test_clips_without_a_score_count_for_codes(tokenizer: CatTokenizer) -> None:
    scores = HeldoutScores(tokenizer.spec)
    scores.add(tokenizer, torch.randn(2400, generator=torch.Generator().manual_seed(0)) * 0.1)
    assert (scores.unscored, scores.health.frames) == (1, 5)
    assert "stoi" not in scores.metrics()


@pytest.fixture
def tokenizer() -> CatTokenizer:
    from tests.tokenizer.conftest import small_model

    return CatTokenizer(small_model())
