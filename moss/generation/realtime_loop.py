"""The decode loop of MossTTSRealtime: text is given, each step adds a text token and the frame spoken before.

The first `text_lead` text tokens stand before the first frame; frame k is drawn when `text_lead` + k of them are known
or the text has ended.
Source: MOSS-TTS moss_tts_realtime/inferencer.py, mossttsrealtime/streaming_mossttsrealtime.py @58b20a0.
Differs: unless `compatibility=reference`, codes that no training frame holds cannot be drawn (the published loop may
draw pads and turn marks in any codebook and its callers cut there), and a finished turn is closed in the context with
its end mark and what is left of its text, as in training (the published session drops both).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moss.config.generation import Compatibility, GenerationConfig
from moss.config.model import RealtimeModelConfig
from moss.errors import GenerationError
from moss.generation.loop import (
    Generated,
    OnFrames,
    ShouldStop,
    StopReason,
    codebook_samplers,
    frame_budgets,
    seed_tensor,
)
from moss.generation.runaway import is_runaway
from moss.generation.sampling import SeenCodes, sample, uniforms
from moss.generation.segments import AudioSegment
from moss.model.decoder import BackboneDecoder
from moss.model.realtime import RealtimeModel
from moss.sequence.layout import left_pad

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RealtimePrompt:
    """One turn to speak.

    Attributes:
        rows: Everything before the text: system block, voice, earlier turns, the opened assistant's turn; shape
            (positions, channels).
        text_ids: Text tokens of the turn, at least one.
    """

    rows: Tensor
    text_ids: Sequence[int]


def lead_rows(config: RealtimeModelConfig, text_ids: Sequence[int]) -> Tensor:
    """Positions between a turn's header and its first frame, shape (min(tokens, text_lead), channels)."""
    assert len(text_ids) > 0, "a turn without text has no place for its begin mark"
    ids = list(text_ids[: config.text_lead])
    rows = torch.full((len(ids), 1 + config.num_codebooks), config.codebook_size, dtype=torch.long)
    rows[:, 0] = torch.tensor(ids, dtype=torch.long)
    rows[-1, 1] = config.bos_code
    return rows


def text_beside(config: RealtimeModelConfig, text_ids: Sequence[int], frame: int) -> int:
    """The text token that shares a position with a frame; the text pad once the text is spent."""
    index = min(len(text_ids), config.text_lead) + frame
    return text_ids[index] if index < len(text_ids) else config.text_pad_token_id


def spoken_rows(config: RealtimeModelConfig, text_ids: Sequence[int], frames: Tensor) -> Tensor:
    """Positions of a spoken turn behind its header as training lays them out, shape (positions, channels).

    Args:
        config: Ids.
        text_ids: At least one.
        frames: Codes, shape (frames, codebooks).
    """
    lead = lead_rows(config, text_ids)
    rest = max(len(text_ids) - len(lead), len(frames) + 1)
    rows = torch.full((rest, 1 + config.num_codebooks), config.codebook_size, dtype=torch.long)
    rows[:, 0] = torch.tensor([text_beside(config, text_ids, index) for index in range(rest)])
    rows[: len(frames), 1:] = frames
    rows[len(frames), 1] = config.eos_code
    return torch.cat([lead, rows])


def prefill_batch(config: RealtimeModelConfig, prompts: Sequence[RealtimePrompt]) -> tuple[Tensor, Tensor]:
    """What the backbone reads before the first frame, padded in front.

    Returns:
        Positions (batch, positions, channels), and a bool mask (batch, positions), False where padded.
    """
    padding = torch.tensor([config.pad_token_id] + [config.codebook_size] * config.num_codebooks)
    return left_pad([torch.cat([p.rows, lead_rows(config, p.text_ids)]) for p in prompts], padding)


class FrameSampler:
    """Draws frame after frame of a batch and remembers them for the repetition penalty.

    Args:
        model: In eval mode.
        config: Sampler of the codebooks and compatibility.
        seeds: One for each sample; a draw depends on the sample's seed, the frame's number and the codebook alone.

    Raises:
        GenerationError: The settings do not fit the model.
    """

    def __init__(self, model: RealtimeModel, config: GenerationConfig, seeds: Sequence[int]) -> None:
        self._model, self._reference = model, config.compatibility is Compatibility.reference
        count = model.config.num_codebooks
        if config.num_codebooks not in (None, count):
            raise GenerationError(
                f"num_codebooks: this model speaks all of its {count} codebooks, got {config.num_codebooks}; leave it "
                "out (fewer codebooks are a choice of Local models only)"
            )
        self._samplers = codebook_samplers(config, count)
        device = next(model.parameters()).device
        self._seeds = seed_tensor(seeds, device)
        self._step = 0
        self._seen: SeenCodes | None = None
        if any(sampler.repetition_penalty != 1.0 for sampler in self._samplers):
            nothing = torch.empty(len(seeds), 0, count, dtype=torch.long, device=device)
            windows = [sampler.penalty_window for sampler in self._samplers]
            self._seen = SeenCodes(nothing, model.config.eos_code + 1, windows)

    @torch.inference_mode()
    def draw(self, hidden: Tensor) -> Tensor:
        """The next frame.

        Args:
            hidden: Last hidden state of each sample, shape (batch, width).

        Returns:
            Codes (batch, codebooks); the end mark in codebook 0 ends a turn.
        """
        config = self._model.config
        uniform = uniforms(self._seeds, self._step, 1 + config.num_codebooks)
        seen = None if self._seen is None else self._seen.mask
        frame = self._model.begin_frame(hidden)
        codes = []
        for codebook, sampler in enumerate(self._samplers):
            logits = self._legal(frame.logits(codebook + 1), codebook)
            history = None if seen is None else seen[:, codebook, : logits.shape[-1]]
            ids = sample(logits.float(), sampler, uniform[:, codebook + 1], history)
            frame.feed(codebook + 1, ids)
            codes.append(ids)
        drawn = torch.stack(codes, dim=1)
        if not self._reference:
            ends = drawn[:, :1] == config.eos_code
            drawn[:, 1:] = drawn[:, 1:].masked_fill(ends, config.codebook_size)
        if self._seen is not None:
            self._seen.add(drawn.unsqueeze(1))
        self._step += 1
        return drawn

    def keep(self, rows: Tensor) -> None:
        """Go on with some samples of the batch only, given by their indices."""
        self._seeds = self._seeds[rows]
        if self._seen is not None:
            self._seen.keep(rows)

    def _legal(self, logits: Tensor, codebook: int) -> Tensor:
        """Logits of what may follow: codes, and in codebook 0 the end mark."""
        config = self._model.config
        if self._reference:
            return logits
        if codebook > 0:
            return logits[:, : config.codebook_size]
        logits = logits.clone()
        logits[:, config.codebook_size : config.eos_code] = float("-inf")
        return logits


@dataclass(slots=True)
class _Turn:
    """What became of one prompt so far."""

    text_ids: list[int]
    budget: int
    frames: list[Tensor] = field(default_factory=list)
    end: Tensor | None = None
    stop: StopReason | None = None


@torch.inference_mode()
def generate_realtime(
    model: RealtimeModel,
    prompts: Sequence[RealtimePrompt],
    seeds: Sequence[int],
    config: GenerationConfig,
    *,
    max_frames: Sequence[int] | None = None,
    on_frames: OnFrames | None = None,
    should_stop: ShouldStop | None = None,
) -> list[Generated]:
    """Speak a batch of turns whose whole text is known.

    Args:
        model: In eval mode.
        prompts: What to speak, after what.
        seeds: Seed of each prompt's own draws.
        config: Sampler of the codebooks, limits, compatibility.
        max_frames: Most frames of each prompt; None takes `config.max_frames` for all.
        on_frames: Called with a prompt's index and its newest codes (1, codebooks) as soon as they exist.
        should_stop: Asked before each frame; True ends every unfinished prompt as cancelled.

    Raises:
        GenerationError: A prompt without text, or one that overruns the model with its frames.
    """
    budgets = frame_budgets(config, max_frames, len(prompts))
    _check(model.config, prompts, budgets)
    device = next(model.parameters()).device
    rows, padding = (tensor.to(device) for tensor in prefill_batch(model.config, prompts))
    mask: Tensor | None = padding
    sampler = FrameSampler(model, config, seeds)
    decoder = BackboneDecoder(
        model.backbone,
        len(prompts),
        rows.shape[1] + max(budgets),
        attention=config.attention,
        offload=config.offload,
        device=device,
    )
    turns = [_Turn(list(prompt.text_ids), budget) for prompt, budget in zip(prompts, budgets, strict=True)]
    live = list(range(len(turns)))
    while True:
        if should_stop is not None and should_stop():
            for turn in turns:
                turn.stop = turn.stop or StopReason.cancelled
            break
        codes = sampler.draw(decoder.extend(model.embed(rows), mask)[:, -1])
        _advance(model.config, config, turns, live, codes.cpu(), on_frames)
        spoken = [row for row, index in enumerate(live) if turns[index].stop is None]
        if not spoken:
            break
        # A few stopped samples are fed on unseen; dropping them copies the buffers, so it pays by the half.
        if len(spoken) <= len(live) // 2:
            chosen = torch.tensor(spoken, dtype=torch.long, device=device)
            live, codes = [live[row] for row in spoken], codes[chosen]
            decoder.keep(chosen)
            sampler.keep(chosen)
        rows, mask = _next_rows(model.config, [turns[index] for index in live], codes)
    return [_result(model.config, turn) for turn in turns]


def _next_rows(config: RealtimeModelConfig, turns: Sequence[_Turn], codes: Tensor) -> tuple[Tensor, Tensor | None]:
    """The newest frames beside their text, (batch, 1, channels), and which samples still speak, None for all."""
    text = [text_beside(config, turn.text_ids, max(0, len(turn.frames) - 1)) for turn in turns]
    rows = torch.cat([torch.tensor(text, device=codes.device).unsqueeze(1), codes], dim=1).unsqueeze(1)
    if all(turn.stop is None for turn in turns):
        return rows, None
    return rows, torch.tensor([[turn.stop is None] for turn in turns], device=codes.device)


def _check(config: RealtimeModelConfig, prompts: Sequence[RealtimePrompt], budgets: Sequence[int]) -> None:
    for index, (prompt, budget) in enumerate(zip(prompts, budgets, strict=True)):
        if len(prompt.text_ids) == 0:
            raise GenerationError(f"prompt {index}: the text is empty; a turn needs at least one text token")
        length = len(prompt.rows) + min(len(prompt.text_ids), config.text_lead)
        if length + budget > config.max_positions:
            raise GenerationError(
                f"prompt {index}: {length} positions and {budget} frames overrun the model's {config.max_positions}; "
                "shorten the reference or the conversation, or lower max_frames"
            )


def _advance(
    model_config: RealtimeModelConfig,
    config: GenerationConfig,
    turns: Sequence[_Turn],
    live: Sequence[int],
    codes: Tensor,
    on_frames: OnFrames | None,
) -> None:
    """Give every unfinished turn its new frame and see whether it ends."""
    for frame, index in zip(codes, live, strict=True):
        turn = turns[index]
        if turn.stop is not None:
            continue
        if int(frame[0]) == model_config.eos_code:
            turn.end, turn.stop = frame, StopReason.end
            warn_unspoken(model_config, turn.text_ids, len(turn.frames))
            continue
        turn.frames.append(frame)
        if on_frames is not None:
            on_frames(index, frame.unsqueeze(0))
        turn.stop = stop_after(turn.frames, turn.budget, config)


def stop_after(frames: Sequence[Tensor], budget: int, config: GenerationConfig) -> StopReason | None:
    """Whether a turn must stop behind its newest frame although the model did not end it."""
    if is_runaway(frames, config.runaway_repeats):
        return StopReason.runaway
    return StopReason.max_frames if len(frames) >= budget else None


def warn_unspoken(config: RealtimeModelConfig, text_ids: Sequence[int], num_frames: int) -> int:
    """Log how many text tokens the model had not been given when it ended the turn, and return the number."""
    left = max(0, len(text_ids) - config.text_lead - num_frames)
    if left:
        logger.warning(
            "the model ended a turn after %d frames, %d of %d text tokens early; the words may be cut",
            num_frames,
            left,
            len(text_ids),
        )
    return left


def _result(config: RealtimeModelConfig, turn: _Turn) -> Generated:
    frames = torch.stack(turn.frames) if turn.frames else torch.empty(0, config.num_codebooks, dtype=torch.long)
    rows = spoken_rows(config, turn.text_ids, frames)
    lead = min(len(turn.text_ids), config.text_lead)
    rows = rows[: lead + len(frames) + (turn.end is not None)]
    if turn.end is not None:
        rows[-1, 1:] = turn.end
    # Only `compatibility=reference` can draw a code that is none; what follows it is not audio.
    illegal = (frames >= config.codebook_size).any(dim=1).nonzero()
    codes = frames[: int(illegal[0])] if len(illegal) else frames
    segments = [AudioSegment(codes, 0)] if len(codes) else []
    assert turn.stop is not None
    return Generated(segments=segments, stop_reason=turn.stop, rows=rows, num_given=0)
