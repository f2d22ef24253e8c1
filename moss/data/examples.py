"""From utterances to training examples: which of them belong together, the prompt they make, and their positions."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moss.config.model import Member
from moss.data.shard import Example, ShardDataset
from moss.errors import DataError
from moss.sequence.layout import Layout
from moss.sequence.members import member_prompt
from moss.sequence.prompt import Clip, Conversation, Placeholder, Prompt, Turn
from moss.spec import IGNORE_LABEL

CodeArray = npt.NDArray[np.uint16]

logger = logging.getLogger(__name__)

_ROLES = ("user", "assistant")


@dataclass(frozen=True, slots=True)
class Item:
    """One example: a dataset and the positions of its utterances there, several where it is a conversation."""

    dataset: int
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One example laid out: inputs and labels (positions, channels)."""

    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class Draw:
    """What chance makes of an example in one epoch.

    Attributes:
        state_duration: The prompt says how many frames are wanted.
        clone: Position of another clip of the speaker, which becomes the reference.
        kept: Codebooks that stay; None keeps all.
    """

    state_duration: bool = False
    clone: int | None = None
    kept: int | None = None


@dataclass(frozen=True, slots=True)
class _Spoken:
    """One utterance as a prompt needs it, its audio perhaps only counted."""

    id: str
    text: str
    language: str
    extra: dict[str, Any]
    clip: Clip
    references: Sequence[Clip | None]


class ExampleBuilder:
    """Turns utterances into training examples.

    Args:
        layout: Of the model.
        member: What the model is trained to do. Realtime's examples are whole conversations, all others' are single
            utterances.
    """

    def __init__(self, layout: Layout, member: Member = Member.tts) -> None:
        self.layout, self.member = layout, member

    def build(self, examples: Sequence[Example], draw: Draw = Draw(), clone: CodeArray | None = None) -> Row:
        """Lay an example out.

        Args:
            examples: Its utterances; the first `num_codebooks` of their codes are used.
            draw: What chance made of it.
            clone: Codes of the clip that `draw.clone` means, shape (frames, codebooks).

        Raises:
            DataError: The utterances make no prompt of the member, or their codes are not the model's; names the id.
        """
        with _naming(f"utterance {examples[0].id}"):
            spoken = [self._spoken(example) for example in examples]
            voice = None if clone is None else self._codes(clone)
            prompt = self._prompt(spoken, draw.state_duration, voice)
            answer = spoken[0].clip
            assert isinstance(answer, Tensor)
            inputs, labels = self.layout.example(prompt, None if self._is_realtime else answer)
        if draw.kept is not None:
            inputs = inputs.clone()
            inputs[:, 1 + draw.kept :] = self.layout.pad_code
            labels[:, 1 + draw.kept :] = IGNORE_LABEL
        return Row(inputs, labels)

    def request(self, examples: Sequence[Example]) -> tuple[Prompt, Tensor]:
        """What a model would be asked in order to speak an example, and the codes it should say.

        Of a conversation, its last turn is asked for.

        Returns:
            The prompt, and codes of shape (frames, codebooks).

        Raises:
            DataError: As `build`.
        """
        with _naming(f"utterance {examples[0].id}"):
            prompt = self._prompt([self._spoken(example) for example in examples], state_duration=False, clone=None)
        if isinstance(prompt, Conversation):
            *earlier, last = prompt.turns
            prompt = Conversation(prompt.reference, [*earlier, Turn(last.role, last.text)])
        return prompt, self._codes(examples[-1].codes)

    def num_positions(
        self, dataset: ShardDataset, item: Item, state_duration: bool = False, clone_frames: int | None = None
    ) -> int:
        """Input positions of an example, from the index alone.

        Args:
            dataset: That the item belongs to.
            item: The example.
            state_duration: As in `Draw`.
            clone_frames: Length of the clip that is taken as reference.

        Raises:
            DataError: The utterances make no prompt of the member; names folder and id.
        """
        clone = None if clone_frames is None else Placeholder(clone_frames)
        spoken = [_counted(dataset, position) for position in item.positions]
        with _naming(f"{dataset.folder}: utterance {dataset.entries[item.positions[0]].id}"):
            prompt = self._prompt(spoken, state_duration, clone)
            return self.layout.num_positions(prompt, 0 if self._is_realtime else len(spoken[0].clip))

    def answers(self, dataset: ShardDataset, item: Item) -> list[int]:
        """Frames of each clip of an example that the model learns to say."""
        return [
            dataset.entries[position].frames
            for position in item.positions
            if not self._is_realtime or role_of(dataset, position) == "assistant"
        ]

    @property
    def _is_realtime(self) -> bool:
        return self.member is Member.realtime

    def _prompt(self, spoken: Sequence[_Spoken], state_duration: bool, clone: Clip | None) -> Prompt:
        own = [clip for one in spoken for clip in one.references if clip is not None]
        if self._is_realtime:
            voice = own[0] if own else clone
            return Conversation(voice, [Turn(_role(one.extra), one.text, one.clip) for one in spoken])
        (one,) = spoken
        stated = _tokens(one.extra)
        return member_prompt(
            self.member,
            self.layout.template.name,
            text=one.text or None,
            references=one.references if own or clone is None else [clone],
            language=one.language or None,
            tokens=len(one.clip) if stated is None and state_duration else stated,
            instruction=_field(one.extra, "instruction"),
            ambient_sound=_field(one.extra, "ambient_sound"),
            sound_event=_field(one.extra, "sound_event"),
            quality=_field(one.extra, "quality"),
            scene=_field(one.extra, "scene"),
        )

    def _spoken(self, example: Example) -> _Spoken:
        references = [None if codes is None else self._codes(codes) for codes in example.references]
        return _Spoken(
            example.id, example.text, example.language, example.extra, self._codes(example.codes), references
        )

    def _codes(self, codes: CodeArray) -> Tensor:
        return torch.from_numpy(codes[:, : self.layout.num_codebooks].astype("int64"))


def find_items(datasets: Sequence[ShardDataset], split: str, member: Member = Member.tts) -> list[Item]:
    """The examples of a split, dataset after dataset.

    Realtime's are conversations: utterances of one dataset with equal `extra["conversation"]`, ordered by
    `extra["turn"]`, up to the assistant's last one. An utterance without a conversation is one of its own.

    Raises:
        DataError: A turn without a number or with another's, or an unknown role; names folder and id.
    """
    items: list[Item] = []
    for number, dataset in enumerate(datasets):
        positions = [position for position, entry in enumerate(dataset.entries) if entry.split == split]
        if member is not Member.realtime:
            items += [Item(number, (position,)) for position in positions]
            continue
        silent = 0
        for conversation in _conversations(dataset, positions):
            while conversation and role_of(dataset, conversation[-1]) != "assistant":
                conversation.pop()
            if conversation:
                items.append(Item(number, tuple(conversation)))
            else:
                silent += 1
        if silent:
            logger.warning("%s: left out %d conversations in which the assistant says nothing", dataset.folder, silent)
    return items


def role_of(dataset: ShardDataset, position: int) -> str:
    """Who speaks an utterance of a conversation: `user`, or `assistant`, which one without a role is.

    Raises:
        DataError: Another role.
    """
    with _naming(f"{dataset.folder}: utterance {dataset.entries[position].id}"):
        return _role(dataset.extra(position))


def _conversations(dataset: ShardDataset, positions: Sequence[int]) -> list[list[int]]:
    """Positions grouped by conversation, in the order of their first utterances, each ordered by turn."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for position in positions:
        name = dataset.extra(position).get("conversation")
        key = ("utterance", dataset.entries[position].id) if name is None else ("conversation", str(name))
        groups[key].append(position)
    return [_by_turn(dataset, group) for group in groups.values()]


def _by_turn(dataset: ShardDataset, positions: list[int]) -> list[int]:
    if len(positions) == 1:
        return positions
    by_turn: dict[int, int] = {}
    for position in positions:
        turn = dataset.extra(position).get("turn")
        name = dataset.entries[position].id
        if type(turn) is not int:
            raise DataError(
                f"{dataset.folder}: utterance {name}: turn is {turn!r}, expected the number of its place in the "
                "conversation"
            )
        if turn in by_turn:
            other = dataset.entries[by_turn[turn]].id
            raise DataError(
                f"{dataset.folder}: utterances {other} and {name} are both turn {turn} of one conversation; number "
                "them one after the other"
            )
        by_turn[turn] = position
    return [by_turn[turn] for turn in sorted(by_turn)]


def _counted(dataset: ShardDataset, position: int) -> _Spoken:
    """An utterance whose audio is only counted."""
    entry = dataset.entries[position]
    references = [
        None if other is None else Placeholder(dataset.entries[other].frames) for other in dataset.references(position)
    ]
    extra = dataset.extra(position)
    return _Spoken(entry.id, entry.text, entry.language, extra, Placeholder(entry.frames), references)


def _role(extra: dict[str, Any]) -> str:
    role = extra.get("role") or "assistant"
    if role not in _ROLES:
        raise DataError(f"role is {role!r}, expected {' or '.join(_ROLES)}")
    return str(role)


def _field(extra: dict[str, Any], name: str) -> str | None:
    value = extra.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{name} is {value!r}, expected a text")
    return str(value)


def _tokens(extra: dict[str, Any]) -> int | None:
    value = extra.get("tokens")
    if value is not None and type(value) is not int:
        raise DataError(f"tokens is {value!r}, expected a number of frames")
    return value


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Say in every error which utterance it is about."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{what}: {error}") from error
