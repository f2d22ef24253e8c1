import dataclasses
import re
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits

from moss.config.tokenizer import MelRvqConfig
from moss.errors import CheckpointError, DataError
from moss.tokenizer.build import build_tokenizer
from moss.tokenizer.interface import AudioTokenizer
from moss.tokenizer.mel_rvq import MelRvqTokenizer, MelRvqWeights, shipped_weights, with_neighbours
from moss.tokenizer.mel_spectrogram import one_blas_thread

FRAME = 1280


@pytest.fixture(scope="module")
def shipped() -> MelRvqTokenizer:
    return MelRvqTokenizer.load(MelRvqConfig(griffin_lim_iterations=4))


def voice(num_samples: int, seed: int = 0, level: float = 0.3) -> torch.Tensor:
    """A gliding harmonic tone with syllable-like swells and a little noise."""
    generator = np.random.default_rng(seed)
    time_s = np.arange(num_samples) / 16_000
    phase = 2 * np.pi * np.cumsum(150 + 40 * np.sin(2 * np.pi * (0.7 + 0.1 * seed) * time_s)) / 16_000
    tone = sum(np.sin(n * phase) / n for n in range(1, 20))
    swell = 0.5 + 0.5 * np.sin(2 * np.pi * 3 * time_s + seed)
    wave = level * swell * tone / 3 + 0.001 * generator.standard_normal(num_samples)
    return torch.from_numpy(wave.astype(np.float32))


def test_shipped_weights_offer_the_interface_at_the_documented_rates(shipped: MelRvqTokenizer) -> None:
    assert isinstance(shipped, AudioTokenizer)
    assert (shipped.spec.sampling_rate_hz, shipped.spec.samples_per_frame) == (16_000, FRAME)
    assert (shipped.spec.num_codebooks, shipped.spec.codebook_size) == (16, 1024)
    assert isinstance(build_tokenizer(MelRvqConfig()), MelRvqTokenizer)


def test_long_clips_go_through_in_blocks(shipped: MelRvqTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = voice(40 * FRAME)
    (codes,) = shipped.encode([wave])
    (whole,) = shipped.decode([codes])
    monkeypatch.setattr("moss.tokenizer.mel_spectrogram.BLOCK_VECTORS", 120)
    assert torch.equal(shipped.encode([wave])[0], codes)
    (long,) = shipped.decode([codes])
    assert long.shape == whole.shape
    # The last frame of the first block knows the one after it, and that is heard some vectors before.
    assert torch.equal(long[: 80 * 160], shipped.decode([codes[:15]])[0][: 80 * 160])
    # The second block begins 8 vectors before the end of the first.
    level = [float(item[112 * 160 : 120 * 160].square().mean()) for item in (long, whole)]
    assert 0.3 < level[0] / level[1] < 1.5


def test_memory_grows_little_with_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    spectrogram = MelRvqWeights.load(shipped_weights()).spectrogram()
    monkeypatch.setattr("moss.tokenizer.mel_spectrogram.BLOCK_VECTORS", 100)
    peaks = []
    for vectors in (200, 1600):
        wave = voice(vectors * 160).numpy()
        tracemalloc.start()
        try:
            spectrogram.synthesise(spectrogram.analyse(wave, vectors), 1)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    # 1,400 vectors more have 160 samples and 80 bands each; their spectra would have 321 complex values.
    assert peaks[1] - peaks[0] < 1400 * 4 * (3 * 160 + 2 * 80)


def test_shipped_weights_are_at_most_16_mb() -> None:
    assert shipped_weights().stat().st_size <= 16_000_000


@pytest.mark.parametrize("num_samples", [1, 159, 160, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME, 3 * FRAME + 7])
def test_frames_are_the_ceiling_and_the_true_length_comes_back(shipped: MelRvqTokenizer, num_samples: int) -> None:
    (codes,) = shipped.encode([voice(num_samples)])
    frames = -(-num_samples // FRAME)
    assert codes.shape == (frames, 16)
    assert codes.dtype is torch.int64
    assert 0 <= int(codes.min()) <= int(codes.max()) < 1024
    (trimmed,) = shipped.decode([codes], [num_samples])
    (whole,) = shipped.decode([codes])
    assert trimmed.shape == (num_samples,)
    assert whole.shape == (frames * FRAME,)
    assert whole.dtype is torch.float32
    assert torch.equal(whole[:num_samples], trimmed)
    assert bool(torch.isfinite(whole).all())


def test_a_batch_equals_its_items_bit_for_bit(shipped: MelRvqTokenizer) -> None:
    waves = [voice(n, seed) for seed, n in enumerate((5000, 16_000, 1, 9 * FRAME))]
    together = shipped.encode(waves)
    alone = [shipped.encode([wave])[0] for wave in waves]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    decoded = shipped.decode(together)
    assert all(torch.equal(a, shipped.decode([b])[0]) for a, b in zip(decoded, alone, strict=True))
    assert shipped.encode([]) == []
    assert shipped.decode([]) == []


def test_codes_and_sound_do_not_depend_on_the_number_of_threads(shipped: MelRvqTokenizer) -> None:
    wave = voice(40_000)
    results = []
    for threads in (1, 2):
        with threadpool_limits(limits=threads):
            (codes,) = shipped.encode([wave])
            results.append((codes, shipped.decode([codes])[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_two_tokenizers_of_one_file_agree(shipped: MelRvqTokenizer) -> None:
    other = MelRvqTokenizer.load(MelRvqConfig(griffin_lim_iterations=4))
    (codes,) = shipped.encode([voice(8000)])
    assert torch.equal(codes, other.encode([voice(8000)])[0])
    assert torch.equal(shipped.decode([codes])[0], other.decode([codes])[0])
    assert shipped.fingerprint == other.fingerprint


@pytest.mark.parametrize("num_codebooks", [1, 4, 8, 16])
def test_fewer_codebooks_are_a_prefix(shipped: MelRvqTokenizer, num_codebooks: int) -> None:
    wave = voice(6000)
    (codes,) = shipped.encode([wave])
    (prefix,) = shipped.encode([wave], num_codebooks=num_codebooks)
    assert torch.equal(prefix, codes[:, :num_codebooks])
    assert shipped.decode([prefix])[0].shape == (5 * FRAME,)


def test_more_codebooks_come_closer(shipped: MelRvqTokenizer) -> None:
    wave = voice(16_000)
    (codes,) = shipped.encode([wave])
    target = torch.stft(wave, 640, 160, window=torch.hann_window(640), return_complex=True).abs()
    distances = []
    for count in (1, 4, 16):
        (decoded,) = shipped.decode([codes[:, :count]], [16_000])
        spectrum = torch.stft(decoded, 640, 160, window=torch.hann_window(640), return_complex=True).abs()
        distances.append(float((spectrum - target).norm() / target.norm()))
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.6


def test_the_pad_code_contributes_nothing(shipped: MelRvqTokenizer) -> None:
    (codes,) = shipped.encode([voice(5 * FRAME)])
    padded = codes.clone()
    padded[:, 8:] = shipped.spec.pad_code
    assert torch.equal(shipped.decode([padded])[0], shipped.decode([codes[:, :8]])[0])
    padded[2] = shipped.spec.pad_code
    assert bool(torch.isfinite(shipped.decode([padded])[0]).all())
    assert not torch.equal(shipped.decode([padded])[0], shipped.decode([codes[:, :8]])[0])


def test_codes_without_frames_decode_to_nothing(shipped: MelRvqTokenizer) -> None:
    (wave,) = shipped.decode([torch.zeros(0, 8, dtype=torch.int64)])
    assert wave.shape == (0,)


def test_silence_stays_quiet(shipped: MelRvqTokenizer) -> None:
    (codes,) = shipped.encode([torch.zeros(8000)])
    assert float(shipped.decode([codes])[0].abs().max()) < 0.02


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (torch.zeros(0), "wave 0: is empty"),
        (torch.zeros(2, 100), "wave 0: expected one dimension (mono samples), got shape (2, 100)"),
        (torch.zeros(100, dtype=torch.int16), "wave 0: expected float samples in [-1, 1], got torch.int16"),
        (torch.tensor([0.0, float("nan")]), "wave 0: sample 1 is nan"),
    ],
)
def test_waves_that_cannot_be_encoded(shipped: MelRvqTokenizer, wave: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        shipped.encode([wave])


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.full((2, 4), 1025), "codes 0: 1025 at frame 0, codebook 0 is outside [0, 1024]"),
        (torch.full((2, 4), -1), "codes 0: -1 at frame 0, codebook 0 is outside [0, 1024]"),
        (torch.zeros(2, 17, dtype=torch.int64), "codes 0: expected 1 to 16 codebooks, got 17"),
        (torch.zeros(2, 0, dtype=torch.int64), "codes 0: expected 1 to 16 codebooks, got 0"),
        (torch.zeros(2, 4), "codes 0: expected whole numbers, got torch.float32"),
        (torch.zeros(8, dtype=torch.int64), "codes 0: expected shape (frames, codebooks), got (8,)"),
    ],
)
def test_codes_that_cannot_be_decoded(shipped: MelRvqTokenizer, codes: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        shipped.decode([codes])


@pytest.mark.parametrize("num_codebooks", [0, 17])
def test_a_number_of_codebooks_it_does_not_have(shipped: MelRvqTokenizer, num_codebooks: int) -> None:
    with pytest.raises(DataError, match=f"num_codebooks: expected 1 to 16, got {num_codebooks}"):
        shipped.encode([voice(2000)], num_codebooks=num_codebooks)


def test_a_length_beyond_the_frames(shipped: MelRvqTokenizer) -> None:
    with pytest.raises(DataError, match="2 frames hold at most 2560 samples, got 2561"):
        shipped.decode([torch.zeros(2, 4, dtype=torch.int64)], [2561])


def test_the_fingerprint_follows_the_weights_and_the_analysis(shipped: MelRvqTokenizer) -> None:
    weights = MelRvqWeights.load(shipped_weights())
    assert re.fullmatch("[0-9a-f]{16}", shipped.fingerprint)
    assert MelRvqTokenizer(weights, griffin_lim_iterations=1).fingerprint == shipped.fingerprint
    codebooks = weights.codebooks.copy()
    codebooks[0, 0, 0] += 1
    for changed in ({"codebooks": codebooks}, {"exponent": 0.21}, {"hop": 80}):
        assert MelRvqTokenizer(dataclasses.replace(weights, **changed)).fingerprint != shipped.fingerprint


def test_neighbours_are_before_and_after_with_zeros_at_the_ends() -> None:
    windows = with_neighbours(np.array([[1.0], [2.0], [3.0]], dtype=np.float32))
    assert windows.tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 0]]


def test_weights_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none.safetensors does not exist; leave tokenizer.weights empty"):
        build_tokenizer(MelRvqConfig(weights=tmp_path / "none.safetensors"))


def test_a_file_that_is_no_weights_file(tmp_path: Path) -> None:
    path = tmp_path / "noise.safetensors"
    path.write_bytes(b"noise" * 100)
    with pytest.raises(CheckpointError, match=r"noise\.safetensors: not a safetensors file"):
        MelRvqWeights.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": {"format": "pt"}}, "no weights of the mel_rvq tokenizer (its metadata lacks 'mel_rvq'"),
        ({"metadata": {"mel_rvq": "[1]"}}, "no weights of the mel_rvq tokenizer"),
        ({"metadata": {"mel_rvq": '{"version": "1", "hop": 160}'}}, "lacks a sampling_rate_hz, hop or exponent"),
        ({"metadata": {"mel_rvq": '{"version": "0"}'}}, "expected mel_rvq weights of version 1, got '0'"),
        ({"drop": "mean"}, "arrays missing ['mean'], unknown []"),
        ({"add": "extra"}, "arrays missing [], unknown ['extra']"),
        ({"cut": "basis"}, "basis has shape (600, 192), expected (640, 192)"),
    ],
)
def test_weights_of_another_kind(tmp_path: Path, change: dict[str, object], message: str) -> None:
    weights = MelRvqWeights.load(shipped_weights())
    path = tmp_path / "changed.safetensors"
    weights.save(path, {})
    tensors = load_file(path)
    if "drop" in change:
        del tensors[str(change["drop"])]
    if "add" in change:
        tensors[str(change["add"])] = torch.zeros(1)
    if "cut" in change:
        tensors[str(change["cut"])] = tensors[str(change["cut"])][:600].clone()
    with safe_open(str(path), "np") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata=change.get("metadata", metadata))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        MelRvqWeights.load(path)


def test_threads_that_want_one_blas_thread_take_turns() -> None:
    inside, leave, waiting = threading.Event(), threading.Event(), threading.Event()
    order: list[str] = []

    def first() -> None:
        with one_blas_thread():
            inside.set()
            leave.wait(10)
            order.append("first")

    def second() -> None:
        inside.wait(10)
        waiting.set()
        with one_blas_thread():
            order.append("second")

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    assert waiting.wait(10)
    threads[1].join(0.2)
    assert order == []
    leave.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "second"]
