"""The decode loop of MossTTSDelay: a small state machine on the text channel steers which codebooks are drawn.

Source: MOSS-TTS moss_tts_delay/modeling_moss_tts.py:393-526 @58b20a0.
Differs: unless `compatibility=reference`, an audio block closes with N - 1 delay slots as in training (the published
loop emits N and draws one frame that no training example has), and the repetition penalty has one history per
sample and codebook (the published loop pools samples and codebooks).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from moss.config.generation import Compatibility, GenerationConfig
from moss.errors import GenerationError
from moss.generation.sampling import sample
from moss.model.delay import DelayModel
from moss.sequence.layout import left_pad

_NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What the loop made of one prompt.

    Attributes:
        rows: Positions of the assistant's turn from its first row on, shape (positions, channels).
        num_given: How many of them stood in the prompt already (0 unless the prompt continues audio).
        ended: The model closed the turn itself; otherwise the budget of positions ran out.
    """

    rows: Tensor
    num_given: int
    ended: bool


class _State:
    """Per-sample bookkeeping of one batch."""

    def __init__(self, prompt: Tensor, mask: Tensor, model: DelayModel) -> None:
        special = model.config.special_tokens
        text = prompt[..., 0]
        self.positions = prompt.shape[1]
        last = text[:, -1]
        starts = torch.where(text == special.audio_start, torch.arange(self.positions, device=text.device), -1)
        last_start = starts.max(dim=1).values
        self.in_audio = ((last == special.audio_start) | (last == special.gen_slot)) & (last_start >= 0)
        self.audio_rows = torch.where(self.in_audio, self.positions - last_start, 0)
        self.delay_rows = torch.full_like(last, _NEVER)
        self.stopped = torch.zeros_like(self.in_audio)
        size = model.config.codebook_size
        codes = prompt[..., 1:]
        seen = torch.zeros(len(prompt), codes.shape[2], size + 1, dtype=torch.bool, device=prompt.device)
        valid = codes.masked_fill(~mask.unsqueeze(-1), size).transpose(1, 2)
        self.seen = seen.scatter(2, valid, True)


def new_positions(num_frames: int, num_codebooks: int) -> int:
    """Positions of an assistant's turn: start, slots, delay slots, end, end of turn."""
    return num_frames + num_codebooks + 2


@torch.inference_mode()
def generate_delay(
    model: DelayModel,
    prompts: Sequence[Tensor],
    seeds: Sequence[int],
    config: GenerationConfig,
    max_new_positions: int | None = None,
) -> list[Decoded]:
    """Decode a batch of prompts.

    Args:
        model: In eval mode.
        prompts: Positions of each request, shape (positions, channels), generation or continuation mode.
        seeds: Seed of each request's own random stream.
        config: Samplers and compatibility.
        max_new_positions: Budget; None allows `config.max_frames` frames and the rows that close them.

    Raises:
        GenerationError: A prompt and its budget overrun the model's longest sequence.
    """
    special, num_codebooks = model.config.special_tokens, model.config.num_codebooks
    budget = max_new_positions or new_positions(config.max_frames, num_codebooks)
    longest = max(len(prompt) for prompt in prompts)
    if longest + budget > model.config.max_positions:
        raise GenerationError(
            f"a prompt of {longest} positions and {budget} new ones overrun the model's {model.config.max_positions}; "
            "shorten the text or the reference, or lower max_frames"
        )
    device = next(model.parameters()).device
    pad_row = torch.tensor([special.pad] + [model.config.codebook_size] * num_codebooks)
    rows, mask = (tensor.to(device) for tensor in left_pad(list(prompts), pad_row))
    state = _State(rows, mask, model)
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    cache = DynamicCache()
    generated, current = [rows], rows
    for step in range(budget):
        hidden = model(current, attention_mask=mask, cache=cache).hidden[:, -1]
        uniform = torch.stack([torch.rand(1 + num_codebooks, generator=stream) for stream in streams]).to(device)
        current = _next_rows(model, config, state, hidden, uniform, step).unsqueeze(1)
        generated.append(current)
        mask = torch.cat([mask, ~state.stopped.unsqueeze(1)], dim=1)
        if bool(state.stopped.all()):
            break
    return _cut(torch.cat(generated, dim=1), state, special.im_start)


def _next_rows(
    model: DelayModel, config: GenerationConfig, state: _State, hidden: Tensor, uniform: Tensor, step: int
) -> Tensor:
    """Draw one position for every sample and advance the state."""
    special, num_codebooks = model.config.special_tokens, model.config.num_codebooks
    reference = config.compatibility is Compatibility.reference
    text = _next_text(model, config, state, hidden, uniform[:, 0], step)
    opened = text == special.audio_start
    began_delay = (state.delay_rows == _NEVER) & (text == special.delay_slot)
    # In training the first delay slot has no code in codebook 0; the published loop still draws one there.
    passed = torch.where(began_delay & (not reference), 1, state.delay_rows)
    codebooks = torch.arange(num_codebooks, device=hidden.device)
    started = state.audio_rows.unsqueeze(1) > codebooks
    unfinished = (passed == _NEVER).unsqueeze(1) | (codebooks >= passed.unsqueeze(1))
    closed = state.stopped | (text == special.audio_end)
    drawn = started & unfinished & ~closed.unsqueeze(1)
    codes = torch.where(drawn, _next_codes(model, config, state, hidden, uniform[:, 1:]), model.config.codebook_size)

    state.in_audio |= opened
    in_block = opened | (text == special.gen_slot) | (text == special.delay_slot)
    state.audio_rows = torch.where(in_block, state.audio_rows + 1, state.audio_rows)
    state.audio_rows = torch.where(text == special.audio_end, 0, state.audio_rows)
    first = 0 if reference else 1
    delay_rows = torch.where(began_delay, first, state.delay_rows)
    delay_rows = torch.where(delay_rows == _NEVER, delay_rows, delay_rows + 1)
    state.delay_rows = torch.where(delay_rows > num_codebooks, _NEVER, delay_rows)
    state.stopped = state.stopped | (text == special.im_end)
    state.seen = state.seen.scatter(2, codes.unsqueeze(2), True)
    return torch.cat([text.unsqueeze(1), codes], dim=1)


def _next_text(
    model: DelayModel, config: GenerationConfig, state: _State, hidden: Tensor, uniform: Tensor, step: int
) -> Tensor:
    """The text channel: forced while an audio block closes, drawn among the legal ids otherwise."""
    special, num_codebooks = model.config.special_tokens, model.config.num_codebooks
    logits = model.channel_logits(hidden, 0).float()
    ids = torch.arange(logits.shape[-1], device=logits.device)
    # With a single codebook nothing is delayed, so an audio block closes with its end token straight away.
    closing = special.delay_slot if num_codebooks > 1 else special.audio_end
    audio_only = (ids == special.gen_slot) | (ids == closing)
    illegal_outside = [special.pad, special.gen_slot, special.delay_slot, special.audio_end]
    text_only = ~torch.isin(ids, torch.tensor(illegal_outside, device=ids.device))
    legal = torch.where(state.in_audio.unsqueeze(1), audio_only, text_only)
    if step == 0:
        legal = legal & (ids != closing)
    if step <= num_codebooks:
        legal = legal & (ids != special.im_end)
    text = sample(logits.masked_fill(~legal, float("-inf")), config.text, uniform)
    ends = state.delay_rows == num_codebooks
    text = torch.where(state.delay_rows < num_codebooks, special.delay_slot, text)
    text = torch.where(ends, special.audio_end, text)
    text = torch.where(state.stopped, special.pad, text)
    state.in_audio = state.in_audio & (text != special.audio_end)
    return text


def _next_codes(model: DelayModel, config: GenerationConfig, state: _State, hidden: Tensor, uniform: Tensor) -> Tensor:
    """A draw for every codebook, shape (batch, codebooks); the caller decides which of them count."""
    logits = torch.stack([hidden @ model.head_weight(k + 1).T for k in range(model.config.num_codebooks)], dim=1)
    seen = state.seen[..., :-1]
    if config.compatibility is Compatibility.reference:
        seen = _pooled(seen)
    return sample(logits.float(), config.audio, uniform, seen)


def _pooled(seen: Tensor) -> Tensor:
    """The published loop's history: codebook 0 over all samples; the others over all samples and each other."""
    first = seen[:, :1].any(0, keepdim=True)
    others = seen[:, 1:].any(0, keepdim=True).any(1, keepdim=True)
    return torch.cat([first, others.expand(1, seen.shape[1] - 1, -1)], dim=1).expand_as(seen)


def _cut(rows: Tensor, state: _State, im_start: int) -> list[Decoded]:
    """The assistant's turn of every sample, without what a stopped sample was padded with."""
    decoded = []
    for index, sample_rows in enumerate(rows):
        prompt = sample_rows[: state.positions, 0]
        # <|im_start|>, "assistant" and its newline precede the turn.
        first = int((prompt == im_start).nonzero()[-1]) + 3
        decoded.append(
            Decoded(rows=sample_rows[first:].cpu(), num_given=state.positions - first, ended=bool(state.stopped[index]))
        )
    return decoded
