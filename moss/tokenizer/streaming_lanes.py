"""Many streams through one forward pass: lanes that open, pause and end when they like.

Lanes that push equally many frames run as one batch, wherever each of them stands. Their states stay joined for as
long as the same lanes go on together; a lane that is left out is parted from them and not written to.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from moss.errors import DataError
from moss.tokenizer import interface, stream_state
from moss.tokenizer.streaming import Remainder
from moss.tokenizer.transformer import StageState

if TYPE_CHECKING:
    from moss.tokenizer.cat import CatTokenizer


class EncoderLanes:
    """Streams of samples to codes; each lane gives what an `EncoderStream` of its own would give.

    Lanes have no `state` and `restore`: only single streams can be stored and resumed.
    """

    def __init__(self, tokenizer: "CatTokenizer", num_codebooks: int | None = None) -> None:
        """Without lanes; `num_codebooks` are computed in all of them, null for all."""
        self._tokenizer = tokenizer
        self._num_codebooks = interface.check_num_codebooks(num_codebooks, tokenizer.spec)
        self._states = _LaneStates(tokenizer.encoder)
        self._samples: dict[int, Remainder] = {}

    @property
    def lanes(self) -> tuple[int, ...]:
        """The open lanes."""
        return tuple(self._samples)

    def open(self) -> int:
        """A new lane at its start; numbers are never used twice."""
        lane = self._states.open()
        self._samples[lane] = Remainder(self._tokenizer)
        return lane

    @torch.no_grad()
    def push(self, chunks: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Codes (frames, codebooks) int64 of the frames that each lane's samples complete.

        Args:
            chunks: Samples per lane, of any length each; lanes that are not named pause.

        Raises:
            DataError: A lane is not open, or its chunk is no sound. Then no lane has moved.
        """
        self._states.check(chunks)
        for lane, samples in chunks.items():
            interface.check_samples(f"lane {lane}", samples, self._tokenizer.spec.num_audio_channels)
        held = {lane: self._samples[lane].joined(samples) for lane, samples in chunks.items()}
        codes = self._encode({lane: remainder.whole_frames() for lane, remainder in held.items()})
        self._samples |= {lane: remainder.after_frames() for lane, remainder in held.items()}
        return codes

    @torch.no_grad()
    def finish(self, lanes: Iterable[int]) -> dict[int, Tensor]:
        """Codes of what each lane holds back, zero-padded to a last frame; (0, codebooks) for nothing. Closes them.

        Raises:
            DataError: A lane is not open.
        """
        ending = list(dict.fromkeys(lanes))
        self._states.check(ending)
        codes = self._encode({lane: self._samples[lane].last_frame() for lane in ending})
        for lane in ending:
            self.close(lane)
        return codes

    def num_samples(self, lane: int) -> int:
        """Samples pushed into an open lane, per audio channel.

        Raises:
            DataError: The lane is not open.
        """
        self._states.check([lane])
        return self._samples[lane].num_samples

    def close(self, lane: int) -> None:
        """Forget a lane, and what it holds back.

        Raises:
            DataError: The lane is not open.
        """
        self._states.close(lane)
        del self._samples[lane]

    def _encode(self, whole: dict[int, Tensor]) -> dict[int, Tensor]:
        def encode(chunks: list[Tensor], stages: list[StageState]) -> Tensor:
            return self._tokenizer.encode_chunk(torch.stack(chunks), self._num_codebooks, stages)

        empty = torch.zeros(0, self._num_codebooks, dtype=torch.int64)
        return self._states.advance(whole, -1, encode, empty)


class DecoderLanes:
    """Streams of codes to samples; each lane gives what a `DecoderStream` of its own would give.

    Lanes have no `state` and `restore`: only single streams can be stored and resumed.
    """

    def __init__(self, tokenizer: "CatTokenizer") -> None:
        """Without lanes."""
        self._tokenizer = tokenizer
        self._states = _LaneStates(tokenizer.decoder)

    @property
    def lanes(self) -> tuple[int, ...]:
        """The open lanes."""
        return self._states.lanes

    def open(self) -> int:
        """A new lane at its start; numbers are never used twice."""
        return self._states.open()

    @torch.no_grad()
    def push(self, chunks: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The sound of each lane's codes (frames, k): exactly `samples_per_frame` samples per frame.

        Args:
            chunks: Codes per lane, of any number of frames and codebooks each; lanes that are not named pause.

        Raises:
            DataError: A lane is not open, or its codes are none of this tokenizer. Then no lane has moved.
        """
        self._states.check(chunks)
        spec = self._tokenizer.spec
        for lane, codes in chunks.items():
            interface.check_code_array(f"lane {lane}", codes, spec)
        most = max((codes.shape[1] for codes in chunks.values()), default=0)

        def decode(given: list[Tensor], stages: list[StageState]) -> Tensor:
            codes = [
                nn.functional.pad(item.long().cpu(), (0, most - item.shape[1]), value=spec.pad_code) for item in given
            ]
            return self._tokenizer.decode_chunk(torch.stack(codes), stages)

        return self._states.advance(chunks, 0, decode, self._tokenizer.silence(0))

    def close(self, lane: int) -> None:
        """Forget a lane.

        Raises:
            DataError: The lane is not open.
        """
        self._states.close(lane)


class _Group:
    """Lanes whose states are joined, in the order of the batch."""

    def __init__(self, lanes: list[int], stages: list[StageState]) -> None:
        self.lanes = lanes
        self.stages = stages


class _LaneStates:
    """Where each lane stands, and which of them are joined."""

    def __init__(self, stack: nn.ModuleList) -> None:
        self._stack = stack
        self._groups: dict[int, _Group] = {}
        self._opened = 0

    @property
    def lanes(self) -> tuple[int, ...]:
        return tuple(self._groups)

    def open(self) -> int:
        lane = self._opened
        self._opened += 1
        self._groups[lane] = _Group([lane], stream_state.new_stream(self._stack))
        return lane

    def close(self, lane: int) -> None:
        self.check([lane])
        self._part(self._groups[lane])
        del self._groups[lane]

    def check(self, lanes: Iterable[int]) -> None:
        for lane in lanes:
            if lane not in self._groups:
                raise DataError(f"lane {lane}: is not open; open are {', '.join(map(str, self._groups)) or 'none'}")

    def advance(
        self,
        chunks: Mapping[int, Tensor],
        axis: int,
        run: Callable[[list[Tensor], list[StageState]], Tensor],
        empty: Tensor,
    ) -> dict[int, Tensor]:
        """Run the lanes whose chunks are equally long along `axis` together; unless all succeed, no lane moves."""
        by_length: dict[int, list[int]] = {}
        for lane, chunk in chunks.items():
            by_length.setdefault(chunk.shape[axis], []).append(lane)
        results = {lane: empty.clone() for lane in by_length.pop(0, [])}
        moved = []
        for lanes in by_length.values():
            group = self._joined(lanes)
            stages = stream_state.copied(group.stages)
            outputs = run([chunks[lane] for lane in group.lanes], stages)
            moved.append((group, stages))
            results |= dict(zip(group.lanes, outputs, strict=True))
        for group, stages in moved:
            group.stages = stages
        return {lane: results[lane] for lane in chunks}

    def _joined(self, lanes: list[int]) -> _Group:
        """The group of exactly these lanes."""
        group = self._groups[lanes[0]]
        if sorted(group.lanes) == sorted(lanes):
            return group
        for lane in lanes:
            self._part(self._groups[lane])
        if len(lanes) == 1:
            return self._groups[lanes[0]]
        group = _Group(lanes, stream_state.join(self._stack, [self._groups[lane].stages for lane in lanes]))
        for lane in lanes:
            self._groups[lane] = group
        return group

    def _part(self, group: _Group) -> None:
        """Give every lane of a group a state of its own."""
        if len(group.lanes) == 1:
            return
        for i, lane in enumerate(group.lanes):
            self._groups[lane] = _Group([lane], stream_state.part(self._stack, group.stages, i))
