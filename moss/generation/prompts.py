"""From a request to the positions that a model reads: clips become codes, fields become a prompt."""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from moss.config.generation import Compatibility
from moss.config.model import Member, ModelConfig, RealtimeModelConfig
from moss.errors import GenerationError
from moss.generation.delay_loop import new_positions
from moss.generation.realtime_loop import RealtimePrompt
from moss.generation.references import ClipReader
from moss.generation.requests import Request
from moss.sequence.dialogue import dialogue_text, merge_speakers
from moss.sequence.layout import Layout, LocalV15Layout, RealtimeLayout
from moss.sequence.members import member_prompt
from moss.sequence.prompt import Conversation, PromptMode, Turn
from moss.sequence.templates import TEMPLATES

PUBLISHED_FRAMES_PER_S = 12.5
"""Of every published audio tokenizer; used where a model was loaded without one."""
REALTIME_FIELDS = ("text", "reference", "prefix", "prompt_text", "seed", "id", "max_chars")
"""What a request to a Realtime model may have; references may hold the one voice."""
_NOT_REALTIME = (
    *("language", "tokens", "duration_s", "instruction", "ambient_sound", "sound_event", "quality", "scene"),
    "prompt_texts",
)


@dataclass(frozen=True, slots=True)
class PromptBuilder:
    """Builds the prompts of one model.

    Attributes:
        config: Of the model.
        layout: Of the model, with its text tokenizer.
        clips: Reads references.
        reference: Normalise text as the published code does where it is wrong.
    """

    config: ModelConfig
    layout: Layout
    clips: ClipReader
    reference: bool = False

    def following(self, compatibility: Compatibility) -> "PromptBuilder":
        """The builder of the same model that lays out and normalises as `compatibility` asks for."""
        if compatibility is Compatibility.none:
            return self
        layout = self.layout
        # Those of Delay and Local v1 have nothing to reproduce.
        if isinstance(layout, LocalV15Layout | RealtimeLayout):
            layout = replace(layout, reference=True)
        return replace(self, layout=layout, reference=True)

    def resolve(self, request: Request) -> Request:
        """The same request with codes in place of clips, frames in place of seconds, and the words of its prefix.

        Raises:
            GenerationError: Fields that contradict each other or would be ignored, or a clip that cannot be used.
            DataError: A recording that cannot be read.
        """
        self._check_fields(request)
        if request.reference is not None and request.references is not None:
            raise GenerationError("reference and references are both given; give one clip, or one for each speaker")
        given = [request.reference] if request.reference is not None else request.references
        prefix, words = self._prefix(request)
        references = None if given is None else [None if clip is None else self.clips.codes(clip) for clip in given]
        return replace(
            request,
            reference=None,
            references=references,
            prefix=prefix,
            prompt_text=words,
            prompt_texts=None,
            tokens=self._tokens(request),
            duration_s=None,
        )

    def prompt(self, request: Request) -> Tensor | RealtimePrompt:
        """What the decode loop starts from.

        Args:
            request: From `resolve`.

        Raises:
            DataError: Fields that the model's member does not allow.
            GenerationError: A Realtime request without words, or with several voices.
        """
        prefix = request.prefix
        assert prefix is None or isinstance(prefix, Tensor)
        if isinstance(self.config, RealtimeModelConfig):
            return self._turn(self.config, request, prefix)
        text, tokens = request.text, request.tokens
        if prefix is not None:
            text = joined_text(request.prompt_text or "", text or "", self.config.member)
            # In training the length is that of the whole recording.
            tokens = None if tokens is None else tokens + len(prefix)
        user = member_prompt(
            self.config.member,
            self.config.template,
            text=text,
            references=request.references,  # type: ignore[arg-type]
            language=request.language or None,
            instruction=request.instruction,
            tokens=tokens,
            ambient_sound=request.ambient_sound,
            sound_event=request.sound_event,
            quality=request.quality,
            scene=request.scene,
            reference=self.reference,
        )
        if prefix is None:
            return self.layout.conversation(user)
        return self.layout.conversation(user, [prefix], PromptMode.continuation)

    def num_positions(self, prompt: Tensor | RealtimePrompt, max_frames: int) -> int:
        """Positions of a prompt together with the longest answer."""
        if isinstance(prompt, RealtimePrompt):
            return len(prompt.rows) + max(len(prompt.text_ids), min(len(prompt.text_ids), self._lead) + max_frames)
        if self.config.architecture == "delay":
            return len(prompt) + new_positions(max_frames, self.config.num_codebooks)
        return len(prompt) + max_frames + 1

    def check_room(self, prompt: Tensor | RealtimePrompt, max_frames: int) -> None:
        """Refuse a prompt that leaves too little room.

        Raises:
            GenerationError: Names the numbers.
        """
        if self.num_positions(prompt, max_frames) > self.config.max_positions:
            held = len(prompt.rows) + len(prompt.text_ids) if isinstance(prompt, RealtimePrompt) else len(prompt)
            raise GenerationError(
                f"the prompt has {held} positions and {max_frames} frames may follow, but the model holds "
                f"{self.config.max_positions}; shorten the text or the reference, or lower max_frames"
            )

    @property
    def _lead(self) -> int:
        return self.config.text_lead if isinstance(self.config, RealtimeModelConfig) else 0

    def _turn(self, config: RealtimeModelConfig, request: Request, prefix: Tensor | None) -> RealtimePrompt:
        """One spoken turn; a prefix is the assistant's turn before it."""
        references = request.references or [None]
        if len(references) > 1:
            raise GenerationError(f"references: Realtime models speak with one voice, got {len(references)} clips")
        if not (request.text or "").strip():
            raise GenerationError("text: a Realtime model needs words to speak; give a text")
        ids = self.layout.encode(request.text or "")
        turns = [Turn("assistant", request.text or "")]
        if prefix is not None:
            turns.insert(0, Turn("assistant", request.prompt_text or "", prefix))
        voice = references[0]
        assert voice is None or isinstance(voice, Tensor)
        rows = self.layout.conversation(Conversation(reference=voice, turns=turns))
        return RealtimePrompt(rows=rows, text_ids=ids)

    def _check_fields(self, request: Request) -> None:
        """Refuse what would be ignored."""
        if isinstance(self.config, RealtimeModelConfig):
            for name in _NOT_REALTIME:
                # The language of a corpus' sentence describes the recording that it is compared with.
                if getattr(request, name) in (None, "") or (name == "language" and request.target is not None):
                    continue
                raise GenerationError(
                    f"{name}: a Realtime model has no such field; leave it out, it takes {', '.join(REALTIME_FIELDS)}"
                )
        elif not TEMPLATES[self.config.template].has("tokens"):
            for name in ("tokens", "duration_s"):
                if getattr(request, name) is not None:
                    raise GenerationError(
                        f"{name}: the prompt format {self.config.template.value} has no place for a length, so it "
                        "would be ignored; leave it out (the text decides), or write a shorter or longer text"
                    )

    def _prefix(self, request: Request) -> tuple[Tensor | None, str | None]:
        """Codes of what is to be carried on, and its words."""
        if request.prompt_texts is not None:
            return self._dialogue_prefix(request, list(request.prompt_texts))
        if request.prefix is None:
            if request.prompt_text is not None:
                raise GenerationError("prompt_text: says the words of `prefix`, which is missing; give the recording")
            return None, None
        words = request.prompt_text
        speech = self.clips.speech(request.prefix)
        if words is None and speech is not None:
            words = speech.text
        if words is None:
            raise GenerationError(
                "prefix: its words are needed too; give prompt_text, or prompt_text='' if the text begins with them"
            )
        return self.clips.codes(request.prefix, voice=False), words

    def _dialogue_prefix(self, request: Request, words: list[str | None]) -> tuple[Tensor, str]:
        """The speakers' clips as one recording.

        Source: MOSS-TTS docs/moss_ttsd_model_card.md @58b20a0.
        """
        if request.prefix is not None or request.prompt_text is not None:
            raise GenerationError("prompt_texts belong to the speakers' references; leave prefix and prompt_text out")
        given = [request.reference] if request.reference is not None else request.references or []
        if len(given) != len(words) or any((a is None) != (b is None) for a, b in zip(given, words, strict=True)):
            raise GenerationError(
                f"prompt_texts: {len(words)} texts for {len(given)} references; give the words of each clip, null for "
                "a speaker without a clip"
            )
        clips = [clip for clip in given if clip is not None]
        if self.config.member is not Member.ttsd:
            return self.clips.joined_codes(clips), "".join(word for word in words if word is not None)
        return self.clips.joined_codes(clips), dialogue_text(words, "")

    def _tokens(self, request: Request) -> int | None:
        if request.duration_s is None:
            return request.tokens
        if request.tokens is not None:
            raise GenerationError("tokens and duration_s are both given; they say the same, leave one out")
        if not (math.isfinite(request.duration_s) and request.duration_s > 0):
            raise GenerationError(f"duration_s={request.duration_s}: expected seconds, more than 0")
        spec = None if self.clips.tokenizer is None else self.clips.tokenizer.spec
        per_s = PUBLISHED_FRAMES_PER_S if spec is None else spec.frames_per_s
        return max(1, round(request.duration_s * per_s))


def joined_text(before: str, text: str, member: Member) -> str:
    """The words of a prefix and those to follow, as one text.

    Dialogues are joined without a separator, as published; other texts with a blank where their script has blanks.
    """
    if member is Member.ttsd:
        return merge_speakers(before + text)
    if not before or not text or before[-1].isspace() or text[0].isspace():
        return before + text
    # Scripts without blanks are not ASCII on either side of the seam.
    return f"{before} {text}" if before[-1].isascii() or text[0].isascii() else before + text
