"""Recordings for training the tokenizer, decoded once; what became of one since its manifest was made ends no run."""

import logging
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from moss.data.audio import load_audio
from moss.data.manifest import Utterance
from moss.errors import DataError

logger = logging.getLogger(__name__)

MAX_BROKEN_FRAC, MIN_BROKEN = 0.05, 20
"""Training ends where more than this share of the recordings asked for is broken, and no fewer than so many are."""
REMEDY = (
    "restore the files and start again, which goes on from the newest checkpoint; or make the manifest again with "
    "data_prep/01_manifest.py, which puts them aside, and start a run with another name"
)


class Recordings:
    """Recordings at one rate, decoded once and kept as 16-bit samples while they fit.

    Rounding to 16 bits happens whether or not a recording is kept, so the budget changes no number.

    Args:
        sampling_rate_hz: Rate of the waveforms handed out.
        budget_bytes: Most memory to use; the least recently used recordings make room.
        audio_channels: 1 mixes channels, 2 gives stereo (a mono recording twice).
    """

    def __init__(self, sampling_rate_hz: int, budget_bytes: int, audio_channels: int = 1) -> None:
        self._rate_hz, self._budget, self._channels = sampling_rate_hz, budget_bytes, audio_channels
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0
        self.broken: dict[str, str] = {}
        """Why each recording that was found broken cannot be read, by its path."""

    def wave(self, utterance: Utterance) -> Tensor:
        """Float32 waveform (N,), or (2, N).

        Raises:
            DataError: The audio cannot be read.
        """
        samples = self._kept.get(utterance.audio)
        if samples is None:
            wave = load_audio(
                utterance.audio,
                self._rate_hz,
                audio_channels=self._channels,
                max_channels=utterance.max_channels,
            )
            samples = (wave * 32767).round().clamp(-32768, 32767).to(torch.int16)
            self._keep(utterance.audio, samples)
        else:
            self._kept.move_to_end(utterance.audio)
        return samples.float() / 32767

    def find(self, utterance: Utterance) -> Tensor | None:
        """The same; None where it cannot be read, which is said once and not tried again."""
        if utterance.audio in self.broken:
            return None
        try:
            return self.wave(utterance)
        except DataError as error:
            self.broken[utterance.audio] = str(error)
            logger.warning("%s is left out: it cannot be read any more: %s", utterance.id, error)
            return None

    def silence(self, samples: int) -> Tensor:
        """A waveform of zeros, shaped like those of `wave`."""
        return torch.zeros(samples) if self._channels == 1 else torch.zeros(self._channels, samples)

    def _keep(self, key: str, samples: Tensor) -> None:
        size = 2 * samples.numel()
        if size > self._budget:
            return
        while self._bytes + size > self._budget:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= 2 * dropped.numel()
        self._kept[key] = samples
        self._bytes += size


class BrokenClips:
    """Counts training clips that cannot be read among those asked for.

    Args:
        clips: All that can be asked for; where they are few, training ends when every one of them is broken.
    """

    def __init__(self, clips: Sequence[Utterance]) -> None:
        self._fewest = min(MIN_BROKEN, len({clip.audio for clip in clips}))
        self._asked: set[str] = set()
        self._broken: set[str] = set()
        self.silent_segments = 0
        """Segments in whose place there was silence."""

    @property
    def num_broken(self) -> int:
        """Distinct recordings."""
        return len(self._broken)

    def good(self, clip: Utterance) -> None:
        """A clip was read."""
        self._asked.add(clip.audio)

    def bad(self, clip: Utterance, reason: str) -> None:
        """A clip could not be read; silence takes the place of its segment.

        Raises:
            DataError: Too many of the clips are like that.
        """
        self._asked.add(clip.audio)
        self._broken.add(clip.audio)
        self.silent_segments += 1
        broken, asked = len(self._broken), len(self._asked)
        if broken >= self._fewest and broken > MAX_BROKEN_FRAC * asked:
            raise DataError(
                f"{broken} of the {asked} training recordings asked for so far ({broken / asked:.1%}) cannot be read, "
                f"more than {MAX_BROKEN_FRAC:.0%}; the last: {clip.id}: {reason}; {REMEDY}"
            )
