"""The decode loop of MossTTSLocal, v1 and v1.5: one backbone position a frame, the frame itself spoken in depth.

Source: MOSS-TTS moss_tts_local/modeling_moss_tts.py:316-478, moss_tts_local_v1.5/modeling_moss_tts.py:463-600
@58b20a0.
Differs, unless `compatibility=reference`: the row that ends a v1 turn carries no codes (the published loop draws a
frame there that no training example has, and decodes it); the v1 text channel chooses between going on and ending
(published: among the whole vocabulary, of which training shows only these two there); speaking fewer codebooks gives
codes of that width (published: the others are filled with 0); greedy decoding heeds the repetition penalty (published
v1: it does not); v1.5 penalises what it carries on as well as what it has generated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moss.config.generation import Compatibility, GenerationConfig
from moss.config.model import LocalModelConfig
from moss.errors import GenerationError
from moss.generation.loop import (
    RUNAWAY_CHECK_STEPS,
    Generated,
    OnFrames,
    ShouldStop,
    StopReason,
    check_room,
    codebook_samplers,
    frame_budgets,
    seed_tensor,
)
from moss.generation.runaway import is_runaway
from moss.generation.sampling import SeenCodes, Uniforms, sample
from moss.generation.segments import AudioSegment
from moss.model.decoder import BackboneDecoder
from moss.model.interface import Frame
from moss.model.local import LocalModel
from moss.model.local_v15 import LocalV15Model
from moss.sequence.layout import left_pad

_GO, _END = 0, 1
"""The two choices of the text channel, as the v1.5 stop head numbers them."""


@dataclass(slots=True)
class _Turn:
    """What became of one request so far: its new rows, how many of them are frames, and why it ended."""

    index: int
    budget: int
    rows: int = 0
    frames: int = 0
    stop: StopReason | None = None


class _Batch:
    """The requests of one call that are still being decoded, frame after frame."""

    def __init__(
        self,
        model: LocalModel | LocalV15Model,
        prompts: Sequence[Tensor],
        seeds: Sequence[int],
        config: GenerationConfig,
        budgets: Sequence[int],
    ) -> None:
        """Lay the prompts out.

        Raises:
            GenerationError: More codebooks than the model has, or a prompt without the start of audio.
        """
        self.model, self.config = model, config
        self.device = model.backbone.norm.weight.device
        self.reference = config.compatibility is Compatibility.reference
        self.first_version = isinstance(model.config, LocalModelConfig)
        self.garbage = self.reference and self.first_version
        special, size, width = model.config.special_tokens, model.config.codebook_size, model.config.num_codebooks
        self.size, self.num_codebooks = size, config.num_codebooks or width
        if self.num_codebooks > width:
            raise GenerationError(
                f"num_codebooks={config.num_codebooks}: the model has {width}; ask for at most that many"
            )
        assert special.gen_slot is not None
        assert special.audio_end is not None
        self.slot, self.end = special.gen_slot, special.audio_end
        # Published: the codebooks that are not spoken are filled with 0.
        self.width = width if self.reference else self.num_codebooks
        self.starts = [_start(prompt[:, 0], special.audio_start, index) for index, prompt in enumerate(prompts)]
        pad_row = torch.tensor([special.pad] + [size] * width)
        self.prompt, self.mask = (tensor.to(self.device) for tensor in left_pad(list(prompts), pad_row))
        self.turns = [_Turn(index, budget) for index, budget in enumerate(budgets)]
        self.rows = torch.full((len(prompts), max(budgets) + 1, 1 + self.width), size, device=self.device)
        self.rows[..., 0] = self.end
        if self.reference:
            self.rows[..., 1 + self.num_codebooks :] = 0
        self.active = list(self.turns)
        self.chosen = torch.arange(len(prompts), device=self.device)
        self.samplers = codebook_samplers(config, self.num_codebooks)
        self.uniforms = Uniforms(seed_tensor(seeds, self.device), 1 + self.num_codebooks, [config.text, *self.samplers])
        greedy = all(sampler.temperature <= 0 for sampler in self.samplers)
        penalised = any(sampler.repetition_penalty != 1.0 for sampler in self.samplers)
        self.seen = self._seen() if penalised and not (self.garbage and greedy) else None
        self.candidates = torch.tensor([self.slot, self.end], device=self.device)

    def speak(self, hidden: Tensor, step: int) -> Tensor | None:
        """One frame for every request: its text id and codes, shape (batch, 1 + codebooks); None if all have ended."""
        uniform = self.uniforms.at(step)
        frame, text, chosen = self._choose(hidden, uniform[:, 0])
        choices: list[int] = chosen.tolist()
        for turn, choice in zip(self.active, choices, strict=True):
            self._take(turn, choice)
        held = [place for place, turn in enumerate(self.active) if self.holds_codes(turn)]
        if not held:
            return None
        frame.feed(0, text if self.first_version else chosen)
        codes = []
        for codebook, sampler in enumerate(self.samplers):
            logits = frame.logits(codebook + 1)[:, : self.size].float()
            history = None if self.seen is None else self.seen.mask[:, codebook]
            ids = sample(logits, sampler, uniform[:, codebook + 1], history)
            frame.feed(codebook + 1, ids)
            codes.append(ids)
        row = torch.stack([text, *codes], dim=1)
        places, new = (self.chosen, row) if len(held) == len(row) else (self.chosen[held], row[held])
        self.rows[places, step, : 1 + self.num_codebooks] = new
        if self.seen is not None:
            self.seen.add(row[:, None, 1:])
        return row

    def holds_codes(self, turn: _Turn) -> bool:
        """Whether the row just taken is a frame; published, the row that ends a v1 turn is one too."""
        return turn.stop is None or (self.garbage and turn.stop is StopReason.end)

    def keep(self) -> Tensor | None:
        """Drop the requests that have ended; the indices of the others in the batch as it was, or None for all."""
        places = [place for place, turn in enumerate(self.active) if turn.stop is None]
        if len(places) == len(self.active):
            return None
        self.active = [self.active[place] for place in places]
        kept = torch.tensor(places, dtype=torch.long, device=self.device)
        self.chosen = self.chosen[kept]
        self.uniforms.keep(kept)
        if self.seen is not None:
            self.seen.keep(kept)
        return kept

    def _choose(self, hidden: Tensor, uniform: Tensor) -> tuple[Frame, Tensor, Tensor]:
        """Start the frame, draw its text id and say which choice that is."""
        if not isinstance(self.model, LocalModel):
            frame = self.model.begin_frame(hidden, self.num_codebooks)
            choice = sample(frame.logits(0).float(), self.config.text, uniform)
            return frame, torch.full_like(choice, self.slot), choice
        if self.reference:
            frame = self.model.begin_frame(hidden, self.num_codebooks)
            text = sample(frame.logits(0).float(), self.config.text, uniform)
            return frame, text, (text == self.end).long()
        frame = self.model.begin_frame(hidden, self.num_codebooks, text_ids=[self.slot, self.end])
        choice = sample(frame.logits(0).float(), self.config.text, uniform)
        return frame, self.candidates[choice], choice

    def _take(self, turn: _Turn, choice: int) -> None:
        """Count a frame or an end."""
        if self.reference and turn.rows == turn.budget:
            turn.stop = StopReason.max_frames
        elif choice == _END:
            turn.stop = StopReason.end
            # Only v1 writes a row for its end.
            turn.rows += self.first_version
        elif turn.frames == turn.budget:
            turn.stop = StopReason.max_frames
        else:
            turn.rows += 1
            turn.frames += 1

    def _seen(self) -> SeenCodes:
        """Histories of the penalty: all of v1's prompt, and of v1.5's what is carried on."""
        codes, mask = self.prompt[..., 1 : 1 + self.num_codebooks], self.mask
        if not self.first_version:
            places = torch.arange(codes.shape[1], device=self.device)
            turns = torch.tensor([codes.shape[1] - held for held in self._held()], device=self.device)
            # Published: generated frames only.
            mask = torch.zeros_like(mask) if self.reference else places >= turns.unsqueeze(1)
        return SeenCodes(codes, self.size, [sampler.penalty_window for sampler in self.samplers], mask)

    def _held(self) -> list[int]:
        """Rows of each turn that stand in its prompt."""
        return [int(self.mask[index].sum()) - start for index, start in enumerate(self.starts)]


def _start(text: Tensor, audio_start: int | None, index: int) -> int:
    """Where the assistant's turn begins: the last start of audio."""
    starts = (text == torch.tensor(audio_start)).nonzero()
    if len(starts) == 0:
        raise GenerationError(
            f"request {index}: the prompt has no start of audio (id {audio_start}); lay it out with the model's own "
            "layout, whose generation prompt ends with it"
        )
    return int(starts[-1])


@torch.inference_mode()
def generate_local(
    model: LocalModel | LocalV15Model,
    prompts: Sequence[Tensor],
    seeds: Sequence[int],
    config: GenerationConfig,
    *,
    max_frames: Sequence[int] | None = None,
    on_frames: OnFrames | None = None,
    should_stop: ShouldStop | None = None,
) -> list[Generated]:
    """Decode a batch of prompts; see `loop.generate`.

    Args:
        model: In eval mode.
        prompts: Positions of each request, shape (positions, channels), ending inside its audio block.
        seeds: Seed of each request's own draws.
        config: Samplers, limits, compatibility, kernels; `num_codebooks` speaks only the first so many.
        max_frames: Most new frames of each request; None takes `config.max_frames`.
        on_frames: Called with every frame.
        should_stop: Asked before each frame.

    Raises:
        GenerationError: A prompt and its frames overrun the model, or a setting that the model does not have.
    """
    budgets = frame_budgets(config, max_frames, len(prompts))
    check_room(prompts, [budget + 1 for budget in budgets], model.config.max_positions)
    model.fuse_()
    batch = _Batch(model, prompts, seeds, config, budgets)
    decoder = BackboneDecoder(
        model.backbone,
        len(prompts),
        batch.prompt.shape[1] + max(budgets),
        attention=config.attention,
        offload=config.offload,
        device=batch.device,
    )
    hidden = decoder.extend(model.embed(batch.prompt, batch.num_codebooks), batch.mask)[:, -1]
    for step in range(max(budgets) + 1):
        if should_stop is not None and should_stop():
            break
        row = batch.speak(hidden, step)
        if row is None:
            break
        if on_frames is not None:
            for place, turn in enumerate(batch.active):
                if batch.holds_codes(turn):
                    on_frames(turn.index, row[place : place + 1, 1:])
        _stop_runaways(batch, step + 1)
        kept = batch.keep()
        if not batch.active:
            break
        if kept is not None:
            decoder.keep(kept)
            row = row[kept]
        hidden = decoder.extend(model.embed(row.unsqueeze(1), batch.num_codebooks))[:, 0]
    return [_result(batch, prompt, turn) for prompt, turn in zip(prompts, batch.turns, strict=True)]


def _stop_runaways(batch: _Batch, done: int) -> None:
    """Stop requests that only repeat themselves."""
    repeats = batch.config.runaway_repeats
    if not 0 < repeats <= done or done % RUNAWAY_CHECK_STEPS:
        return
    recent = batch.rows[:, done - repeats : done, 1:].cpu()
    for turn in batch.active:
        if turn.stop is None and is_runaway(recent[turn.index], repeats):
            turn.stop = StopReason.runaway


def _result(batch: _Batch, prompt: Tensor, turn: _Turn) -> Generated:
    """The assistant's turn of a request and its audio."""
    given = prompt[batch.starts[turn.index] :, : 1 + batch.width]
    rows = torch.cat([given, batch.rows[turn.index, : turn.rows].cpu()])
    # The start of audio is no frame; the published loop takes the row that ends v1's turn for one.
    end = turn.rows if batch.garbage else turn.frames
    codes = rows[1 : len(given) + end, 1:]
    segments = [AudioSegment(codes, len(given) - 1)] if end else []
    return Generated(segments=segments, stop_reason=turn.stop or StopReason.cancelled, rows=rows, num_given=len(given))
