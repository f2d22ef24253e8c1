"""From a stereo tokenizer that is trained here to a stereo wav of a model that learnt its codes, on made-up clips."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from moss.config.compose import load_config
from moss.config.schema import build, to_plain
from moss.config.tokenizer import CatConfig
from moss.config.train import TrainConfig
from moss.data.audio import load_audio
from moss.data.manifest import Utterance, write_manifest
from moss.generation.__main__ import main as generate
from moss.generation.loading import load_speech_model, newest_checkpoint
from moss.tokenizer.build import build_tokenizer
from moss.training.run import train
from tests.recordings import call_script, write_tone
from tests.tokenizer.conftest import small_stereo_settings
from tests.training.small import small_overrides
from tests.training.tokenizer_runs import tiny_run

RATE_HZ, FRAME = 24_000, 480
GREEDY = ["--language", "en", "--temperature", "0", "--text-temperature", "0", "--max-frames", "20"]
SECONDS = {"short": 0.1, "mono": 0.15, "stereo": 0.2, "heldout": 1.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of mono and stereo clips at a rate of their own."""
    root = tmp_path_factory.mktemp("data")
    clips = []
    for number, (name, seconds) in enumerate(SECONDS.items()):
        audio = write_tone(root / f"{name}.wav", seconds, rate_hz=32_000, channels=1 if name == "mono" else 2)
        split = "heldout" if name == "heldout" else "train"
        facts: dict[str, Any] = {"sha256": f"{number:064x}", "split": split, "duration_s": seconds}
        clips.append(Utterance(id=name, audio=str(audio), text=f"one {name}", language="en", **facts))
    write_manifest(root / "utterances.jsonl", clips)
    return root


@pytest.fixture(scope="module")
def settings(root: Path) -> dict[str, Any]:
    """Of a stereo tokenizer that was trained for two steps, its weights included."""
    plain = to_plain(tiny_run(root, root / "runs", bypass_steps=1, mid_side_weight=1.0))
    plain["tokenizer"] = small_stereo_settings()
    plain["schedule"] |= {"max_steps": 2, "validate_every_steps": 2}
    folder = train(build(TrainConfig, plain))
    assert json.loads((folder / "heldout.json").read_text())["frames"] == 50
    return small_stereo_settings() | {"weights": str(newest_checkpoint(folder))}


@pytest.fixture(scope="module")
def checkpoint(root: Path, settings: dict[str, Any]) -> Path:
    """Of a model that was trained on shards of its codes until it knows three clips by heart."""
    preset = root / "stereo.yaml"
    preset.write_text(yaml.safe_dump(settings))
    assert call_script("02_encode_codes.py", "--root", root, "--tokenizer", preset, "--workers", "1") == 0
    assert call_script("03_write_shards.py", "--root", root) == 0
    assert call_script("04_verify_shards.py", "--shards", root / "shards") == 0
    steps = {"schedule__max_steps": 60, "schedule__validate_every_steps": 60, "schedule__regenerate_examples": 3}
    optim = {"optim__lr": 1e-2, "optim__warmup_steps": 10, "optim__weight_decay": 0.0, "checkpoint__every_steps": 60}
    sizes = {"model__num_codebooks": 4, "model__codebook_size": 16, "data__positions_per_micro_batch": 512}
    words = small_overrides("local_v15", root / "shards", root / "runs", **sizes, **steps, **optim)
    plain = to_plain(load_config(TrainConfig, "train", words))
    plain["tokenizer"] = settings
    folder = train(build(TrainConfig, plain))
    assert json.loads((folder / "regeneration.json").read_text())["right_frac"] >= 0.9
    return newest_checkpoint(folder)


def test_the_card_says_stereo(checkpoint: Path) -> None:
    card = json.loads((checkpoint / "moss.json").read_text())["tokenizer"]
    shape = (card["sampling_rate_hz"], card["samples_per_frame"], card["num_audio_channels"], card["num_codebooks"])
    assert shape == (RATE_HZ, FRAME, 2, 4)


def test_the_command_line_writes_stereo(checkpoint: Path, tmp_path: Path) -> None:
    generate([*GREEDY, "--checkpoint", str(checkpoint), "--text", "one mono", "--output", str(tmp_path)])
    (row,) = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text().splitlines()]
    (path,) = (tmp_path / "wavs").glob("*.wav")
    samples, rate_hz = soundfile.read(path)
    assert row["frames"] == math.ceil(SECONDS["mono"] * RATE_HZ / FRAME)
    assert (samples.shape, rate_hz) == ((row["frames"] * FRAME, 2), RATE_HZ)


def test_whole_and_in_pieces_are_the_same_two_channels(checkpoint: Path) -> None:
    model = load_speech_model(checkpoint)
    words: dict[str, Any] = {"text": "one stereo", "language": "en", "temperature": 0.0, "text_temperature": 0.0}
    speech = model.generate(**words)
    assert speech.audio.shape == (2, len(speech.codes) * FRAME)
    assert not torch.equal(speech.audio[0], speech.audio[1])
    pieces = [chunk.audio for chunk in model.stream(**words, chunk_frames=3)]
    assert len(pieces) == 4
    torch.testing.assert_close(torch.cat(pieces, dim=-1), speech.audio, rtol=0, atol=1e-5)


def test_what_was_encoded_comes_back_at_its_length(settings: dict[str, Any], root: Path) -> None:
    tokenizer = build_tokenizer(build(CatConfig, settings))
    wave = load_audio(root / "mono.wav", RATE_HZ, audio_channels=2)
    (codes,) = tokenizer.encode([wave])
    stored = next(path for path in (root / "codes").rglob("*.npy") if path.stem == f"{1:064x}")
    assert codes.tolist() == np.load(stored).tolist()
    (back,) = tokenizer.decode([codes], [wave.shape[-1]])
    assert back.shape == wave.shape == (2, round(SECONDS["mono"] * RATE_HZ))
