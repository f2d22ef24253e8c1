"""The last check of a run that overfits: spoken again greedily, how many codes of its own examples come back?

Prompts and true codes are cut out of the rows that training sees, so that the check knows nothing of tasks, templates
or layouts beyond where the first target stands.
"""

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moss.config.generation import GenerationConfig, SamplerConfig
from moss.data.files import atomic_write
from moss.data.loader import TokenStream
from moss.generation.loop import generate
from moss.generation.realtime_loop import RealtimePrompt
from moss.model.interface import Generator
from moss.model.realtime import RealtimeModel
from moss.sequence.layout import Layout
from moss.sequence.layout_realtime import RealtimeLayout
from moss.spec import IGNORE_LABEL

logger = logging.getLogger(__name__)

REGENERATION_FILE = "regeneration.json"
EXTRA_FRAMES = 16
"""Room beyond a clip's length before a generation that does not end is cut."""
BATCH_SIZE = 16


@dataclass(frozen=True, slots=True, eq=False)
class TrainedExample:
    """An example as training sees it.

    Attributes:
        id: Of its utterance.
        inputs: Shape (positions, channels).
        labels: Same shape, aligned.
    """

    id: str
    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Regenerated:
    """One clip spoken again.

    Attributes:
        id: Of its utterance.
        right: Codes that equal the true one at their frame and codebook.
        total: Codes of the longer of the two; what is missing or too much is wrong.
        frames: Frames spoken.
        true_frames: Frames of the clip.
        stop_reason: Why the generation ended.
    """

    id: str
    right: int
    total: int
    frames: int
    true_frames: int
    stop_reason: str


def first_examples(stream: TokenStream, count: int) -> list[TrainedExample]:
    """The first examples in the order of training, each once; fewer if one epoch has fewer."""
    found: dict[str, TrainedExample] = {}
    seen = step = 0
    while len(found) < count and seen < stream.num_examples:
        batch = stream.batch(step, 0)
        lengths = list(batch.document_lengths)
        inputs, labels = batch.tokens[0].split(lengths), batch.labels[0].split(lengths)
        for example in map(TrainedExample, batch.utterance_ids, inputs, labels):
            found.setdefault(example.id, example)
        seen += len(lengths)
        step += 1
    return list(found.values())[:count]


def regenerate(model: Generator, layout: Layout, examples: Sequence[TrainedExample]) -> list[Regenerated]:
    """Speak examples again, always the most likely id first, and compare with what was trained.

    Of a Realtime conversation the assistant's first turn is spoken.

    Args:
        model: In eval mode.
        layout: The model's.
        examples: Laid out by it, with all codebooks.
    """
    results = []
    for start in range(0, len(examples), BATCH_SIZE):
        group = examples[start : start + BATCH_SIZE]
        true = [true_codes(example.labels, layout.codebook_size) for example in group]
        budgets = [len(codes) + EXTRA_FRAMES for codes in true]
        prompts = [_prompt(model, layout, example) for example in group]
        made = generate(model, prompts, [0] * len(group), greedy(max(budgets)), max_frames=budgets)
        for example, codes, generated in zip(group, true, made, strict=True):
            blocks = [segment.codes[segment.num_given :].cpu() for segment in generated.segments]
            spoken = torch.cat(blocks) if blocks else codes[:0]
            right, total = right_codes(spoken, codes)
            results.append(
                Regenerated(
                    id=example.id,
                    right=right,
                    total=total,
                    frames=len(spoken),
                    true_frames=len(codes),
                    stop_reason=generated.stop_reason.value,
                )
            )
    return results


def greedy(max_frames: int) -> GenerationConfig:
    """Always the most likely id, without a penalty or a guard."""
    always = SamplerConfig(temperature=0.0)
    return GenerationConfig(text=always, audio=always, max_frames=max_frames, runaway_repeats=0)


def true_codes(labels: Tensor, codebook_size: int) -> Tensor:
    """The codes of the first assistant turn that labels hold, delayed or not.

    Args:
        labels: Shape (positions, channels).
        codebook_size: A mark beyond the codes ends the turn.

    Returns:
        Shape (frames, codebooks).
    """
    ends = (labels[:, 1] >= codebook_size).nonzero()
    turn = labels[: int(ends[0])] if len(ends) else labels
    # A codebook's targets stand in the order of frames, however far it is delayed.
    return torch.stack([column[column != IGNORE_LABEL] for column in turn[:, 1:].T], dim=1)


def right_codes(spoken: Tensor, true: Tensor) -> tuple[int, int]:
    """Codes that agree, and how many there are to agree on.

    Args:
        spoken: Shape (frames, codebooks).
        true: Shape (other frames, codebooks).
    """
    shared = min(len(spoken), len(true))
    right = int((spoken[:shared] == true[:shared]).sum())
    return right, max(len(spoken), len(true)) * true.shape[1]


def write_regeneration(folder: Path, model: Generator, layout: Layout, examples: Sequence[TrainedExample]) -> None:
    """Regenerate, log a line a clip and the mean, and write `regeneration.json` into the run folder."""
    results = regenerate(model, layout, examples)
    width = max(len(result.id) for result in results)
    for result in results:
        logger.info(
            "regenerated %-*s  %6.2f%% of %d codes right, %d of %d frames, stop %s",
            width,
            result.id,
            100 * result.right / result.total,
            result.total,
            result.frames,
            result.true_frames,
            result.stop_reason,
        )
    frac = sum(result.right for result in results) / sum(result.total for result in results)
    logger.info("regenerated %d clips: %.2f%% of codes right", len(results), 100 * frac)
    record = {"right_frac": frac, "clips": [dataclasses.asdict(result) for result in results]}
    with atomic_write(folder / REGENERATION_FILE) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _prompt(model: Generator, layout: Layout, example: TrainedExample) -> Tensor | RealtimePrompt:
    """What precedes the first target; for Realtime the text is taken out again."""
    first = int((example.labels != IGNORE_LABEL).any(dim=1).nonzero()[0])
    if not isinstance(model, RealtimeModel):
        return example.inputs[: first + 1]
    assert isinstance(layout, RealtimeLayout)
    special = model.config.special_tokens
    ids = example.inputs[:, 0]
    header = len(layout.open_turn_rows("assistant", first=True))
    start = int((ids[: first + 1] == special.im_start).nonzero()[-1]) + header
    after = ((ids[start:] == special.text_pad) | (ids[start:] == special.im_end)).nonzero()
    text = ids[start : start + int(after[0])] if len(after) else ids[start:]
    return RealtimePrompt(rows=example.inputs[:start], text_ids=text.tolist())
