"""Transcripts of segments, as the semantic loss reads them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moss.config.tokenizer_training import SemanticConfig
from moss.data.manifest import Utterance
from moss.data.text_tokenizer import TextTokenizer
from moss.tokenizer.semantic import SemanticTask


@dataclass(frozen=True, slots=True)
class Transcripts:
    """Text of each segment of a batch; a length of 0 is none."""

    frames_B: Tensor
    """Frames that are not padding."""
    text_BL: Tensor
    lengths_B: Tensor
    tags_B: Tensor

    @property
    def num_targets(self) -> Tensor:
        """Tokens that the loss is a mean over: those of the texts, and an end token each."""
        return (self.lengths_B + (self.lengths_B > 0)).sum()

    def to(self, device: torch.device) -> "Transcripts":
        """The same on a device."""
        tensors = (self.frames_B, self.text_BL, self.lengths_B, self.tags_B)
        return Transcripts(*(tensor.to(device) for tensor in tensors))


class TranscriptReader:
    """Texts to ids, each text once.

    Args:
        text_tokenizer: Gives the ids.
        config: How long a text may be, and whether a segment that is cut out of its clip has any.
        samples_per_frame: Of the tokenizer that is trained.
    """

    def __init__(self, text_tokenizer: TextTokenizer, config: SemanticConfig, samples_per_frame: int) -> None:
        self._text_tokenizer, self._config, self._frame = text_tokenizer, config, samples_per_frame
        self._ids: dict[str, list[int]] = {}

    def read(self, clips: Sequence[Utterance], samples: Sequence[int], segment_samples: int) -> Transcripts:
        """Transcripts of segments.

        Args:
            clips: What the segments are of.
            samples: Length of each clip.
            segment_samples: Length of the segments.
        """
        texts: list[list[int]] = []
        tags: list[int] = []
        for clip, length in zip(clips, samples, strict=True):
            text, task = _task(clip)
            whole = length <= segment_samples or not self._config.whole_clips_only
            texts.append(self._encode(text) if whole else [])
            tags.append(task)
        frames = [math.ceil(min(length, segment_samples) / self._frame) for length in samples]
        lengths = [len(ids) for ids in texts]
        text_BL = torch.zeros(len(texts), max([1, *lengths]), dtype=torch.int64)
        for row, ids in enumerate(texts):
            text_BL[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return Transcripts(torch.tensor(frames), text_BL, torch.tensor(lengths), torch.tensor(tags))

    def _encode(self, text: str) -> list[int]:
        """Ids; none where the text is too long to be learnt from."""
        if text not in self._ids:
            ids = self._text_tokenizer.encode(text) if text else []
            self._ids[text] = ids if len(ids) <= self._config.max_text_tokens else []
        return self._ids[text]


def _task(clip: Utterance) -> tuple[str, SemanticTask]:
    """The text a model can be asked for, and which kind of text that is."""
    if not clip.text.strip():
        return str(clip.extra.get("ambient_sound") or "").strip(), SemanticTask.caption
    turns = "[S2]" in clip.text
    return clip.text.strip(), SemanticTask.multi_speaker_asr if turns else SemanticTask.asr
