"""A loaded generator: text in, speech out. What `moss.load` returns."""

import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import torch
from torch import Tensor

from moss.config.generation import Compatibility, GenerationConfig
from moss.data.progress import track
from moss.errors import GenerationError, MossError
from moss.generation.history import GENERATIONS
from moss.generation.long_generation import TAIL_S, FrameLimit, fitting_parts, speak_parts
from moss.generation.loop import Generated, OnFrames, ShouldStop, StopReason, generate
from moss.generation.presets import OVERRIDES, check_codebooks, preset, with_overrides
from moss.generation.prompts import PUBLISHED_FRAMES_PER_S, PromptBuilder
from moss.generation.realtime_loop import RealtimePrompt
from moss.generation.references import ClipReader, Reference
from moss.generation.requests import Request, check_unique, request_from, request_seed, turn_seed
from moss.generation.segments import AudioSegment, first_frames
from moss.generation.speech import Speech, SpeechChunk
from moss.generation.streaming import FrameStream, Voicing
from moss.model.checkpoint import ModelCard, save_generator
from moss.model.interface import Generator
from moss.sequence.layout import Layout
from moss.tokenizer.interface import AudioTokenizer

if TYPE_CHECKING:
    from moss.generation.realtime_session import RealtimeSession

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request that is ready to be decoded."""

    request: Request
    prompt: Tensor | RealtimePrompt


class SpeechModel:
    """A generator with its tokenizers; made by `moss.load`.

    Args:
        model: In eval mode, on its device.
        layout: Of the model, with its text tokenizer.
        card: What `save` writes beside the weights.
        tokenizer: Audio tokenizer; None leaves codes only.
        config: Settings that calls start from; None takes the recommended ones of the model's member.
        folder: Where the weights came from.
    """

    def __init__(
        self,
        model: Generator,
        layout: Layout,
        card: ModelCard,
        *,
        tokenizer: AudioTokenizer | None = None,
        config: GenerationConfig | None = None,
        folder: Path | None = None,
    ) -> None:
        self.model, self.layout, self.card, self.tokenizer, self.folder = model, layout, card, tokenizer, folder
        self.config = preset(model.config) if config is None else config
        self._frames_per_s = PUBLISHED_FRAMES_PER_S if tokenizer is None else tokenizer.spec.frames_per_s
        self._fingerprint = (
            tokenizer.fingerprint if tokenizer is not None else (card.tokenizer or {}).get("fingerprint")
        )
        self._is_realtime = model.config.architecture == "realtime"
        clips = ClipReader(
            tokenizer=tokenizer,
            num_codebooks=model.config.num_codebooks,
            codebook_size=model.config.codebook_size,
            max_frames=model.config.max_positions,
            normalise=not self._is_realtime,
            find=GENERATIONS.find,
            fingerprint=self._fingerprint,
        )
        self._prompts = PromptBuilder(model.config, layout, clips)

    @overload
    def generate(self, text: str | None = None, *, requests: None = None, **options: Any) -> Speech: ...

    @overload
    def generate(
        self, text: None = None, *, requests: Sequence[Request | Mapping[str, Any]], **options: Any
    ) -> list[Speech]: ...

    def generate(
        self, text: str | None = None, *, requests: Sequence[Request | Mapping[str, Any]] | None = None, **options: Any
    ) -> Speech | list[Speech]:
        """Speak a text, or several requests.

        Args:
            text: The words. May be left out for sound effects.
            requests: Several requests in place of one; then all but settings is given in them (see `batch`).
            options: Any field of `moss.generation.requests.Request` (reference, references, language, tokens,
                duration_s, instruction, ambient_sound, prefix, prompt_text, seed, id, max_chars, ...) and any setting
                of `moss.generation.presets.OVERRIDES` (temperature, top_p, top_k, repetition_penalty, max_frames,
                num_codebooks, compatibility, ...). Settings left out are the recommended ones of the model.

        Returns:
            A `Speech`, or a list of them in the order of the requests. The same request with the same seed (0 unless
            given) always gives the same codes. A text that is likely to take more than `max_frames` is spoken in parts
            that keep below it; a part that reaches it all the same is cut and says so in `stop_reason`. (A limit of
            less than 4 s only cuts.) Under its id any model of this process finds the speech as a reference.

        Raises:
            GenerationError: The request cannot be spoken. (Within `requests`, its `Speech.error` says why.)
            DataError: A recording that cannot be read, or fields that do not go together.
        """
        if requests is not None:
            if text is not None:
                raise GenerationError("text and requests are both given; put the text into a request")
            return self.batch(requests, **options)
        request, config = self._request({"text": text, **options})
        check_unique([request])
        return self._single(request, config)

    def batch(self, requests: Sequence[Request | Mapping[str, Any]], *, seed: int = 0, **settings: Any) -> list[Speech]:
        """Speak many requests, several at a time; what comes out is what each would give alone.

        Args:
            requests: `Request` objects, or mappings with their fields.
            seed: Of every request that has none.
            settings: Names of `moss.generation.presets.OVERRIDES`.

        Returns:
            One for each request, in order; of a request that failed, `error` says why.

        Raises:
            GenerationError: Unknown fields or settings, or two requests with one id.
        """
        made = [item if isinstance(item, Request) else request_from(item) for item in requests]
        made = [item if item.seed is not None else replace(item, seed=seed) for item in made]
        return [speech for _, speech in sorted(self.speak(made, self._config(settings)), key=lambda item: item[0])]

    def speak(self, requests: Sequence[Request], config: GenerationConfig) -> Iterator[tuple[int, Speech]]:
        """The engine of `batch`: yields each request's number and speech as soon as its batch is done.

        Raises:
            GenerationError: Two requests with one id, or settings that the model does not have.
        """
        check_unique([request for request in requests if request.id])
        check_codebooks(config, self.model.config)
        # Similar lengths share a batch; a request's result does not depend on its neighbours.
        order = sorted(range(len(requests)), key=lambda index: len(requests[index].text or ""))
        size = config.batch_size
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        for batch in track(batches, "generating", len(batches)) if len(batches) > 1 else batches:
            yield from self._speak_batch([(index, self._named(requests[index])) for index in batch], config)

    def stream(
        self, text: str | None = None, *, chunk_frames: int = 25, past_frames: int | None = None, **options: Any
    ) -> Iterator[SpeechChunk]:
        """Speak a text and give chunks out while it is being spoken.

        The codes of all chunks together are those of `generate` with the same options. So are the waveforms if the
        tokenizer decodes in a stream (Cat does); with others each chunk is decoded without knowing what follows, which
        can be heard where chunks meet. Under the request's id the whole speech can be referred to afterwards.

        Args:
            text: The words.
            chunk_frames: Frames of a chunk (12.5 a second with the published tokenizers); the last may have fewer.
            past_frames: How many earlier frames a tokenizer that decodes whole clips only, such as mel_rvq, decodes
                along with a chunk, for their influence on it; None takes all of them. Others need none.
            options: As those of `generate`.

        Raises:
            GenerationError: As `generate`; the text is too long for one go (`generate` would speak it in parts).
            DataError: As `generate`.
        """
        if chunk_frames < 1:
            raise GenerationError(f"chunk_frames={chunk_frames}: expected at least 1")
        request, config = self._request({"text": text, **options})
        prepared = self._prepare(request, config)
        if self._parts(prepared.request, config) is not None:
            expected = FrameLimit(config.max_frames, self._frames_per_s).expected(prepared.request)
            raise GenerationError(
                f"the text needs about {expected:.0f} frames, with max_frames={config.max_frames} and "
                f"max_chars={request.max_chars}, and a stream is spoken in one go; raise max_frames, use generate, or "
                "stream the parts of the text one after the other, each with the one before as its prefix"
            )
        return self._stream(prepared, config, chunk_frames, past_frames)

    def session(self, *, reference: Reference | None = None, seed: int = 0, **options: Any) -> "RealtimeSession":
        """A conversation with a Realtime model: text goes in piece by piece, frames come out as soon as they exist.

        Args:
            reference: The assistant's voice.
            seed: Decides the draws of every turn.
            options: Settings as for `generate`; `past_frames` and `future_frames` of
                `moss.generation.realtime_session.RealtimeSession`.

        Returns:
            A `RealtimeSession`.

        Raises:
            GenerationError: Not a Realtime model, or a reference that cannot be used.
        """
        from moss.generation.realtime_session import RealtimeSession
        from moss.model.realtime import RealtimeModel
        from moss.sequence.layout_realtime import RealtimeLayout

        if not isinstance(self.model, RealtimeModel) or not isinstance(self.layout, RealtimeLayout):
            architecture = self.model.config.architecture
            raise GenerationError(f"session: only Realtime models converse, this one is {architecture}; use generate")
        decoding = {name: options.pop(name) for name in ("past_frames", "future_frames") if name in options}
        voice = None if reference is None else self._prompts.clips.codes(reference)
        return RealtimeSession(
            self.model,
            self.layout,
            reference_codes=voice,
            config=self._config(options),
            seed=seed,
            tokenizer=self.tokenizer,
            **decoding,
        )

    def save(self, path: Path | str) -> Path:
        """Write a checkpoint folder (model.safetensors and moss.json) that `moss.load` reads.

        Returns:
            The folder.

        Raises:
            CheckpointError: The folder exists.
        """
        folder = Path(path)
        save_generator(self.model, self.card, folder, self.folder)
        return folder

    def _request(self, options: dict[str, Any]) -> tuple[Request, GenerationConfig]:
        fields = {name: options.pop(name) for name in list(options) if name not in OVERRIDES}
        return self._named(request_from({"seed": 0, **fields})), self._config(options)

    def _config(self, settings: Mapping[str, Any]) -> GenerationConfig:
        return with_overrides(self.config, self.model.config, **settings)

    def _named(self, request: Request) -> Request:
        if request.id:
            return request
        return replace(request, id=GENERATIONS.new_id())

    def _prepare(self, request: Request, config: GenerationConfig) -> _Prepared:
        resolved = self._prompts.resolve(request)
        prompt = self._prompts.following(config.compatibility).prompt(resolved)
        self._prompts.check_room(prompt, config.max_frames)
        return _Prepared(resolved, prompt)

    def _fits(self, request: Request, config: GenerationConfig) -> bool:
        prompt = self._prompts.following(config.compatibility).prompt(request)
        return self._prompts.num_positions(prompt, config.max_frames) <= self.model.config.max_positions

    def _parts(self, request: Request, config: GenerationConfig) -> list[str] | None:
        """The parts that a long text is spoken in; None if it is spoken in one go."""
        text = request.text or ""
        if request.max_chars is not None and request.max_chars < 1:
            raise GenerationError(f"max_chars={request.max_chars}: expected at least 1")
        wanted = request.max_chars is not None and len(text) > request.max_chars
        limit = FrameLimit(config.max_frames, self._frames_per_s)
        if not text or not (wanted or limit.would_cut(request) or not self._fits(request, config)):
            return None
        model = self.model.config
        tail = torch.zeros(round(TAIL_S * self._frames_per_s), model.num_codebooks, dtype=torch.long)
        parts = fitting_parts(request, model.member, tail, lambda part: self._fits(part, config), limit.is_comfortable)
        return None if parts is None or len(parts) == 1 else parts

    def _speak_parts(self, request: Request, parts: list[str], config: GenerationConfig) -> Speech:
        numbers = itertools.count()

        def speak(part: Request) -> Speech:
            number = next(numbers)
            if self._is_realtime and part.seed is not None:
                # As the turns of a session: the seed of a part does not depend on its text.
                part = replace(part, seed=turn_seed(part.seed, number))
            return self._decode([self._prepare(part, config)], config)[0].required()

        member = self.model.config.member
        return speak_parts(request, member, parts, self._frames_per_s, lambda part: self._fits(part, config), speak)

    def _single(self, request: Request, config: GenerationConfig) -> Speech:
        """Speak one request or raise why not."""
        resolved = self._prompts.resolve(request)
        parts = self._parts(resolved, config)
        if parts is not None:
            return self._remember(self._speak_parts(resolved, parts, config))
        return self._remember(self._decode([self._prepare(resolved, config)], config)[0].required())

    def _speak_batch(
        self, batch: Sequence[tuple[int, Request]], config: GenerationConfig
    ) -> Iterator[tuple[int, Speech]]:
        ready: list[tuple[int, _Prepared]] = []
        for index, request in batch:
            try:
                resolved = self._prompts.resolve(request)
                parts = self._parts(resolved, config)
                if parts is None:
                    ready.append((index, self._prepare(resolved, config)))
                else:
                    yield index, self._remember(self._speak_parts(resolved, parts, config))
            except MossError as error:
                yield index, self._speech(request, config, error=str(error))
        if ready:
            speeches = self._decode([prepared for _, prepared in ready], config)
            yield from ((index, self._remember(made)) for (index, _), made in zip(ready, speeches, strict=True))

    def _decode(
        self,
        batch: Sequence[_Prepared],
        config: GenerationConfig,
        on_frames: OnFrames | None = None,
        should_stop: ShouldStop | None = None,
    ) -> list[Speech]:
        """One pass of the decode loop."""
        started_at = time.perf_counter()
        made = generate(
            self.model,
            cast("Sequence[Tensor]", [prepared.prompt for prepared in batch]),
            [request_seed(config.seed, prepared.request, plain=self._is_realtime) for prepared in batch],
            config,
            on_frames=on_frames,
            should_stop=should_stop,
        )
        elapsed_s = (time.perf_counter() - started_at) / len(batch)
        return [
            self._finish(prepared.request, result, config, elapsed_s)
            for prepared, result in zip(batch, made, strict=True)
        ]

    def _finish(self, request: Request, made: Generated, config: GenerationConfig, elapsed_s: float) -> Speech:
        """What a decode loop made, as speech."""
        width = config.num_codebooks or self.model.config.num_codebooks
        cut = [AudioSegment(part.codes[:, :width].cpu(), part.num_given) for part in made.segments]
        segments = first_frames(cut, config.max_frames)
        if segments and config.compatibility is Compatibility.none:
            segments[0] = _behind(segments[0], request.prefix)
        error = None if segments else "the model made no complete frame of audio"
        if made.stop_reason is not StopReason.end:
            logger.warning("%s: stopped by %s", request.id, made.stop_reason.value)
        return replace(
            self._speech(request, config, error=error),
            segments=segments,
            stop_reason=made.stop_reason.value,
            elapsed_s=elapsed_s,
        )

    def _speech(self, request: Request, config: GenerationConfig, error: str | None) -> Speech:
        """A speech without content."""
        return Speech(
            id=request.id,
            text=request.text,
            segments=(),
            stop_reason=None,
            seed=config.seed if request.seed is None else request.seed,
            num_codebooks=config.num_codebooks or self.model.config.num_codebooks,
            tokenizer=self.tokenizer,
            tokenizer_fingerprint=self._fingerprint,
            error=error,
        )

    def _stream(
        self, prepared: _Prepared, config: GenerationConfig, chunk_frames: int, past_frames: int | None
    ) -> Iterator[SpeechChunk]:
        request = prepared.request
        assert request.prefix is None or isinstance(request.prefix, Tensor)
        # Realtime speaks a turn of its own behind an earlier one: no prefix is decoded.
        given = None if isinstance(prepared.prompt, RealtimePrompt) else request.prefix
        voicing = Voicing(self.tokenizer, given, past_frames)

        def run(on_frames: OnFrames, should_stop: ShouldStop) -> None:
            speech = self._decode([prepared], config, on_frames, should_stop)[0]
            self._remember(speech if should_stop() else speech.required())

        for codes in FrameStream(run).chunks(chunk_frames):
            yield voicing.voice(codes)

    def _remember(self, speech: Speech) -> Speech:
        """Keep a generation for requests that refer to it."""
        GENERATIONS.add(speech)
        return speech


def _behind(segment: AudioSegment, prefix: Reference | None) -> AudioSegment:
    """A segment with the prefix as it was given: Delay models see its last frames in part and make the rest anew."""
    if not isinstance(prefix, Tensor) or segment.num_given != len(prefix):
        return segment
    given = prefix[:, : segment.codes.shape[1]].to(segment.codes)
    return AudioSegment(torch.cat([given, segment.codes[segment.num_given :]]), segment.num_given)
