"""Bad input to the audio tokenizer, one test per item: what is encoded, what is put aside, and what is said."""

import hashlib
import json
import math
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from moss.config.load_tokenizer import load_tokenizer_config
from moss.config.schema import build
from moss.config.tokenizer import CatConfig
from moss.data.code_store import CodeStore, store_folder
from moss.data.encode import EncodeResult, EncodeSettings, card_of, encode_utterances
from moss.data.manifest import Utterance, read_manifest, write_manifest
from moss.errors import CheckpointError, ConfigError, DataError
from moss.tokenizer.build import build_tokenizer
from moss.tokenizer.cat import CatModel, CatTokenizer
from moss.training.run import train
from tests.parity.fixture_files import load_fixture
from tests.tokenizer.conftest import small_model, small_settings
from tests.tokenizer.published import Generation, small_config, write_folder
from tests.training.tokenizer_runs import clip, tiny_run

RATE_HZ = 24_000
Encoded = tuple[EncodeResult, dict[str, np.ndarray[Any, Any]], dict[str, str]]


@pytest.fixture(scope="module")
def tokenizer() -> CatTokenizer:
    return CatTokenizer(small_model())


def tone(seconds: float, rate_hz: int, pitch_hz: float = 220.0) -> np.ndarray[Any, Any]:
    return 0.3 * np.sin(2 * math.pi * pitch_hz * np.arange(round(seconds * rate_hz)) / rate_hz)


def write(path: Path, samples: np.ndarray[Any, Any], rate_hz: int = RATE_HZ, subtype: str = "PCM_16") -> Utterance:
    """A recording and its line of a manifest."""
    soundfile.write(path, samples, rate_hz, subtype=subtype)
    return line(path, len(samples) / rate_hz)


def line(path: Path, duration_s: float, **extra: Any) -> Utterance:
    hashed = hashlib.sha256(path.name.encode()).hexdigest()
    return Utterance(
        id=path.stem, audio=str(path), text="Words.", language="en", duration_s=duration_s, sha256=hashed, extra=extra
    )


def encode(
    folder: Path, utterances: Sequence[Utterance], tokenizer: CatTokenizer, max_bad_frac: float = 0.5
) -> Encoded:
    """What data_prep/02_encode_codes.py does: the result, codes by id, and reasons of what was put aside by id."""
    card = card_of(tokenizer, "cat")
    store = CodeStore(store_folder(folder, card), card)
    result = encode_utterances(utterances, store, lambda: tokenizer, EncodeSettings(max_bad_frac=max_bad_frac))
    codes = {u.id: np.load(store.path(u.sha256)) for u in utterances if store.is_done(u.sha256)}
    path = store.folder / "quarantine.jsonl"
    rows = [json.loads(row) for row in path.read_text().splitlines()] if path.is_file() else []
    return result, codes, {row["id"]: row["reason"] for row in rows}


def assert_one_bad(folder: Path, bad: Utterance, reason: str, tokenizer: CatTokenizer) -> None:
    """Beside three good recordings, one bad one is put aside with its reason, and they are encoded as without it."""
    good = [write(folder / f"good{i}.wav", tone(0.2 + i / 10, RATE_HZ)) for i in range(3)]
    result, codes, reasons = encode(folder / "out", [good[0], bad, *good[1:]], tokenizer)
    assert (result.encoded, result.quarantined) == (3, 1)
    assert list(reasons) == [bad.id]
    assert reason in reasons[bad.id]
    _, alone, _ = encode(folder / "alone", good, tokenizer)
    assert codes.keys() == alone.keys() == {u.id for u in good}
    assert all(np.array_equal(codes[key], alone[key]) for key in codes)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000])
def test_sample_rates(tmp_path: Path, tokenizer: CatTokenizer, rate_hz: int) -> None:
    utterance = write(tmp_path / "a.wav", tone(0.5, rate_hz), rate_hz)
    result, codes, _ = encode(tmp_path, [utterance], tokenizer)
    assert result.encoded == 1
    assert codes["a"].shape == (25, 4), "0.5 s in frames of 20 ms"


@pytest.mark.parametrize("channels", [1, 2])
def test_mono_and_stereo(tmp_path: Path, tokenizer: CatTokenizer, channels: int) -> None:
    wave = np.repeat(tone(0.5, RATE_HZ)[:, None], channels, axis=1)
    _, codes, _ = encode(tmp_path, [write(tmp_path / "a.wav", wave)], tokenizer)
    _, mono, _ = encode(tmp_path / "mono", [write(tmp_path / "b.wav", tone(0.5, RATE_HZ))], tokenizer)
    assert np.array_equal(codes["a"], mono["b"])


def test_stereo_stays_stereo_for_a_stereo_tokenizer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stereo = CatTokenizer(CatModel(small_config(Generation.v2)))
    rate_hz = stereo.spec.sampling_rate_hz
    left, right = tone(0.5, rate_hz), tone(0.5, rate_hz, 330.0)
    utterances = [
        write(tmp_path / "both.wav", np.stack((left, right), 1), rate_hz),
        write(tmp_path / "swapped.wav", np.stack((right, left), 1), rate_hz),
        write(tmp_path / "mono.wav", left, rate_hz),
    ]
    result, codes, _ = encode(tmp_path, utterances, stereo)
    assert result.encoded == 3
    assert {found.shape for found in codes.values()} == {(25, 4)}
    assert not np.array_equal(codes["both"], codes["swapped"])


def test_eight_channels(tmp_path: Path, tokenizer: CatTokenizer) -> None:
    many = write(tmp_path / "many.wav", np.repeat(tone(0.3, RATE_HZ)[:, None], 8, axis=1))
    assert_one_bad(tmp_path, many, "8 channels, at most 2 are mixed down; pass the one with speech", tokenizer)
    accepted = line(Path(many.audio), 0.3, downmixed_channels=8)
    result, _, _ = encode(tmp_path / "accepted", [accepted], tokenizer)
    assert result.encoded == 1
    with pytest.raises(DataError, match=r"wave 0: expected one dimension .*got shape \(8, 100\); average its channels"):
        tokenizer.encode([torch.zeros(8, 100)])


def test_ten_milliseconds(tmp_path: Path, tokenizer: CatTokenizer) -> None:
    result, codes, _ = encode(tmp_path, [write(tmp_path / "a.wav", tone(0.01, RATE_HZ))], tokenizer)
    assert result.encoded == 1
    assert codes["a"].shape == (1, 4)
    wave = tokenizer.decode([torch.from_numpy(codes["a"].astype(np.int64))], [240])[0]
    assert wave.shape == (240,)


def test_three_hours_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a short clip; its 86 million samples are never held together."""
    tokenizer = CatTokenizer(slow_model())
    rate_hz, hours_s = 8_000, 3 * 3600
    path = tmp_path / "long.wav"
    write_sparse_wav(path, tone(1.0, rate_hz), rate_hz, hours_s)
    utterances = [line(path, hours_s), write(tmp_path / "short.wav", tone(2.0, rate_hz), rate_hz)]
    largest = 0
    encode_hidden = CatModel.encode_hidden

    def noted(model: CatModel, wave_BN: Tensor, *rest: Any) -> Tensor:
        nonlocal largest
        largest = max(largest, wave_BN.numel())
        return encode_hidden(model, wave_BN, *rest)

    monkeypatch.setattr(CatModel, "encode_hidden", noted)
    tracemalloc.start()
    try:
        result, codes, _ = encode(tmp_path, utterances, tokenizer)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.encoded == 2
    assert codes["long"].shape == (hours_s, 4)
    assert peak_bytes < 60e6, "the recording has 346 MB as float32"
    assert largest <= 120 * rate_hz
    head = encode(tmp_path / "short", utterances[1:], tokenizer)[1]["short"]
    assert np.array_equal(codes["long"][:1], head[:1]), "both begin with the same second"


def slow_model() -> CatModel:
    """One frame a second at 8 kHz, so that hours are few positions."""
    settings = small_settings() | {"sampling_rate_hz": 8_000, "samples_per_frame": 8_000}
    settings["encoder"][0]["patch_size"] = 800
    settings["encoder"][1] |= {"input_size": 800, "context_s": 4.0, "num_layers": 1}
    settings["encoder"][2]["patch_size"] = 10
    settings["encoder"][3] |= {"input_size": 80, "context_s": 8.0, "num_layers": 1}
    torch.manual_seed(0)
    return CatModel(build(CatConfig, settings))


def write_sparse_wav(path: Path, head: np.ndarray[Any, Any], rate_hz: int, seconds: int) -> None:
    """16 bit mono: `head`, then silence that takes no room on the disk."""
    soundfile.write(path, head, rate_hz, subtype="PCM_16")
    num_bytes = 2 * rate_hz * seconds
    with path.open("r+b") as file:
        file.seek(4)
        file.write(struct.pack("<I", 36 + num_bytes))
        file.seek(40)
        file.write(struct.pack("<I", num_bytes))
        file.truncate(44 + num_bytes)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_samples_that_are_no_numbers(tmp_path: Path, tokenizer: CatTokenizer, value: float) -> None:
    wave = tone(0.3, RATE_HZ)
    wave[777] = value
    bad = write(tmp_path / "bad.wav", wave, subtype="FLOAT")
    assert_one_bad(tmp_path, bad, "bad.wav: non-finite samples (NaN or infinity)", tokenizer)
    good = torch.zeros(500)
    with pytest.raises(DataError, match=r"wave 1: sample 777 is (nan|inf); 1 samples are not finite"):
        tokenizer.encode([good, torch.from_numpy(wave).float()])


def test_samples_that_are_no_numbers_late_in_a_long_recording(tmp_path: Path, tokenizer: CatTokenizer) -> None:
    """It is encoded as a stream, which meets them only after minutes."""
    wave = np.zeros(RATE_HZ * 130, dtype=np.float32)
    wave[-5] = math.nan
    bad = write(tmp_path / "bad.wav", wave, subtype="FLOAT")
    assert_one_bad(tmp_path, bad, "bad.wav: non-finite samples (NaN or infinity)", tokenizer)


def test_training_goes_on_although_one_file_is_corrupt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And although another is gone; both were good when the manifest was made."""
    config = tiny_run(tmp_path, tmp_path / "runs", audio_every_s=3600.0)
    extra = clip(tmp_path, "h2", 0.5, "heldout")
    path = tmp_path / "utterances.jsonl"
    write_manifest(path, [*read_manifest(path), extra])
    (tmp_path / "t1.wav").write_bytes(b"RIFF but nothing else")
    Path(extra.audio).unlink()
    folder = train(config)
    record = json.loads((folder / "heldout.json").read_text())
    assert (record["checkpoint"], record["clips"], record["clips_that_cannot_be_read"]) == ("step-00000012", 1, 1)
    assert [path.name for path in (folder / "audio" / "step-00000012").glob("*.target.wav")] == ["h.target.wav"]
    left_out = sorted(message.partition(" is left out")[0] for message in caplog.messages if "is left out" in message)
    assert left_out == ["h2", "t1"]
    assert any("segments were silence: 1 training recordings cannot be read" in line for line in caplog.messages)


def test_training_ends_where_no_heldout_clip_can_be_scored(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, tmp_path / "runs")
    train(config)
    (tmp_path / "h.wav").unlink()
    with pytest.raises(DataError, match=r"none of the 1 held-out recordings can be read; first: h: .*cannot be read"):
        train(config)


def test_a_damaged_file(tmp_path: Path, tokenizer: CatTokenizer) -> None:
    bad = write(tmp_path / "bad.wav", tone(0.3, RATE_HZ))
    Path(bad.audio).write_bytes(b"RIFF but nothing else")
    assert_one_bad(tmp_path, bad, "bad.wav: corrupt or unknown audio", tokenizer)


@pytest.mark.parametrize("loudness", [1.0, 8.0])
def test_clipping(tmp_path: Path, tokenizer: CatTokenizer, loudness: float) -> None:
    """Full scale, and floats beyond it, are sound like any other."""
    wave = loudness * np.sign(tone(0.5, RATE_HZ))
    result, codes, _ = encode(tmp_path, [write(tmp_path / "a.wav", wave, subtype="FLOAT")], tokenizer)
    assert result.encoded == 1
    assert int(codes["a"].max()) < tokenizer.spec.codebook_size
    decoded = tokenizer.decode([torch.from_numpy(codes["a"].astype(np.int64))])[0]
    assert bool(torch.isfinite(decoded).all())


def test_silence(tmp_path: Path, tokenizer: CatTokenizer) -> None:
    result, codes, _ = encode(tmp_path, [write(tmp_path / "a.wav", np.zeros(RATE_HZ))], tokenizer)
    assert result.encoded == 1
    assert codes["a"].shape == (50, 4)
    decoded = tokenizer.decode([torch.from_numpy(codes["a"].astype(np.int64))])[0]
    assert bool(torch.isfinite(decoded).all())


@pytest.mark.parametrize("code", [-1, 17, 1024, 2**40])
def test_codes_outside_the_range(tokenizer: CatTokenizer, code: int) -> None:
    good = torch.zeros(3, 4, dtype=torch.int64)
    bad = good.clone()
    bad[2, 1] = code
    message = rf"codes 1: {code} at frame 2, codebook 1 is outside \[0, 16\] \(16 = no code\)"
    with pytest.raises(DataError, match=message):
        tokenizer.decode([good, bad])
    with pytest.raises(DataError, match=r"codebook 1 is outside"):
        tokenizer.decoder_stream().push(bad)
    assert tokenizer.decode([good])[0].shape == (1440,), "the tokenizer is none the worse for it"


def test_more_codebooks_than_there_are(tmp_path: Path, tokenizer: CatTokenizer) -> None:
    wave = torch.zeros(1000)
    for count in (0, 5, -1):
        with pytest.raises(DataError, match=rf"num_codebooks: expected 1 to 4, got {count}"):
            tokenizer.encode([wave], count)
        with pytest.raises(DataError, match=rf"num_codebooks: expected 1 to 4, got {count}"):
            tokenizer.encoder_stream(count)
    with pytest.raises(DataError, match=r"codes 0: expected 1 to 4 codebooks, got 32; the shape is"):
        tokenizer.decode([torch.zeros(10, 32, dtype=torch.int64)])
    with pytest.raises(DataError, match=r"--num-codebooks 5: the tokenizer cat has 1 to 4"):
        card_of(tokenizer, "cat", 5)


PUBLISHED = {"manifest_v1": "cat_full", "manifest_v2": "cat_v2", "manifest_nano": "cat_nano"}


@pytest.mark.parametrize(("given", "wanted"), [("manifest_v1", "cat_v2"), ("manifest_v2", "cat_full")])
def test_the_checkpoint_of_one_generation_loaded_as_the_other(tmp_path: Path, given: str, wanted: str) -> None:
    """A file of the true names and sizes, which takes no room on the disk and is never read."""
    path = tmp_path / "model.safetensors"
    write_sparse_weights(path, load_fixture("ref_tokenizer.pt.gz")[given])
    with pytest.raises(CheckpointError) as caught:
        build_tokenizer(load_tokenizer_config(wanted, path))
    headline, *listing = str(caught.value).splitlines()
    words = {"manifest_v1": "24 kHz mono tokenizer (v1)", "manifest_v2": "48 kHz stereo tokenizer (v2)"}
    assert headline.startswith(f"{path}: not the weights of this tokenizer: it holds the published {words[given]}, ")
    assert headline.endswith(f"; use tokenizer={PUBLISHED[given]}")
    assert any("missing:" in row for row in listing)
    assert any("unknown:" in row for row in listing)
    assert len(listing) <= 4 * 22


def test_a_folder_of_one_generation_loaded_as_the_other(tmp_path: Path) -> None:
    for generation, wanted in ((Generation.v1, "cat_v2"), (Generation.v2, "cat_full")):
        write_folder(tmp_path / generation, generation)
        with pytest.raises(ConfigError, match=f"holds a Cat of the {generation} form .* the settings describe the "):
            load_tokenizer_config(wanted, tmp_path / generation)


def write_sparse_weights(path: Path, shapes: dict[str, Sequence[int]]) -> None:
    """A safetensors file of zeros."""
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + offset)


MISTAKES: dict[str, Callable[[CatTokenizer], object]] = {
    "empty": lambda t: t.encode([torch.zeros(0)]),
    "int": lambda t: t.encode([torch.zeros(10, dtype=torch.int16)]),
    "float codes": lambda t: t.decode([torch.zeros(3, 4)]),
}


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("empty", "wave 0: is empty; leave empty clips out"),
        ("int", r"wave 0: expected float samples in \[-1, 1\], got torch.int16; divide by full scale"),
        ("float codes", "codes 0: expected whole numbers, got torch.float32"),
    ],
)
def test_tensors_of_the_wrong_kind(tokenizer: CatTokenizer, mistake: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        MISTAKES[mistake](tokenizer)
