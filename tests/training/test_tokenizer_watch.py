"""Plots, clips to listen to, and the clock."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.image import imread

from moss.config.identity import run_folder
from moss.training.callbacks import progress_text
from moss.training.lit_tokenizer import LitTokenizer
from moss.training.run import train
from moss.training.tokenizer_data import SegmentData
from moss.training.tokenizer_watch import AudioSamples, draw_codebooks
from tests.tokenizer.conftest import small_model
from tests.training.tokenizer_runs import tiny_run


def test_the_plot_shows_what_the_metrics_say(tmp_path: Path) -> None:
    metrics, plot = tmp_path / "metrics.csv", tmp_path / "codebooks.png"
    metrics.write_text("step,key,value\n0,train/mel,4.0\n")
    draw_codebooks(metrics, plot)
    assert not plot.exists()
    lines = [
        f"{step},val/{name}/codebook_0{k},{step / 10 + k}"
        for step in (1, 2)
        for name in ("used_frac", "perplexity")
        for k in (0, 1)
    ]
    metrics.write_text("step,key,value\n" + "\n".join(lines) + "\n")
    draw_codebooks(metrics, plot)
    first = imread(plot)
    assert first.shape[0] > 300
    metrics.write_text(metrics.read_text() + "3,val/used_frac/codebook_00,0.9\n")
    draw_codebooks(metrics, plot)
    assert not np.array_equal(imread(plot), first)


def module(folder: Path, **changes: object) -> tuple[LitTokenizer, SegmentData]:
    config = tiny_run(folder, folder / "runs", **changes)
    model = small_model()
    spec = model.config.spec()
    data = SegmentData(config.tokenizer_training, spec, 0, 10)
    return LitTokenizer(model, config, spec, data.sampler), data


def test_samples_are_written_when_it_is_time_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lit, data = module(tmp_path)
    clock = [0.0]
    monkeypatch.setattr("moss.training.tokenizer_watch.time.monotonic", lambda: clock[0])
    samples = AudioSamples(tmp_path, data.validation_clips, data.recordings, every_s=10.0)
    trainer: Any = SimpleNamespace(is_global_zero=True, global_step=5, loggers=[])
    samples.on_train_start(trainer, lit)
    clock[0] = 9.0
    samples.on_train_batch_end(trainer, lit)
    assert not (tmp_path / "audio").exists()
    clock[0] = 10.0
    samples.on_train_batch_end(trainer, lit)
    trainer.global_step = 6
    samples.on_train_batch_end(trainer, lit)
    samples.on_train_end(trainer, lit)
    assert sorted(path.name for path in (tmp_path / "audio").iterdir()) == ["step-00000005", "step-00000006"]
    target, rate_hz = soundfile.read(tmp_path / "audio" / "step-00000005" / "h.target.wav")
    generated, _ = soundfile.read(tmp_path / "audio" / "step-00000005" / "h.generated.wav")
    assert (rate_hz, target.shape) == (24_000, generated.shape) == (24_000, (28_800,))
    assert lit.model.training


def test_the_bypass_is_heard_as_long_as_there_are_no_codes(tmp_path: Path) -> None:
    lit, data = module(tmp_path, bypass_steps=4)
    wave = data.recordings.wave(data.heldout_clips[0])
    with lit.exported() as model:
        bypass, coded = lit.reconstruct(wave, 3), lit.reconstruct(wave, 4)
        whole, _ = model(wave[None])
    torch.testing.assert_close(coded, whole[0])
    assert not torch.allclose(bypass, coded)


def test_a_run_draws_and_sounds(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, tmp_path / "runs", audio_every_s=1e6, audio_clips=1)
    train(config)
    folder = run_folder(config)
    assert (folder / "codebooks.png").stat().st_size > 1000
    assert [path.name for path in (folder / "audio" / "step-00000012").glob("*.generated.wav")] == ["h.generated.wav"]


def test_progress_names_mel_loss_and_use() -> None:
    metrics = {"train/loss": 30.5, "train/mel": 1.25, "train/used_frac": 0.5}
    assert progress_text(metrics) == "train/mel 1.25  train/loss 30.5  codes used 50.0%"
