"""Training the tokenizer: stages of the recipe, resuming bit for bit, stopping in time, and the scores at the end."""

import dataclasses
import json
import logging
import math
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moss.config.compose import load_config
from moss.config.identity import run_folder
from moss.config.schema import build, to_plain
from moss.config.tokenizer import CatConfig
from moss.config.train import TrainConfig
from moss.errors import CheckpointError, ConfigError
from moss.tokenizer.build import build_tokenizer
from moss.tokenizer.cat import CatTokenizer
from moss.training.checkpoint import FolderCheckpointIO
from moss.training.processes import Processes
from moss.training.run import train
from moss.training.tokenizer_score import HeldoutScores, stoi
from tests.tokenizer.conftest import small_settings
from tests.training.tokenizer_runs import ADVERSARIAL, SEMANTIC, tiny_run


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


def test_the_wall_time_limit_stops_saves_and_scores(
    whole: tuple[Path, Path, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = tiny_run(whole[0], tmp_path, max_wall_s=1e-3)
    folder = train(config)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000001"]
    assert json.loads((folder / "heldout.json").read_text())["checkpoint"] == "step-00000001"
    assert "the wall-time limit ended training; the same command goes on from here" in caplog.text


def test_a_last_checkpoint_that_could_not_be_written_is_an_error_at_the_wall_time_limit_too(
    whole: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise CheckpointError("step-00000001: could not be written: no space left on the device; free some")

    monkeypatch.setattr(FolderCheckpointIO, "save_checkpoint", full)
    config = tiny_run(whole[0], tmp_path, max_wall_s=1e-3)
    with pytest.raises(CheckpointError, match="step-00000001: could not be written"):
        train(config)
    assert not (run_folder(config) / "heldout.json").exists()


def test_other_processes_do_not_miss_what_the_first_has_not_named_yet(
    whole: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(whole[0], tmp_path, max_wall_s=1e-3)
    folder = train(config)

    def unnamed(*_: object, **__: object) -> None:
        monkeypatch.setattr("moss.training.tokenizer_run.processes", lambda: Processes(count=2, rank=1, per_node=2))
        raise CheckpointError("the first process is still writing")

    monkeypatch.setattr(FolderCheckpointIO, "save_checkpoint", unnamed)
    train(config)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000001"]


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


def test_weights_of_another_run_are_the_start(whole: tuple[Path, Path, str], tmp_path: Path) -> None:
    first = whole[1] / "checkpoints" / "step-00000012"
    config = tiny_run(whole[0], tmp_path, init_from=str(first), bypass_steps=0, init_frames=0, replace_every_steps=0)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=1e-9))
    folder = train(config)
    mine, theirs = (load_file(path / "model.safetensors") for path in (folder / "checkpoints" / first.name, first))
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, atol=1e-6, rtol=1e-6)


def test_weights_of_another_geometry_are_refused(whole: tuple[Path, Path, str], tmp_path: Path) -> None:
    plain = to_plain(tiny_run(whole[0], tmp_path, init_from=str(whole[1] / "checkpoints" / "step-00000012")))
    plain["tokenizer"]["quantizer"]["num_codebooks"] = 5
    with pytest.raises(CheckpointError, match="tokenizer_training.init_from=.*"):
        train(build(TrainConfig, plain))


def test_averaged_weights_are_exported_and_scored(whole: tuple[Path, Path, str], tmp_path: Path) -> None:
    folder = train(tiny_run(whole[0], tmp_path, ema_decay=0.9))
    last = folder / "checkpoints" / "step-00000012"
    exported = load_file(last / "model.safetensors")
    raw = torch.load(last / "trainer.pt", weights_only=True)["moss_weights"]
    assert any(not torch.equal(value, raw[name]) for name, value in exported.items())
    # An average changes nothing about the training itself.
    assert all(torch.equal(value, raw[name]) for name, value in load_file(_last(whole[1])).items())
    settings = small_settings() | {"weights": str(last)}
    record = json.loads((folder / "heldout.json").read_text())
    assert build_tokenizer(build(CatConfig, settings)).fingerprint == record["fingerprint"]


def test_stereo_is_trained_with_mid_and_side(whole: tuple[Path, Path, str], tmp_path: Path) -> None:
    plain = to_plain(tiny_run(whole[0], tmp_path, mid_side_weight=5.0, waveform_weight=1.0))
    plain["tokenizer"] |= {"num_audio_channels": 2}
    plain["tokenizer"]["encoder"][0]["patch_size"] = 480
    plain["tokenizer"]["encoder"][1]["input_size"] = 480
    plain["schedule"] |= {"max_steps": 4}
    folder = train(build(TrainConfig, plain))
    assert json.loads((folder / "heldout.json").read_text())["frames"] == 60
    keys = {line.split(",")[1] for line in (folder / "metrics.csv").read_text().splitlines()}
    assert {"train/mel", "train/mid_side", "train/waveform", "train/codebook"} <= keys


def test_half_a_tokenizer_cannot_be_trained(whole: tuple[Path, Path, str], tmp_path: Path) -> None:
    plain = to_plain(tiny_run(whole[0], tmp_path))
    plain["tokenizer"]["part"] = "decoder"
    with pytest.raises(ConfigError, match=r"tokenizer.part=decoder: training needs the whole tokenizer; leave it out"):
        train(build(TrainConfig, plain))


def test_a_mono_tokenizer_has_no_sides(whole: tuple[Path, Path, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mid_side_weight=1.0: a mono tokenizer has no middle and sides; leave it"):
        train(tiny_run(whole[0], tmp_path, mid_side_weight=1.0))


def test_a_constant_semantic_weight_is_a_factor_of_the_loss(whole: tuple[Path, Path, str], tmp_path: Path) -> None:
    semantic = SEMANTIC | {"weight": 20.0, "scaling": "constant"}
    folder = train(tiny_run(whole[0], tmp_path, semantic=semantic, bypass_steps=99, init_frames=0))
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    found = {(int(step), key): float(value) for step, key, value in rows}
    for step in range(12):
        parts = 15 * found[step, "train/mel"] + 20 * found[step, "train/semantic"]
        parts += 20 * found[step, "train/waveform"]
        assert found[step, "train/loss"] == pytest.approx(parts, rel=1e-5)
    assert max(found[step, "train/semantic"] for step in range(12)) > 0


def _last(folder: Path) -> Path:
    return folder / "checkpoints" / "step-00000012" / "model.safetensors"


def test_what_training_would_not_use_or_could_not_fit_is_refused(whole: tuple[Path, Path, str], tmp_path: Path) -> None:
    plain = to_plain(tiny_run(whole[0], tmp_path))
    plain["tokenizer"] |= {"weights": "somewhere/step-00000012"}
    message = r"weights=somewhere/step-00000012: training starts from nothing, or from tokenizer_training\.init_from"
    with pytest.raises(ConfigError, match=message):
        train(build(TrainConfig, plain))
    with pytest.raises(
        ConfigError, match="init_frames=3: a codebook of 16 needs at least as many frames; raise it, or"
    ):
        train(tiny_run(whole[0], tmp_path, init_frames=3))


def test_mixed_precision_reaches_every_loss(whole: tuple[Path, Path, str], tmp_path: Path) -> None:
    discriminator = ADVERSARIAL["discriminator"] | {"from_step": 1, "warmup_steps": 0}
    plain = to_plain(tiny_run(whole[0], tmp_path, discriminator=discriminator, semantic=SEMANTIC, bypass_steps=1))
    plain["parallel"] |= {"precision": "bf16"}
    plain["schedule"] |= {"max_steps": 3}
    folder = train(build(TrainConfig, plain))
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    last = {key: float(value) for step, key, value in rows if step == "2"}
    names = ("mel", "waveform", "commitment", "codebook", "adversarial", "feature", "discriminator", "semantic", "loss")
    assert all(math.isfinite(last[f"train/{name}"]) for name in names)
    weights = load_file(folder / "checkpoints" / "step-00000003" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_stages_that_would_never_begin_are_said(
    whole: tuple[Path, Path, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    discriminator = ADVERSARIAL["discriminator"] | {"from_step": 10, "warmup_steps": 2}
    config = tiny_run(whole[0], tmp_path, discriminator=discriminator, bypass_steps=12, max_wall_s=1e-3)
    train(config)
    assert "bypass_steps=12: training ends at step 12, before any codebook learns; lower it or raise" in caplog.text
    assert "discriminator.from_step=10 with warmup_steps=2: training ends at step 12, before the disc" in caplog.text


def test_ten_milliseconds_have_no_stoi() -> None:
    wave = torch.sin(torch.arange(160.0))
    assert stoi(wave, wave, 16_000) is None


def test_scoring_without_pystoi_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pystoi", None)
    with pytest.raises(ConfigError, match=r"needs the package pystoi: pip install 'moss\[eval\]'"):
        stoi(torch.zeros(16_000), torch.zeros(16_000), 16_000)
