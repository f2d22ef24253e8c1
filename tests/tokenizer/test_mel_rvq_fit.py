import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from moss.data.files import sha256_file
from moss.data.manifest import Utterance, write_manifest
from moss.data.split import is_heldout
from moss.errors import DataError
from moss.tokenizer.mel_rvq import MelRvqTokenizer, MelRvqWeights, shipped_weights
from moss.tokenizer.mel_rvq_fit import FitSettings, fit
from tests.recordings import call_script, write_folder
from tests.tokenizer.test_mel_rvq import voice

SMALL = FitSettings(num_codebooks=3, codebook_size=8, width=12, iterations=3)


def waves() -> list[np.ndarray]:
    return [voice(20_000 + 700 * seed, seed).numpy() for seed in range(3)]


def test_a_fit_repeats_and_follows_its_seed() -> None:
    first, second = fit(waves(), SMALL), fit(waves(), SMALL)
    assert all(torch.equal(value, second.tensors()[name]) for name, value in first.tensors().items())
    other = fit(waves(), FitSettings(num_codebooks=3, codebook_size=8, width=12, iterations=3, seed=1))
    assert not np.array_equal(first.codebooks, other.codebooks)


def test_shapes_and_rounding() -> None:
    weights = fit(waves(), SMALL)
    assert weights.codebooks.shape == (3, 8, 12)
    assert weights.smoothing.shape == (3, 36, 12)
    assert weights.codebooks.dtype == weights.smoothing.dtype == np.float16
    np.testing.assert_allclose(weights.basis.T @ weights.basis, np.eye(12), atol=1e-5)
    assert weights.spec.num_codebooks == 3


def test_each_codebook_quantises_what_is_left(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="moss.tokenizer.mel_rvq_fit"):
        fit(waves(), SMALL)
    left = [float(re.search(r"([\d.]+) % of the variance left", record.message)[1]) for record in caplog.records]
    assert len(left) == 3
    assert left == sorted(left, reverse=True)
    assert left[0] < 80


def test_neighbours_make_the_estimate_better() -> None:
    """The fitted map beats the plain sum of entries on the clips it was fitted to."""
    weights = fit(waves(), SMALL)
    tokenizer = MelRvqTokenizer(weights)
    plain = np.zeros_like(weights.smoothing)
    plain[:, 12:24] = np.eye(12)
    errors = []
    for smoothing in (weights.smoothing, plain):
        tokenizer._smoothing = smoothing.astype(np.float32)
        error = 0.0
        for wave in waves():
            frames = _projected(weights, wave)
            (codes,) = tokenizer.encode([torch.from_numpy(wave)])
            sums = sum(weights.codebooks[k].astype(np.float32)[codes[:, k]] for k in range(3))
            error += float(np.square(tokenizer._smoothed(sums, np.full(len(codes), 3)) - frames).sum())
        errors.append(error)
    assert errors[0] < errors[1]


def _projected(weights: MelRvqWeights, wave: np.ndarray) -> np.ndarray:
    from moss.tokenizer.mel_rvq import compressed_frames

    return (compressed_frames(wave, weights.spectrogram(), weights.exponent) - weights.mean) @ weights.basis


def test_too_little_audio() -> None:
    message = "26 frames (2 s of audio) are too few for 1024 entries a codebook"
    with pytest.raises(DataError, match=re.escape(message)):
        fit([np.zeros(26 * 1280, dtype=np.float32)], FitSettings())
    with pytest.raises(DataError, match=re.escape("0 frames (0 s of audio) are too few")):
        fit([], FitSettings())


@pytest.mark.parametrize("width", [0, 641])
def test_a_width_that_a_frame_does_not_have(width: int) -> None:
    with pytest.raises(DataError, match=f"width: expected 1 to 640, got {width}"):
        fit(waves(), FitSettings(codebook_size=8, width=width))


def test_the_command_line_fits_on_what_is_not_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "recordings", 6)
    texts = {path.with_suffix(".wav"): path.read_text(encoding="utf-8") for path in folder.glob("*.txt")}
    fitted = sum(not is_heldout(text) for text in texts.values())
    assert 0 < fitted < 6
    manifest = tmp_path / "utterances.jsonl"
    rows = [Utterance(id=audio.stem, audio=str(audio), text=text, language="en") for audio, text in texts.items()]
    write_manifest(manifest, rows)
    outputs = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    small = ("--num-codebooks", "2", "--codebook-size", "8", "--width", "16", "--iterations", "2")
    for output in outputs:
        assert call_script("fit_mel_rvq.py", "--manifest", manifest, "--output", output, *small) == 0
    assert f"2 codebooks fitted on {fitted} clips" in capsys.readouterr().out
    assert sha256_file(outputs[0]) == sha256_file(outputs[1])
    tokenizer = MelRvqTokenizer(MelRvqWeights.load(outputs[0]))
    assert tokenizer.encode([voice(3000)])[0].shape == (3, 2)


def test_the_command_line_fits_on_the_manifests_own_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "recordings", 6)
    clips = sorted(folder.glob("*.wav"))
    splits = ["train", "heldout", "train", "reference", "heldout", "train"]
    rows = [
        Utterance(id=audio.stem, audio=str(audio), text="the same", language="en", split=split)
        for audio, split in zip(clips, splits, strict=True)
    ]
    write_manifest(tmp_path / "utterances.jsonl", rows)
    small = ("--num-codebooks", "1", "--codebook-size", "4", "--width", "8", "--iterations", "1")
    files = ("--manifest", tmp_path / "utterances.jsonl", "--output", tmp_path / "w.safetensors")
    assert call_script("fit_mel_rvq.py", *files, *small) == 0
    assert "1 codebooks fitted on 3 clips" in capsys.readouterr().out


def test_the_command_line_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--manifest", tmp_path / "none.jsonl", "--output", tmp_path / "w.safetensors")
    assert call_script("fit_mel_rvq.py", *arguments) == DataError.exit_code
    assert "none.jsonl does not exist" in capsys.readouterr().err


def test_the_shipped_file_says_how_it_was_fitted() -> None:
    from safetensors import safe_open

    with safe_open(str(shipped_weights()), "np") as file:
        facts = json.loads(file.metadata()["mel_rvq"])
    assert facts["settings"] == str(FitSettings())
    assert (facts["version"], facts["sampling_rate_hz"]) == ("1", 16_000)
