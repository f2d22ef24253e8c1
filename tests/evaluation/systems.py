"""A tokenizer and a codec that cost nothing, and clips for them."""

import torch

from moss.data.manifest import Utterance, write_manifest
from moss.errors import DataError
from moss.evaluation.systems import CodecSystem, TokenizerSystem
from moss.spec import TokenizerSpec
from tests.evaluation.fakes import TEXTS, write_voice

SPEC = TokenizerSpec(sampling_rate_hz=16_000, samples_per_frame=1280, num_codebooks=3, codebook_size=256)


class GainTokenizer:
    """Every codebook refines the samples of a frame; more codebooks, less error. Counts what it encodes."""

    spec = SPEC

    def __init__(self, fingerprint="0123456789abcdef"):
        self.fingerprint = fingerprint
        self.encoded = 0
        self._memory: dict[int, torch.Tensor] = {}

    def encode(self, waves, num_codebooks=None):
        self.encoded += len(waves)
        codes = []
        for wave in waves:
            self._memory[len(self._memory)] = wave
            frames = SPEC.num_frames(wave.shape[0])
            codes.append(torch.full((frames, num_codebooks or SPEC.num_codebooks), len(self._memory) - 1))
        return codes

    def decode(self, codes, num_samples=None):
        decoded = []
        for item, length in zip(codes, num_samples, strict=True):
            wave = self._memory[int(item[0, 0])][:length]
            noise = torch.randn(wave.shape, generator=torch.Generator().manual_seed(0))
            decoded.append(wave + noise * 0.05 / 4 ** item.shape[1])
        return decoded


class StereoTokenizer(GainTokenizer):
    """Gives back two channels, of which only the mean is right."""

    def decode(self, codes, num_samples=None):
        return [torch.stack((wave + 0.1, wave - 0.1)) for wave in super().decode(codes, num_samples)]


class HalfCodec:
    """Halves the samples. Counts its clips; refuses those of a given length."""

    def __init__(self, bits_per_s=600.0, *, version="1", refused=None, sampling_rate_hz=8_000):
        self.sampling_rate_hz = sampling_rate_hz
        self.name = f"half-{bits_per_s}"
        self.label = f"Half {bits_per_s:g}"
        self.bits_per_s = bits_per_s
        self.revision = f"half {version}: {bits_per_s}"
        self.coded = 0
        self._refused = refused

    def reconstruct(self, wave):
        self.coded += 1
        if wave.shape[0] == self._refused:
            raise DataError("too odd a clip")
        return 0.5 * wave


def fake_systems(tokenizer=None, codecs=(), codebooks=()):
    """A tokenizer called "gain" and, where there are codecs, a family called "Half"."""
    systems = [TokenizerSystem("gain", tokenizer or GainTokenizer(), codebooks)]
    return [*systems, CodecSystem("Half", codecs)] if codecs else systems


def write_clips(folder, count=3, **changes):
    """A manifest of clips of 1.2 s."""
    utterances = []
    for i in range(count):
        path = write_voice(folder / f"clips/{i}.wav", i)
        values = {"id": f"u{i}", "audio": str(path), "text": TEXTS[i], "language": "en", "split": "heldout"}
        utterances.append(Utterance(**(values | {"duration_s": 1.2} | changes)))
    write_manifest(folder / "utterances.jsonl", utterances)
    return folder / "utterances.jsonl"
