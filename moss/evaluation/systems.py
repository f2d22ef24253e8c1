"""What benchmark=tokenizer compares: tokenizers at several codebook counts, and codecs, behind one interface."""

import dataclasses
import hashlib
import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from moss.config.evaluation import DEFAULT_CODEBOOKS, Baseline, EvalConfig
from moss.config.load_tokenizer import load_tokenizer_config
from moss.config.schema import to_plain
from moss.config.tokenizer import TokenizerConfig
from moss.errors import EvaluationError
from moss.evaluation.codecs.interface import Codec
from moss.spec import TokenizerSpec
from moss.tokenizer.interface import AudioTokenizer

logger = logging.getLogger(__name__)

FAMILIES = {Baseline.OPUS: "Opus", Baseline.CODEC2: "Codec 2", Baseline.MEL_GRIFFIN_LIM: "mel + Griffin-Lim"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One setting of a system: one row of the table."""

    system: str
    """Unique name in the records."""
    label: str
    folder: str
    """Of its clips, below the folder of the system."""
    num_codebooks: int | None = None
    bits_per_s: float | None = None
    """Nominal; None where nothing is quantised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """A clip that was encoded and decoded."""

    wave: Tensor
    """(samples,), as many as went in."""
    processing_s: float
    """Wall-clock seconds of encoding and decoding."""


class System(Protocol):
    """A tokenizer or codec in all the settings that are scored."""

    @property
    def family(self) -> str:
        """Its name; unique in a run."""
        ...

    @property
    def revision(self) -> str:
        """Changes whenever the sound may change."""
        ...

    @property
    def folder(self) -> str:
        """Of its clips; together with a variant's folder another one whenever the sound may change."""
        ...

    @property
    def sampling_rate_hz(self) -> int:
        """Rate of what goes in and comes out."""
        ...

    @property
    def device(self) -> str:
        """What it computes on: "cpu", or the name of a GPU."""
        ...

    @property
    def variants(self) -> Sequence[Variant]:
        """Its settings, by ascending bit rate."""
        ...

    def rebuild(self, wave: Tensor, variants: Sequence[Variant]) -> Iterator[tuple[Variant, Rebuilt]]:
        """Encode a clip and decode it in some settings, timed.

        Args:
            wave: Mono samples (samples,) at `sampling_rate_hz`.
            variants: Which of them.

        Raises:
            DataError: the clip cannot be encoded.
        """
        ...


def tokenizer_revision(tokenizer: AudioTokenizer, settings: str) -> str:
    """Its fingerprint, and a digest of the settings that change its sound and not its codes."""
    return tokenizer.fingerprint + ("-" + _digest(settings)[:8] if settings else "")


class TokenizerSystem:
    """An audio tokenizer, decoded with the first k codebooks for several k.

    A clip is encoded once with all codebooks: the time of each row holds that encoding and the decoding of its own k.

    Args:
        name: What it is called in tables.
        tokenizer: The tokenizer.
        codebooks: Counts to score; those that it has are taken. Empty: the default ones and all.
        settings: Settings that change the sound and not the codes, such as the iterations of a synthesis.
        device: What the tokenizer computes on, as in `System.device`.

    Raises:
        EvaluationError: it has none of the counts.
    """

    def __init__(
        self,
        name: str,
        tokenizer: AudioTokenizer,
        codebooks: Sequence[int] = (),
        *,
        settings: str = "",
        device: str = "cpu",
    ) -> None:
        self.family = name
        self.revision = tokenizer_revision(tokenizer, settings)
        self.folder = self.revision
        self.sampling_rate_hz = tokenizer.spec.sampling_rate_hz
        self.device = device
        self.variants = [_variant(name, count, tokenizer.spec) for count in choose_counts(codebooks, tokenizer.spec)]
        self._tokenizer = tokenizer

    def rebuild(self, wave: Tensor, variants: Sequence[Variant]) -> Iterator[tuple[Variant, Rebuilt]]:
        """See `System.rebuild`; a stereo reconstruction becomes the mean of its channels."""
        started = time.perf_counter()
        # Fetching results from a GPU waits for them: only then is the clock right.
        codes = self._tokenizer.encode([wave])[0].cpu()
        encoding_s = time.perf_counter() - started
        for variant in variants:
            started = time.perf_counter()
            decoded = self._tokenizer.decode([codes[:, : variant.num_codebooks]], [wave.shape[0]])[0].cpu()
            decoding_s = time.perf_counter() - started
            mono = decoded.mean(0) if decoded.dim() == 2 else decoded
            yield variant, Rebuilt(wave=mono, processing_s=encoding_s + decoding_s)


class CodecSystem:
    """Settings of one codec.

    Args:
        family: What they are settings of.
        codecs: One for each setting, all at one sampling rate.
    """

    device = "cpu"

    def __init__(self, family: str, codecs: Sequence[Codec]) -> None:
        self.family = family
        self.revision = "; ".join(codec.revision for codec in codecs)
        self.folder = "-".join(re.findall(r"\w+", family.lower()))
        self.sampling_rate_hz = codecs[0].sampling_rate_hz
        self._codecs = {codec.label: codec for codec in codecs}
        self.variants = [
            Variant(
                system=codec.label,
                label=codec.label,
                folder=f"{codec.name}-{_digest(codec.revision)[:8]}",
                bits_per_s=codec.bits_per_s,
            )
            for codec in codecs
        ]

    def rebuild(self, wave: Tensor, variants: Sequence[Variant]) -> Iterator[tuple[Variant, Rebuilt]]:
        """See `System.rebuild`."""
        for variant in variants:
            started = time.perf_counter()
            decoded = self._codecs[variant.system].reconstruct(wave)
            yield variant, Rebuilt(wave=decoded, processing_s=time.perf_counter() - started)


def build_systems(config: EvalConfig) -> tuple[list[System], list[str]]:
    """The systems that a configuration names, tokenizers first; and a note for each baseline that cannot run here.

    Raises:
        ConfigError: a tokenizer that does not exist, has wrong settings or lacks weights.
        CheckpointError: weights that do not fit.
        EvaluationError: codebook counts that a tokenizer does not have; nothing is left to score.
    """
    systems: list[System] = [*_tokenizer_systems(config)]
    notes = []
    for baseline in config.baselines:
        try:
            systems.append(CodecSystem(FAMILIES[baseline], _codecs(baseline, config)))
        except EvaluationError as error:
            logger.warning("%s is left out: %s", FAMILIES[baseline], error)
            notes.append(f"{FAMILIES[baseline]} is not in the table: {error}.")
    if not systems:
        raise EvaluationError("nothing to score: " + " ".join(notes))
    return systems, notes


def choose_counts(codebooks: Sequence[int], spec: TokenizerSpec) -> list[int]:
    """Codebook counts to score, ascending: those asked for that the tokenizer has, else the default ones and all.

    Raises:
        EvaluationError: none of those asked for.
    """
    wanted = codebooks or (*DEFAULT_CODEBOOKS, spec.num_codebooks)
    counts = sorted({count for count in wanted if 1 <= count <= spec.num_codebooks})
    if not counts:
        raise EvaluationError(f"codebooks={list(codebooks)}: this tokenizer has 1 to {spec.num_codebooks} codebooks")
    return counts


def _tokenizer_systems(config: EvalConfig) -> list[TokenizerSystem]:
    from moss.tokenizer.build import build_tokenizer

    named = [(_name_of(name), load_tokenizer_config(name)) for name in config.tokenizers]
    if config.tokenizer is not None:
        named.insert(0, (_group_name(config.tokenizer), config.tokenizer))
    systems: list[TokenizerSystem] = []
    for name, settings in named:
        device = _device(config.device)
        tokenizer = build_tokenizer(settings, device)
        # Where weights lie is no property of the sound, and the fingerprint knows what they are.
        text = json.dumps(to_plain(dataclasses.replace(settings, weights=None)), sort_keys=True)
        revision = tokenizer_revision(tokenizer, text)
        if revision in {other.revision for other in systems}:
            continue
        taken = {system.family for system in systems}
        candidates = (name, f"{name} {revision[:6]}", f"{name} {revision}")
        unique = next(candidate for candidate in candidates if candidate not in taken)
        systems.append(TokenizerSystem(unique, tokenizer, config.codebooks, settings=text, device=_device_name(device)))
    return systems


def _name_of(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix in (".yaml", ".yml") else path.resolve().name if path.is_dir() else name


def _group_name(settings: TokenizerConfig) -> str:
    return settings.kind if settings.weights is None else f"{settings.kind} {settings.weights.stem}"


def _codecs(baseline: Baseline, config: EvalConfig) -> Sequence[Codec]:
    if baseline is Baseline.OPUS:
        from moss.evaluation.codecs.opus import opus_codecs

        return opus_codecs(config.opus_bits_per_s)
    if baseline is Baseline.CODEC2:
        from moss.evaluation.codecs.codec2 import codec2_codecs

        return codec2_codecs(config.codec2_modes)
    from moss.evaluation.codecs.mel_griffin_lim import MelGriffinLim

    return [MelGriffinLim()]


def _device(device: str | None) -> str:
    import torch

    from moss.tokenizer.build import device_problem

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    problem = device_problem(chosen)
    if problem:
        raise EvaluationError(f"device={chosen}: cannot be used: {problem}")
    return chosen


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device


def _variant(name: str, count: int, spec: TokenizerSpec) -> Variant:
    plural = "" if count == 1 else "s"
    bits_per_s = spec.bits_per_s * count / spec.num_codebooks
    return Variant(
        system=f"{name}, {count} codebook{plural}",
        label=f"{name}, {count} codebook{plural}",
        folder=f"codebooks-{count:02d}",
        num_codebooks=count,
        bits_per_s=bits_per_s,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
