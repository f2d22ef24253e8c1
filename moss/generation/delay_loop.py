"""The decode loop of MossTTSDelay: a small state machine on the text channel steers which codebooks are drawn.

The state of every request lives on the host: the text id of a step must come there anyway to see whether it ends, and
knowing it, heads that cannot matter are not computed.
Source: MOSS-TTS moss_tts_delay/modeling_moss_tts.py:393-526 @58b20a0.
Differs: unless `compatibility=reference`, an audio block closes with N - 1 delay slots as in training (the published
loop emits N and draws one frame that no training example has), and the repetition penalty has one history per
sample and codebook (the published loop pools samples and codebooks).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from moss.config.generation import Compatibility, GenerationConfig
from moss.errors import GenerationError
from moss.generation.delay_codes import audio_segments
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
from moss.generation.sampling import ChannelSampler, SeenCodes, Uniforms, sample
from moss.generation.segments import first_frames
from moss.model.decoder import BackboneDecoder
from moss.model.delay import DelayModel
from moss.sequence.layout import left_pad
from moss.spec import SpecialTokens


def new_positions(num_frames: int, num_codebooks: int) -> int:
    """Positions of an assistant's turn: start, slots, delay slots, end, end of turn."""
    return num_frames + num_codebooks + 2


@dataclass(slots=True)
class _Turn:
    """One request's place in the state machine.

    Attributes:
        index: Of the request.
        special: Control ids.
        num_codebooks: N.
        reference: Close a block with one delay slot more, as published.
        in_audio: Between the start and the end of a block.
        audio_rows: Rows of the open block so far, its start included.
        delay_rows: Delay slots of the closing block so far; None while it is not closing.
        given: Leading frames of the open block that the prompt holds.
        rows: New rows.
        frames: New frames that are complete.
        stop: Why it ended, once it has.
    """

    index: int
    special: SpecialTokens
    num_codebooks: int
    reference: bool
    in_audio: bool
    audio_rows: int
    given: int
    delay_rows: int | None = None
    rows: int = 0
    frames: int = 0
    stop: StopReason | None = None

    def forced(self) -> int | None:
        """The next text id where the state leaves no choice."""
        if self.delay_rows is None:
            return None
        return self.special.audio_end if self.delay_rows == self.num_codebooks else self.special.delay_slot

    def advance(self, text: int) -> range:
        """Take the next text id; returns the codebooks that have a code in its row."""
        special = self.special
        began = self.delay_rows is None and text == special.delay_slot
        # In training the first delay slot has no code in codebook 0; the published loop still draws one there.
        passed = 1 if began and not self.reference else self.delay_rows or 0
        drawn = range(passed, min(self.audio_rows, self.num_codebooks))
        if text == special.audio_end:
            self.in_audio, self.audio_rows, self.given, drawn = False, 0, 0, range(0)
        elif text == special.audio_start:
            self.in_audio = True
        if text in (special.audio_start, special.gen_slot, special.delay_slot):
            self.audio_rows += 1
        if began:
            self.delay_rows = 0 if self.reference else 1
        if self.delay_rows is not None:
            self.delay_rows += 1
            if self.delay_rows > self.num_codebooks:
                self.delay_rows = None
        if text == special.im_end:
            self.stop = StopReason.end
        return drawn

    def completes(self, drawn: range) -> bool:
        """Whether the row just taken completes a new frame: its last codebook has a code, and the frame is no given."""
        frame = self.audio_rows - 1 - self.num_codebooks
        return drawn.stop == self.num_codebooks and len(drawn) > 0 and frame >= self.given

    @property
    def closed(self) -> bool:
        """Every frame of a closing block is complete, and its end is next."""
        return self.delay_rows == self.num_codebooks


class _Batch:
    """The requests of one call that are still being decoded, row after row."""

    def __init__(
        self,
        model: DelayModel,
        prompts: Sequence[Tensor],
        seeds: Sequence[int],
        config: GenerationConfig,
        budgets: Sequence[int],
        limit: int,
    ) -> None:
        """Lay the prompts out; `limit` is the most new rows of any request, `budgets` the most frames of each."""
        self.model, self.config, self.budgets = model, config, budgets
        self.device = model.backbone.norm.weight.device
        special, self.num_codebooks = model.config.special_tokens, model.config.num_codebooks
        self.size = model.config.codebook_size
        self.reference = config.compatibility is Compatibility.reference
        pad_row = torch.tensor([special.pad] + [self.size] * self.num_codebooks)
        self.prompt, self.mask = (tensor.to(self.device) for tensor in left_pad(list(prompts), pad_row))
        self.first = [self._first_row(prompt[:, 0], special) for prompt in prompts]
        self.turns = [self._turn(index, prompt, special) for index, prompt in enumerate(prompts)]
        self.rows = torch.empty(len(prompts), limit, 1 + self.num_codebooks, dtype=torch.long, device=self.device)
        self.active = list(self.turns)
        self.chosen = torch.arange(len(prompts), device=self.device)
        samplers = codebook_samplers(config, self.num_codebooks)
        self.sampler = ChannelSampler(samplers, self.device)
        self.uniforms = Uniforms(seed_tensor(seeds, self.device), 1 + self.num_codebooks, [config.text, *samplers])
        self.seen = self._seen() if self.sampler.penalised else None
        # With a single codebook nothing is delayed, so an audio block closes with its end token straight away.
        closing = special.delay_slot if self.num_codebooks > 1 else special.audio_end
        self.slot, ends = _known(special.gen_slot), [_known(special.delay_slot), _known(special.audio_end)]
        self.inside = sorted([self.slot, _known(closing)])
        self.slot_weight = model.head_weight(0)[self.inside]
        outside = [special.pad, self.slot, *ends]
        self.illegal = torch.tensor(outside, device=self.device)
        self.illegal_at_first = torch.tensor([*outside, special.im_end], device=self.device)

    def decoder(self) -> BackboneDecoder:
        """Room for the prompts and all new rows."""
        return BackboneDecoder(
            self.model.backbone,
            len(self.prompt),
            self.prompt.shape[1] + self.rows.shape[1],
            attention=self.config.attention,
            offload=self.config.offload,
            device=self.device,
        )

    def next_rows(self, hidden: Tensor, step: int) -> tuple[Tensor, list[range]]:
        """Draw one row for every request, shape (batch, channels), and say which codebooks it holds for each."""
        uniform = self.uniforms.at(step)
        text = self._text(hidden, uniform[:, 0], step)
        drawn = [turn.advance(token) for turn, token in zip(self.active, text, strict=True)]
        codes = self._codes(hidden, uniform[:, 1:], drawn)
        if self.seen is not None:
            frames = codes.unsqueeze(1)
            self.seen.add(frames.transpose(0, 1) if self.reference else frames)
        row = torch.cat([torch.tensor(text, device=self.device).unsqueeze(1), codes], dim=1)
        self.rows[self.chosen, step] = row
        return row, drawn

    def keep(self) -> Tensor | None:
        """Drop the requests that have ended; the indices of the others in the batch as it was, or None for all."""
        places = [place for place, turn in enumerate(self.active) if turn.stop is None]
        if len(places) == len(self.active):
            return None
        self.active = [self.active[place] for place in places]
        kept = torch.tensor(places, dtype=torch.long, device=self.device)
        self.chosen = self.chosen[kept]
        self.uniforms.keep(kept)
        if self.seen is not None and not self.reference:
            self.seen.keep(kept)
        return kept

    def _text(self, hidden: Tensor, uniform: Tensor, step: int) -> list[int]:
        """The text channel: forced while an audio block closes, drawn among the legal ids otherwise."""
        forced = [turn.forced() for turn in self.active]
        text = [0 if token is None else token for token in forced]
        for in_audio in (True, False):
            places = [
                place for place, turn in enumerate(self.active) if forced[place] is None and turn.in_audio is in_audio
            ]
            if not places:
                continue
            if len(places) == len(text):
                states, numbers = hidden, uniform
            else:
                states, numbers = hidden[places], uniform[places]
            tokens = self._slots(states, numbers, step) if in_audio else self._words(states, numbers, step)
            for place, token in zip(places, tokens, strict=True):
                text[place] = token
        return text

    def _slots(self, hidden: Tensor, uniform: Tensor, step: int) -> list[int]:
        """Inside audio: one frame more, or close."""
        if step == 0:
            return [self.slot] * len(hidden)
        logits = functional.linear(hidden, self.slot_weight).float()
        return [self.inside[choice] for choice in sample(logits, self.config.text, uniform).tolist()]

    def _words(self, hidden: Tensor, uniform: Tensor, step: int) -> list[int]:
        """Outside audio: anything but what belongs inside; the turn cannot end before a frame could be complete."""
        illegal = self.illegal_at_first if step <= self.num_codebooks else self.illegal
        logits = self.model.channel_logits(hidden, 0).float().index_fill_(1, illegal, float("-inf"))
        tokens: list[int] = sample(logits, self.config.text, uniform).tolist()
        return tokens

    def _codes(self, hidden: Tensor, uniform: Tensor, drawn: Sequence[range]) -> Tensor:
        """A code for every codebook of the row, the pad code where there is none, shape (batch, codebooks)."""
        some = [codebooks for codebooks in drawn if len(codebooks)]
        if not some:
            return torch.full((len(hidden), self.num_codebooks), self.size, device=self.device)
        start, end = min(codebooks.start for codebooks in some), max(codebooks.stop for codebooks in some)
        logits = self.model.code_logits(hidden)[:, start:end].float()
        seen = None if self.seen is None else self._penalised(self.seen.mask)[:, start:end]
        codes = self.sampler.sample(logits, uniform[:, start:end], seen, start)
        if len(codes[0]) < self.num_codebooks:
            codes = functional.pad(codes, (start, self.num_codebooks - end), value=self.size)
        if any(codebooks != range(start, end) for codebooks in drawn):
            held = [[k in codebooks for k in range(self.num_codebooks)] for codebooks in drawn]
            codes = torch.where(torch.tensor(held, device=self.device), codes, self.size)
        return codes

    def _seen(self) -> SeenCodes:
        codes = self.prompt[..., 1:]
        if not self.reference:
            return SeenCodes(codes, self.size, self.sampler.windows, self.mask)
        # The published loop pools all samples, those that have ended included, and knows no window.
        return SeenCodes(codes.reshape(1, -1, self.num_codebooks), self.size, [0] * self.num_codebooks)

    def _penalised(self, seen: Tensor) -> Tensor:
        """The published history: codebook 0 over all samples; the others over all samples and each other."""
        if not self.reference:
            return seen
        return torch.cat([seen[:, :1], seen[:, 1:].any(1, keepdim=True).expand(-1, seen.shape[1] - 1, -1)], dim=1)

    def _first_row(self, text: Tensor, special: SpecialTokens) -> int:
        """Where the assistant's turn begins in a prompt."""
        if self.reference:
            # As published: <|im_start|>, one id for the role and one for its newline.
            return int((text == special.im_start).nonzero()[-1]) + 3
        start = _open_start(text, special)
        return len(text) if start is None else start

    def _turn(self, index: int, prompt: Tensor, special: SpecialTokens) -> _Turn:
        start = _open_start(prompt[:, 0], special)
        rows = 0 if start is None else len(prompt) - start
        # Published: the start counts as a given frame.
        given = len(prompt) - self.first[index] if self.reference else max(0, rows - 1)
        return _Turn(index, special, self.num_codebooks, self.reference, start is not None, rows, given)


def _known(token: int | None) -> int:
    """An id that every Delay model has."""
    assert token is not None
    return token


def _open_start(text: Tensor, special: SpecialTokens) -> int | None:
    """The start of the audio block that a prompt ends inside of; None when it ends outside."""
    starts = (text == _known(special.audio_start)).nonzero()
    if len(starts) == 0 or int(text[-1]) not in (special.audio_start, special.gen_slot):
        return None
    return int(starts[-1])


@torch.inference_mode()
def generate_delay(
    model: DelayModel,
    prompts: Sequence[Tensor],
    seeds: Sequence[int],
    config: GenerationConfig,
    *,
    max_frames: Sequence[int] | None = None,
    on_frames: OnFrames | None = None,
    should_stop: ShouldStop | None = None,
    max_rows: int | None = None,
) -> list[Generated]:
    """Decode a batch of prompts; see `loop.generate`.

    Args:
        model: In eval mode.
        prompts: Positions of each request, shape (positions, channels), generation or continuation mode.
        seeds: Seed of each request's own draws.
        config: Samplers, limits, compatibility, kernels.
        max_frames: Most new frames of each request; None takes `config.max_frames`.
        on_frames: Called as soon as a frame is complete, which is N - 1 rows after its first code.
        should_stop: Asked before each row.
        max_rows: Most new rows, as the published loop counts, in place of the limit in frames.

    Raises:
        GenerationError: A prompt and its frames overrun the model, or a setting that the model does not have.
    """
    num_codebooks = model.config.num_codebooks
    if config.num_codebooks not in (None, num_codebooks):
        raise GenerationError(
            f"num_codebooks={config.num_codebooks}: a Delay model speaks all its {num_codebooks} codebooks at once; "
            "leave it out"
        )
    budgets = frame_budgets(config, max_frames, len(prompts))
    limits = [max_rows or new_positions(budget, num_codebooks) for budget in budgets]
    check_room(prompts, limits, model.config.max_positions)
    model.fuse_()
    batch = _Batch(model, prompts, seeds, config, budgets, max(limits))
    decoder = batch.decoder()
    hidden = decoder.extend(model.embed(batch.prompt), batch.mask)[:, -1]
    for step in range(max(limits)):
        if should_stop is not None and should_stop():
            break
        row, drawn = batch.next_rows(hidden, step)
        for turn, codebooks in zip(batch.active, drawn, strict=True):
            turn.rows += 1
            if turn.completes(codebooks):
                turn.frames += 1
                if on_frames is not None and turn.frames <= budgets[turn.index]:
                    on_frames(turn.index, _frame(batch.rows[turn.index, : step + 1, 1:]))
        _stop_early(batch, limits, max_rows is None)
        kept = batch.keep()
        if not batch.active:
            break
        if kept is not None:
            decoder.keep(kept)
            row = row[kept]
        hidden = decoder.extend(model.embed(row.unsqueeze(1)))[:, 0]
    return [_result(batch, prompt, turn, max_rows is None) for prompt, turn in zip(prompts, batch.turns, strict=True)]


def _frame(codes: Tensor) -> Tensor:
    """The frame that the last row completes, shape (1, codebooks)."""
    return codes[-codes.shape[1] :].diagonal().clone().unsqueeze(0)


def _stop_early(batch: _Batch, limits: Sequence[int], limited: bool) -> None:
    """Stop requests that have had their rows, or their frames where these are limited, or only repeat themselves."""
    repeats, done = batch.config.runaway_repeats, batch.active[0].rows
    due = 0 < repeats <= done and done % RUNAWAY_CHECK_STEPS == 0
    recent = batch.rows[:, max(0, done - repeats) : done, 1:].cpu() if due else None
    for turn in batch.active:
        if turn.stop is not None:
            continue
        # One whose block is complete, or without delay might be, may end by itself.
        may_end = turn.closed or not turn.in_audio or batch.num_codebooks == 1
        left = batch.budgets[turn.index] - turn.frames
        if done >= limits[turn.index] or (limited and (left < 0 or (left == 0 and not may_end))):
            turn.stop = StopReason.max_frames
        elif recent is not None and turn.audio_rows >= repeats + batch.num_codebooks:
            turn.stop = StopReason.runaway if is_runaway(recent[turn.index], repeats) else None


def _result(batch: _Batch, prompt: Tensor, turn: _Turn, limited: bool) -> Generated:
    """The assistant's turn of a request and its audio, cut to its frames where they are limited."""
    first = batch.first[turn.index]
    rows = torch.cat([prompt[first:], batch.rows[turn.index, : turn.rows].cpu()])
    num_given = len(prompt) - first
    segments = audio_segments(rows, num_given, batch.size, batch.config.compatibility)
    if limited:
        segments = first_frames(segments, batch.budgets[turn.index])
    return Generated(segments=segments, stop_reason=turn.stop or StopReason.cancelled, rows=rows, num_given=num_given)
