"""Streams of audio through a Cat tokenizer: push what there is, get what is complete.

A stream gives the codes, up to ties in the last bit, and the samples, up to rounding, of one call over everything. All
that it remembers is in the stream object and can be saved; a push that raises leaves it as it was.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from moss.config.generation import Compatibility
from moss.errors import CheckpointError, DataError
from moss.tokenizer import interface, stream_state
from moss.tokenizer.hf_map import LISTED_KEYS
from moss.tokenizer.transformer import StageState, Transformer

if TYPE_CHECKING:
    from moss.tokenizer.cat import CatTokenizer

_COUNTS = ("num_frames", "published_ring", "model")


class EncoderStream:
    """One waveform, pushed in chunks of any length, to the codes of its frames.

    With `Compatibility.reference` frames see what the published ring cache leaves of the past, which depends on how
    many are pushed at once.
    Source: MOSS-Audio-Tokenizer modeling_moss_audio_tokenizer.py @56df9ee (the cache and the limit on a chunk).
    """

    def __init__(
        self,
        tokenizer: "CatTokenizer",
        num_codebooks: int | None = None,
        compatibility: Compatibility = Compatibility.none,
    ) -> None:
        """Start a stream; see `CatTokenizer.encoder_stream`."""
        self._tokenizer = tokenizer
        self._num_codebooks = interface.check_num_codebooks(num_codebooks, tokenizer.spec)
        self._stack = tokenizer.encoder
        self._ring = compatibility is Compatibility.reference
        self._stages = stream_state.new_stream(self._stack, published_ring=self._ring)
        self._samples = Remainder(tokenizer)
        self._finished = False

    @property
    def num_samples(self) -> int:
        """Samples pushed so far, per audio channel: the true length of the waveform."""
        return self._samples.num_samples

    @property
    def num_frames(self) -> int:
        """Frames given out so far."""
        return self._samples.num_frames

    @torch.no_grad()
    def push(self, samples: Tensor) -> Tensor:
        """Codes (frames, codebooks) int64 of the frames that these samples complete, which may be none.

        Args:
            samples: Float (n,), or (2, n) for a stereo tokenizer, which hears (n,) on both channels; n may be 0.

        Raises:
            DataError: Not samples, the stream was finished, or more frames than the published cache can take.
        """
        self._check_open()
        interface.check_samples("samples", samples, self._tokenizer.spec.num_audio_channels)
        held = self._samples.joined(samples)
        codes = self._encode(held.whole_frames())
        self._samples = held.after_frames()
        return codes

    @torch.no_grad()
    def finish(self) -> Tensor:
        """Codes of what is held back, zero-padded to a last frame: (1, codebooks) or (0, codebooks). Ends the stream.

        Raises:
            DataError: The stream was finished before.
        """
        self._check_open()
        codes = self._encode(self._samples.last_frame())
        self._finished = True
        self._stages = []
        self._samples = self._samples.finished()
        return codes

    def state(self) -> dict[str, Tensor]:
        """Everything the stream remembers, as tensors of its own on the CPU, fit for a safetensors file.

        Raises:
            DataError: The stream was finished.
        """
        self._check_open()
        tensors = _state_tensors(self._tokenizer, self._stages, self.num_frames, ring=self._ring)
        return tensors | {"held": self._samples.held.detach().to("cpu", copy=True).contiguous()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on where the stream that gave `state` stood.

        Raises:
            CheckpointError: The state is not one of an encoder stream of this tokenizer; all that differs is listed.
        """
        tokenizer = self._tokenizer
        per_frame = stream_state.positions_per_frame(self._stack, tokenizer.model.frame_size)
        held = state.get("held")
        problems = _held_problems(held, self._samples)
        frames, stages = _restored(
            tokenizer, self._stack, per_frame, state, ring=self._ring, extra={"held"}, problems=problems
        )
        assert held is not None, "a state without it was refused"
        self._stages = stages
        self._samples = Remainder(tokenizer, held.clone(), frames)
        self._finished = False

    def _encode(self, whole: Tensor) -> Tensor:
        spec = self._tokenizer.spec
        frames = whole.shape[-1] // spec.samples_per_frame
        if frames == 0:
            return torch.zeros(0, self._num_codebooks, dtype=torch.int64)
        if self._ring:
            check_ring(self._stack, self._tokenizer.model.frame_size, frames)
        stages = stream_state.copied(self._stages)
        codes = self._tokenizer.encode_chunk(whole[None], self._num_codebooks, stages)[0]
        self._stages = stages
        return codes

    def _check_open(self) -> None:
        if self._finished:
            raise DataError("stream: was finished; open a new one with tokenizer.encoder_stream()")


class DecoderStream:
    """Codes, pushed in chunks of any number of frames, to exactly `samples_per_frame` samples of each frame.

    With `Compatibility.reference` frames see what the published ring cache leaves of the past, which depends on how
    many are pushed at once.
    Source: MOSS-Audio-Tokenizer modeling_moss_audio_tokenizer.py @56df9ee (the cache and the limit on a chunk).
    """

    def __init__(self, tokenizer: "CatTokenizer", compatibility: Compatibility = Compatibility.none) -> None:
        """Start a stream; see `CatTokenizer.decoder_stream`."""
        self._tokenizer = tokenizer
        self._stack = tokenizer.decoder
        self._ring = compatibility is Compatibility.reference
        self._stages = stream_state.new_stream(self._stack, published_ring=self._ring)
        self._num_frames = 0

    @property
    def num_frames(self) -> int:
        """Frames pushed so far."""
        return self._num_frames

    @torch.no_grad()
    def push(self, codes: Tensor) -> Tensor:
        """The sound of codes (frames, k): float32 (frames * samples_per_frame,), or (2, ...) for a stereo tokenizer.

        Args:
            codes: Of any number of frames, 0 included, and of the first k codebooks.

        Raises:
            DataError: Not codes of this tokenizer, or more frames than the published cache can take.
        """
        interface.check_code_array("codes", codes, self._tokenizer.spec)
        if codes.shape[0] == 0:
            return self._tokenizer.silence(0)
        if self._ring:
            check_ring(self._stack, 1, codes.shape[0])
        stages = stream_state.copied(self._stages)
        wave = self._tokenizer.decode_chunk(codes[None], stages)[0]
        self._stages = stages
        self._num_frames += codes.shape[0]
        return wave

    def state(self) -> dict[str, Tensor]:
        """Everything the stream remembers, as tensors of its own on the CPU, fit for a safetensors file."""
        return _state_tensors(self._tokenizer, self._stages, self._num_frames, ring=self._ring)

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on where the stream that gave `state` stood.

        Raises:
            CheckpointError: The state is not one of a decoder stream of this tokenizer; all that differs is listed.
        """
        per_frame = stream_state.positions_per_frame(self._stack, 1)
        self._num_frames, self._stages = _restored(
            self._tokenizer, self._stack, per_frame, state, ring=self._ring, extra=set(), problems=[]
        )


class Remainder:
    """Samples of a stream that do not make a frame yet, and how many came before. Never changed in place."""

    def __init__(self, tokenizer: "CatTokenizer", held: Tensor | None = None, num_frames: int = 0) -> None:
        """Hold `held` (n,) or (2, n), by default nothing, after `num_frames` whole frames."""
        self._tokenizer = tokenizer
        self._size = tokenizer.spec.samples_per_frame
        self.held = tokenizer.silence(0) if held is None else held
        self.num_frames = num_frames
        self.num_samples = num_frames * self._size + self.held.shape[-1]

    def joined(self, samples: Tensor) -> "Remainder":
        """With more samples (n,) or (2, n) behind it, of any float type and on any device."""
        samples = self._tokenizer.on_all_channels(samples).detach().to("cpu", torch.float32)
        return Remainder(self._tokenizer, torch.cat((self.held, samples), -1), self.num_frames)

    def whole_frames(self) -> Tensor:
        """What makes whole frames, (..., frames * samples_per_frame)."""
        return self.held[..., : self.held.shape[-1] // self._size * self._size]

    def after_frames(self) -> "Remainder":
        """What is left when the whole frames were taken."""
        frames = self.held.shape[-1] // self._size
        return Remainder(self._tokenizer, self.held[..., frames * self._size :].clone(), self.num_frames + frames)

    def last_frame(self) -> Tensor:
        """What is held, zero-padded to a frame; nothing where nothing is held."""
        return nn.functional.pad(self.held, (0, -self.held.shape[-1] % self._size))

    def finished(self) -> "Remainder":
        """Of the same length, with nothing held."""
        ended = Remainder(self._tokenizer, None, self.num_frames + (self.held.shape[-1] > 0))
        ended.num_samples = self.num_samples
        return ended


def check_ring(stack: nn.ModuleList, positions: int, frames: int) -> None:
    """Refuse a push that is longer than the published cache, whose first frames would see nothing at all.

    Args:
        stack: The encoder or decoder.
        positions: Of a frame at its entrance.
        frames: How many are pushed.

    Raises:
        DataError: Says how many frames fit.
    """
    per_frame = stream_state.positions_per_frame(stack, positions)
    most = min(
        stage.context // count
        for stage, count in zip(stack, per_frame[:-1], strict=True)
        if isinstance(stage, Transformer)
    )
    if frames > most:
        raise DataError(
            f"compatibility=reference: the published cache takes at most {most} frames at once, got {frames}; push "
            "fewer, or use compatibility=none"
        )


def _state_tensors(
    tokenizer: "CatTokenizer", stages: list[StageState], num_frames: int, *, ring: bool
) -> dict[str, Tensor]:
    counts = {"num_frames": num_frames, "published_ring": int(ring), "model": tokenizer.stream_identity}
    return {name: torch.tensor(value, dtype=torch.int64) for name, value in counts.items()} | (
        stream_state.to_tensors(stages)
    )


def _held_problems(held: Tensor | None, now: Remainder) -> list[str]:
    if held is None:
        return ["missing: held"]
    most = now._size - 1
    if held.dtype is not torch.float32 or held.shape[:-1] != now.held.shape[:-1] or held.dim() == 0:
        wanted = (*now.held.shape[:-1], f"at most {most}")
        return [f"held: expected float32 {wanted}, got {held.dtype} {tuple(held.shape)}"]
    return [f"held: expected at most {most} samples, got {held.shape[-1]}"] * (held.shape[-1] > most)


def _restored(
    tokenizer: "CatTokenizer",
    stack: nn.ModuleList,
    per_frame: list[int],
    state: dict[str, Tensor],
    *,
    ring: bool,
    extra: set[str],
    problems: list[str],
) -> tuple[int, list[StageState]]:
    """Frames and stages of a saved state; raises a CheckpointError that lists `problems` and all others."""
    counts = {}
    for name in _COUNTS:
        value = state.get(name)
        if value is None or value.dtype is not torch.int64 or value.dim() != 0:
            problems = [*problems, f"{name}: expected one int64, got {'nothing' if value is None else _named(value)}"]
        else:
            counts[name] = int(value)
    if counts.get("num_frames", 0) < 0:
        problems = [*problems, f"num_frames: expected 0 or more, got {counts['num_frames']}"]
    if counts.get("model", tokenizer.stream_identity) != tokenizer.stream_identity:
        problems = [*problems, "model: the state is of a tokenizer with other settings or another quantizer"]
    if counts.get("published_ring", int(ring)) != int(ring):
        problems = [*problems, f"published_ring: expected {int(ring)}, got {counts['published_ring']} (compatibility)"]
    if not problems:
        positions = [counts["num_frames"] * count for count in per_frame]
        expected = dict(stream_state.expected_shapes(stack, positions, published_ring=ring))
        problems = _tensor_problems(expected, state, {*_COUNTS, *extra}, tokenizer.dtype)
    if problems:
        left_out = len(problems) - LISTED_KEYS
        lines = ["state: not one of a stream of this kind through this tokenizer; restore what state() of one gave"]
        lines += problems[:LISTED_KEYS] + [f"... and {left_out} more"] * (left_out > 0)
        raise CheckpointError("\n".join(lines))
    return counts["num_frames"], stream_state.from_tensors(stack, state, positions, published_ring=ring)


def _tensor_problems(
    expected: dict[str, tuple[int, ...]], state: dict[str, Tensor], known: set[str], dtype: torch.dtype
) -> list[str]:
    problems = [f"missing: {name}" for name in expected if name not in state]
    problems += [f"unknown: {name}" for name in state if name not in expected and name not in known]
    for name, shape in expected.items():
        if name in state and (tuple(state[name].shape) != shape or state[name].dtype is not dtype):
            problems.append(f"{name}: expected {dtype} {shape}, got {_named(state[name])}")
    return problems


def _named(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
