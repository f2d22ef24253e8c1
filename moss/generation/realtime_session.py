"""A spoken dialogue with MossTTSRealtime: text goes in as it arrives, frames come out as soon as they can be made.

Keys and values are kept across turns: every position of a conversation passes through the backbone once.
Source: MOSS-TTS moss_tts_realtime/mossttsrealtime/streaming_mossttsrealtime.py @58b20a0.
Differs: text is cut only where its ids cannot change any more, so that frames do not depend on how it was cut; at most
`text_lead` tokens are read before the first frame even if more are waiting; what `realtime_loop` says.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from moss.config.generation import RECOMMENDED, Compatibility, GenerationConfig
from moss.errors import GenerationError
from moss.generation.loop import StopReason
from moss.generation.realtime_loop import (
    FrameSampler,
    lead_rows,
    spoken_rows,
    stop_after,
    text_beside,
    warn_unspoken,
)
from moss.generation.realtime_text import TextPieces
from moss.generation.requests import turn_seed
from moss.generation.streaming import Sound, open_sound
from moss.model.decoder import BackboneDecoder
from moss.model.realtime import RealtimeModel
from moss.sequence.layout_realtime import RealtimeLayout
from moss.sequence.prompt import Turn
from moss.tokenizer.interface import AudioTokenizer, can_stream

logger = logging.getLogger(__name__)

PAST_FRAMES = 125
"""Earlier frames that are decoded along with a new one where the tokenizer cannot stream: 10 s of 12.5 a second. More
would make every frame of a long turn slower than the one before."""


@dataclass(slots=True)
class _Turn:
    """The assistant's turn that is being spoken, or was spoken last."""

    start: int
    """Positions of the conversation before the turn's header."""
    body: int
    """Positions before its first text token."""
    was_first: bool
    """No turn stands before it."""
    text: TextPieces
    sampler: FrameSampler
    ids: list[int] = field(default_factory=list)
    text_ended: bool = False
    frames: list[Tensor] = field(default_factory=list)
    voiced: int = 0
    """Frames that were turned into audio."""
    sound: Sound | None = None
    """Of the frames so far; opened with the first one."""
    stop: StopReason | None = None
    cancelled: bool = False


def _until_none(make: Callable[[], Tensor | None]) -> Iterator[Tensor]:
    while (made := make()) is not None:
        yield made


class RealtimeSession:
    """One conversation: user turns are context, the assistant's turns are spoken.

    A turn goes `begin_turn`, `push_text` as often as needed, `end_text`; in between and afterwards `frames` (codes) or
    `audio` (waveform) give what can be made so far. The frames are those of one offline call with the whole text, for
    any cutting of the text: pieces may end anywhere, even within a word (`moss.generation.realtime_text` holds text
    back until its ids are certain: a word is spoken once the space or punctuation mark behind it has arrived). Tokens
    given to `push_tokens` are used as they are. A text tokenizer that merges across words breaks the equality and is
    reported in the log.

    The frames of a turn depend on the session's seed, the turn's number and what was said before, on nothing else.

    Args:
        model: In eval mode.
        layout: Of the model, with its text tokenizer.
        reference_codes: The assistant's voice, codes (frames, codebooks); None for any voice.
        config: Sampler of the codebooks, limits of one turn, compatibility; None takes the recommended ones.
        seed: Decides the draws of every turn.
        tokenizer: Audio tokenizer, needed by `audio` only.
        past_frames: How many earlier frames of the turn `audio` decodes along with a new one, None all of them, where
            the tokenizer decodes whole clips only, as mel_rvq does. One that decodes in a stream, as Cat does, is exact
            without.
        future_frames: Likewise, how many frames `audio` waits for before it gives one out.
    """

    def __init__(
        self,
        model: RealtimeModel,
        layout: RealtimeLayout,
        *,
        reference_codes: Tensor | None = None,
        config: GenerationConfig | None = None,
        seed: int = 0,
        tokenizer: AudioTokenizer | None = None,
        past_frames: int | None = PAST_FRAMES,
        future_frames: int = 0,
    ) -> None:
        self._config = RECOMMENDED["realtime"] if config is None else config
        reference = self._config.compatibility is Compatibility.reference
        self._model, self._reference_codes = model, reference_codes
        self._layout = replace(layout, reference=layout.reference or reference)
        self._seed, self._tokenizer = seed, tokenizer
        self._future = 0 if can_stream(tokenizer) else future_frames
        self._past = past_frames
        self._device = next(model.parameters()).device
        capacity = min(1024, model.config.max_positions)
        self._decoder = BackboneDecoder(
            model.backbone,
            1,
            capacity,
            attention=self._config.attention,
            offload=self._config.offload,
            device=self._device,
        )
        self._rows: list[Tensor] = []
        self._turn: _Turn | None = None
        self._num_turns, self._is_first = 0, True

    @property
    def has_audio(self) -> bool:
        """Whether `audio` can be used."""
        return self._tokenizer is not None

    @property
    def num_positions(self) -> int:
        """Positions of the conversation that the model has read."""
        return self._decoder.length

    @property
    def stop_reason(self) -> StopReason | None:
        """Why the latest assistant's turn gives no more frames; None while it may, or before the first."""
        return None if self._turn is None else self._turn.stop

    def history(self) -> Tensor:
        """Every position that the model has read, shape (positions, channels)."""
        width = 1 + self._model.config.num_codebooks
        return torch.cat(self._rows) if self._rows else torch.empty(0, width, dtype=torch.long)

    def codes(self) -> Tensor:
        """All frames so far of the latest assistant's turn, shape (frames, codebooks)."""
        frames = [] if self._turn is None else self._turn.frames
        empty = torch.empty(0, self._model.config.num_codebooks, dtype=torch.long)
        return torch.stack(frames) if frames else empty

    def begin_turn(self, seed: int | None = None) -> None:
        """Open the assistant's next turn.

        Args:
            seed: Decides the draws of this turn in place of the one made from the session's.

        Raises:
            GenerationError: Another turn is still open, or the context is full.
        """
        context = self._context()
        number = self._num_turns
        sampler = FrameSampler(self._model, self._config, [turn_seed(self._seed, number) if seed is None else seed])
        header = self._layout.open_turn_rows("assistant", self._is_first)
        self._require_room(len(context) + len(header) + self._model.config.text_lead + 1)
        start = self._decoder.length + len(context)
        self._extend(torch.cat([context, header]))
        self._turn = _Turn(
            start=start,
            body=self._decoder.length,
            was_first=self._is_first,
            text=TextPieces(self._layout.encode),
            sampler=sampler,
        )
        self._num_turns, self._is_first = number + 1, False

    def user_turn(self, text: str | None = None, codes: Tensor | None = None) -> None:
        """Add what the user said, as context.

        Args:
            text: Its words.
            codes: Its sound, codes (frames, codebooks).

        Raises:
            GenerationError: Neither is given, an assistant's turn is still open, or the context is full.
            DataError: The codes do not fit the model.
        """
        if not text and codes is None:
            raise GenerationError("a user turn has neither text nor codes; give at least one of them")
        context = self._context()
        rows = self._layout.turn_rows(Turn(role="user", text=text or "", codes=codes), self._is_first)
        self._require_room(len(context) + len(rows))
        self._extend(torch.cat([context, rows]))
        self._turn, self._is_first = None, False

    def push_text(self, piece: str) -> None:
        """Add to the text of the open turn; the piece may begin and end anywhere.

        Raises:
            GenerationError: No turn takes text now.
        """
        turn = self._writable()
        turn.ids += turn.text.push(piece)

    def push_tokens(self, ids: Sequence[int]) -> None:
        """Add text tokens as they are, behind all text pushed so far.

        Raises:
            GenerationError: No turn takes text now, or an id is none of the text table's.
        """
        turn = self._writable()
        wrong = [token for token in ids if not 0 <= token < self._model.config.vocab_size]
        if wrong:
            raise GenerationError(
                f"text token {wrong[0]} is outside [0, {self._model.config.vocab_size}); use the text tokenizer that "
                "the model was trained with"
            )
        turn.ids += [*turn.text.end(), *ids]

    def end_text(self) -> None:
        """Say that the open turn's text is complete, so that `frames` goes on to the end of the turn.

        Raises:
            GenerationError: No turn takes text now, or no text was pushed; push some or cancel the turn.
        """
        turn = self._writable()
        turn.ids += turn.text.end()
        if not turn.ids:
            raise GenerationError("end_text: the turn has no text yet; push_text first, or cancel() the turn")
        turn.text_ended = True

    def frames(self) -> Iterator[Tensor]:
        """Make every frame that can be made now, each of shape (codebooks,).

        It ends when more text is needed, or with the turn (`stop_reason` is set then).

        Raises:
            GenerationError: No turn was begun.
        """
        turn = self._spoken()
        return _until_none(lambda: self._next_frame(turn))

    def audio(self) -> Iterator[Tensor]:
        """Like `frames`, but each frame's waveform; frames taken as codes before are included.

        Each has shape (samples,), or (2, samples) with a stereo tokenizer.

        Raises:
            GenerationError: No turn was begun, or the session has no audio tokenizer.
        """
        if self._tokenizer is None:
            raise GenerationError("audio: the session has no audio tokenizer; give it one, or use frames()")
        turn = self._spoken()
        return _until_none(lambda: self._next_audio(turn))

    def cancel(self, *, keep_spoken: bool = True, heard_frames: int | None = None) -> None:
        """End the latest assistant's turn now, e.g. because the user interrupts; nothing more is spoken of it.

        Args:
            keep_spoken: What was spoken stays in the context as a finished turn, with the text that went along; False
                forgets the whole turn.
            heard_frames: Keep only so many frames, when the listener heard less than was made.

        Raises:
            GenerationError: No turn was begun, or more frames were heard than made.
        """
        turn = self._spoken()
        heard = len(turn.frames) if heard_frames is None else heard_frames
        if not 0 <= heard <= len(turn.frames):
            raise GenerationError(
                f"heard_frames: expected 0 to {len(turn.frames)}, the frames made in this turn, got {heard_frames}"
            )
        if keep_spoken and heard:
            lead = min(len(turn.ids), self._model.config.text_lead)
            self._truncate(min(self._decoder.length, turn.body + lead + heard))
            turn.ids, turn.frames = turn.ids[: lead + heard], turn.frames[:heard]
            turn.stop, turn.cancelled = StopReason.cancelled, True
        else:
            self._truncate(turn.start)
            self._turn, self._is_first = None, turn.was_first

    def reset(self) -> None:
        """Forget the conversation; the voice, the settings and the seed stay."""
        self._truncate(0)
        self._turn, self._num_turns, self._is_first = None, 0, True

    def _spoken(self) -> _Turn:
        if self._turn is None:
            raise GenerationError("no assistant's turn is open; call begin_turn() first")
        return self._turn

    def _writable(self) -> _Turn:
        turn = self._spoken()
        if turn.cancelled:
            raise GenerationError("the turn was cancelled and takes no more text; call begin_turn() for the next one")
        if turn.text_ended:
            raise GenerationError("the turn's text was ended by end_text(); call begin_turn() for the next one")
        return turn

    def _context(self) -> Tensor:
        """What must be read before another turn: the system block, or what closes the turn before.

        Raises:
            GenerationError: The turn before is still being spoken.
        """
        if self._decoder.length == 0:
            return self._layout.ensemble_rows(self._reference_codes)
        turn, config = self._turn, self._model.config
        if turn is None:
            return torch.empty(0, 1 + config.num_codebooks, dtype=torch.long)
        if turn.stop is None:
            raise GenerationError(
                "the assistant's turn is not over; take frames() until stop_reason is set, or cancel() it"
            )
        if not turn.text_ended and not turn.cancelled:
            turn.ids += turn.text.end()
        if self._config.compatibility is Compatibility.reference:
            return torch.empty(0, 1 + config.num_codebooks, dtype=torch.long)
        whole = spoken_rows(config, turn.ids, torch.stack(turn.frames) if turn.frames else self.codes())
        return whole[self._decoder.length - turn.body :]

    @torch.inference_mode()
    def _next_frame(self, turn: _Turn) -> Tensor | None:
        config, made = self._model.config, len(turn.frames)
        waiting = not turn.text_ended and len(turn.ids) < config.text_lead + made
        if turn is not self._turn or turn.stop is not None or waiting:
            return None
        if made == 0:
            rows = lead_rows(config, turn.ids)
        else:
            text = torch.tensor([text_beside(config, turn.ids, made - 1)])
            rows = torch.cat([text, turn.frames[-1]]).unsqueeze(0)
        if self._decoder.length + len(rows) > config.max_positions:
            turn.stop = StopReason.max_frames
            logger.warning("the model's %d positions are used up; reset() the session", config.max_positions)
            return None
        codes = turn.sampler.draw(self._extend(rows))[0].cpu()
        if int(codes[0]) == config.eos_code:
            turn.stop = StopReason.end
            warn_unspoken(config, turn.ids, made)
            return None
        turn.frames.append(codes)
        turn.stop = stop_after(turn.frames, self._config.max_frames, self._config)
        return codes

    def _next_audio(self, turn: _Turn) -> Tensor | None:
        assert self._tokenizer is not None
        wanted = turn.voiced + 1 + self._future
        while len(turn.frames) < wanted and self._next_frame(turn) is not None:
            pass
        if turn.voiced >= len(turn.frames) or (len(turn.frames) < wanted and turn.stop is None):
            return None
        codes, no_code = turn.frames[turn.voiced], self._model.config.codebook_size
        if int(codes.max()) >= no_code:
            # Drawn by `compatibility=reference` only; the published code stops playing here.
            return None
        if turn.sound is None:
            turn.sound = open_sound(self._tokenizer, None, self._past)
        future = turn.frames[turn.voiced + 1 : wanted]
        wave = turn.sound.continued(codes[None], torch.stack(future).clamp(max=no_code) if future else None)
        turn.voiced += 1
        return wave

    @torch.inference_mode()
    def _extend(self, rows: Tensor) -> Tensor:
        """Read positions (positions, channels); the last one's hidden state, shape (1, width)."""
        self._rows.append(rows)
        return self._decoder.extend(self._model.embed(rows.to(self._device).unsqueeze(0)))[:, -1]

    def _truncate(self, length: int) -> None:
        kept = self.history()[:length]
        self._decoder.truncate(length)
        self._rows = [kept]

    def _require_room(self, positions: int) -> None:
        held, most = self._decoder.length, self._model.config.max_positions
        if held + positions > most:
            raise GenerationError(
                f"the conversation has {held} positions and needs {positions} more, the model holds {most}; "
                "reset() the session, or begin another with a shorter reference"
            )
