"""Waveform metrics of a reconstruction or a generated clip: PESQ, STOI and duration error.

Everything arrives at 16 kHz mono; a pair is cut to the shorter of the two, aligned at the head, without any search
for a delay. PESQ finds delays by itself, STOI does not: 20 ms of shift costs it a third of its range.
"""

import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moss.errors import EvaluationError

SCORING_RATE_HZ = 16_000
PESQ_FLOOR = 1.0
STOI_FLOOR = 0.0

PESQ_PIECE_S = 20
"""The package writes beyond its arrays where it finds more than 50 bursts of speech, each at least 0.2 s long and 0.2 s
from the next: 20 s never have as many."""

STOI_WHOLE_S, STOI_PIECE_S = 600, 300
"""The package takes some 1.5 MB of memory a second."""

_PYSTOI_TOO_SHORT = 1e-5
"""What pystoi answers, with a warning, when too little speech is left; it is not a score."""
_PYSTOI_MIN_SAMPLES = 410
"""One of its frames, 256 samples at 10 kHz; with less it fails."""
warnings.filterwarnings("ignore", message="Not enough STFT frames", category=RuntimeWarning)

Wave = NDArray[np.floating]
Samples = NDArray[np.float64]


def pesq_nb_16k(reference: Wave, degraded: Wave) -> float:
    """Narrow-band PESQ computed *at 16 kHz* (not 8 kHz), about 1 to 4.55; identical clips give 4.5486.

    A clip longer than `PESQ_PIECE_S` has the mean of equal pieces of at most that length. A piece without speech, or
    more than 40 dB below the clip's level, does not count; one that came back without any level counts as `PESQ_FLOOR`.

    Args:
        reference: Samples (N,) at 16 kHz.
        degraded: Samples (M,) at 16 kHz.

    Raises:
        EvaluationError: a clip is silent, shorter than 0.25 s, empty or not finite; the message says which.

    Source: MOSS-Audio-Tokenizer-Eval metrics/core.py:91-97 @b8e23bf.
    """
    return _pesq(reference, degraded, "nb")


def pesq_nb_8k(reference: Wave, degraded: Wave) -> float:
    """Narrow-band PESQ at 8 kHz, the rate ITU-T P.862 defines it for; up to 0.1 away from `pesq_nb_16k`.

    Args:
        reference: Samples (N,) at 16 kHz; brought to 8 kHz here by a polyphase filter.
        degraded: Samples (M,) at 16 kHz.

    Raises:
        EvaluationError: a clip is silent, shorter than 0.25 s, empty or not finite; the message says which.
    """
    return _pesq(reference, degraded, "nb", halve_rate=True)


def pesq_wb(reference: Wave, degraded: Wave) -> float:
    """Wide-band PESQ at 16 kHz, about 1 to 4.64; identical clips give 4.6439. Arguments as `pesq_nb_16k`.

    Raises:
        EvaluationError: a clip is silent, shorter than 0.25 s, empty or not finite; the message says which.

    Source: MOSS-Audio-Tokenizer-Eval metrics/core.py @b8e23bf.
    """
    return _pesq(reference, degraded, "wb")


def stoi(reference: Wave, degraded: Wave, *, extended: bool = False) -> float:
    """Short-time objective intelligibility, 0 to 1; `extended` gives ESTOI.

    A clip longer than `STOI_WHOLE_S` has the mean of equal pieces of at most `STOI_PIECE_S`, chosen as PESQ's are.

    Args:
        reference: Samples (N,) at 16 kHz.
        degraded: Samples (M,) at 16 kHz.
        extended: Use the variant for modulated noise; it repeats only to about 1e-15.

    Raises:
        EvaluationError: a clip is silent, empty or not finite, or less than 30 frames (0.4 s) of speech are left.

    Source: MOSS-Audio-Tokenizer-Eval metrics/core.py @b8e23bf.
    """
    from pystoi import stoi as pystoi_stoi

    name = "ESTOI" if extended else "STOI"
    reference, degraded = check_pair(reference, degraded, name)
    values = [
        float(pystoi_stoi(*pair, SCORING_RATE_HZ, extended=extended))
        for pair in _pieces(reference, degraded, SCORING_RATE_HZ, STOI_WHOLE_S, STOI_PIECE_S)
        if pair[0].shape[0] >= _PYSTOI_MIN_SAMPLES
    ]
    # Asked of the value, not of the warning beside it: warnings are caught for a process, clips scored in threads.
    scores = [value for value in values if value != _PYSTOI_TOO_SHORT]
    if not scores:
        raise EvaluationError(f"{name}: less than 30 frames (about 0.4 s) of speech are left; the clip is too short")
    return sum(scores) / len(scores)


def duration_error(generated_s: float, target_s: float) -> float:
    """Relative difference of two durations, |generated - target| / target, as a fraction.

    Raises:
        EvaluationError: the target is not longer than 0 s.
    """
    if target_s <= 0:
        raise EvaluationError(f"duration error needs a target longer than 0 s, got {target_s} s; check the target clip")
    return abs(generated_s - target_s) / target_s


def _pesq(reference: Wave, degraded: Wave, mode: Literal["nb", "wb"], *, halve_rate: bool = False) -> float:
    from pesq import NoUtterancesError, PesqError, pesq

    name, rate_hz = f"PESQ-{mode.upper()}", SCORING_RATE_HZ
    pair = check_pair(reference, degraded, name)
    if halve_rate:
        from scipy.signal import resample_poly

        pair, rate_hz = (resample_poly(pair[0], 1, 2), resample_poly(pair[1], 1, 2)), rate_hz // 2
    pieces = _pieces(*pair, rate_hz, PESQ_PIECE_S, PESQ_PIECE_S)
    scores = []
    without_speech: Exception | None = None
    for piece in pieces:
        try:
            scores.append(float(pesq(rate_hz, *piece, mode)))
        except NoUtterancesError as error:
            without_speech = error
        except ValueError as error:
            # The C code scales by the joint peak and reports NaN as ValueError when the degraded clip has no level.
            if len(pieces) == 1:
                raise _pesq_error(name, error) from error
            scores.append(PESQ_FLOOR)
        except PesqError as error:
            raise _pesq_error(name, error) from error
    if not scores:
        raise _pesq_error(name, without_speech) from without_speech
    return sum(scores) / len(scores)


def _pesq_error(name: str, cause: Exception | None) -> EvaluationError:
    reason = cause.args[0] if cause and cause.args else cause
    reason = reason.decode() if isinstance(reason, bytes) else str(reason)
    return EvaluationError(f"{name} failed: {reason} ({type(cause).__name__})")


def _pieces(
    reference: Samples, degraded: Samples, rate_hz: int, whole_s: int, piece_s: int
) -> list[tuple[Samples, Samples]]:
    """The pair where it is at most `whole_s` long, else equal pieces of at most `piece_s` that hold speech."""
    if reference.shape[0] <= whole_s * rate_hz:
        return [(reference, degraded)]
    count = -(-reference.shape[0] // (piece_s * rate_hz))
    pairs = zip(np.array_split(reference, count), np.array_split(degraded, count), strict=True)
    # The scores bring a piece to its own level: what is faint in it must not be heard as its speech.
    threshold = 1e-4 * np.mean(reference**2)
    return [pair for pair in pairs if np.mean(pair[0] ** 2) >= threshold]


def check_pair(reference: Wave, degraded: Wave, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Check a pair and cut it to the shorter clip.

    Args:
        reference: Samples (N,).
        degraded: Samples (M,).
        name: The metric, for the message.

    Raises:
        EvaluationError: a clip is not mono, empty, silent or not finite; the message says which.
    """
    for role, wave in (("reference", reference), ("degraded", degraded)):
        if wave.ndim != 1:
            raise EvaluationError(f"{name}: the {role} clip has shape {wave.shape}, expected mono samples (N,)")
        if wave.size == 0:
            raise EvaluationError(f"{name}: the {role} clip is empty")
        if not np.isfinite(wave).all():
            raise EvaluationError(f"{name}: the {role} clip has samples that are not finite")
        if not wave.any():
            raise EvaluationError(f"{name}: the {role} clip is silent")
    length = min(reference.size, degraded.size)
    return reference[:length].astype(np.float64), degraded[:length].astype(np.float64)
