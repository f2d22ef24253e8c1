"""From candidates to a manifest: inspect each recording, put bad ones aside, split by text, write.

Two kinds of loss are told apart: a recording that is bad is put into quarantine with its reason and counts against
`max_bad_frac`; one that is merely not wanted (no speech, too short, too long) is counted under its reason.
"""

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moss.data.files import remove_leftovers
from moss.data.inspection import CLIPPED_FRAC, Inspection, Inspector
from moss.data.manifest import Utterance, write_manifest
from moss.data.progress import track
from moss.data.quarantine import FILE_NAME as QUARANTINE
from moss.data.quarantine import Quarantine
from moss.data.sources import Candidate
from moss.data.split import REFERENCE, normalised_text, split_of
from moss.errors import DataError

logger = logging.getLogger(__name__)

MANIFEST = "utterances.jsonl"
MAX_MIXED_CHANNELS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestSettings:
    """What makes a recording wanted."""

    min_duration_s: float = 0.0
    max_duration_s: float = float("inf")
    heldout_frac: float = 0.2
    max_bad_frac: float = 0.05
    downmix: bool = False
    """Accept more than two channels, mixed by their mean."""


@dataclass(slots=True)
class ManifestResult:
    """What became of the candidates."""

    utterances: list[Utterance] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    quarantined: int = 0
    downmixed: int = 0
    clipped: int = 0
    """Recordings of which more than 0.1 % of the samples are at full scale; kept, and marked `clipped_frac`."""

    @property
    def references(self) -> int:
        """Clips that are here for their voice only."""
        return sum(utterance.split == REFERENCE for utterance in self.utterances)

    def lines(self) -> list[str]:
        """What was not kept and why, for the summary."""
        lines = [f"put aside (bad): {self.quarantined}", f"left out (not wanted): {self.left_out.total()}"]
        lines += [f"  {reason}: {count}" for reason, count in self.left_out.most_common()]
        if self.references:
            lines.append(f"reference clips: {self.references}")
        if self.downmixed:
            lines.append(f"several channels, of which a mono tokenizer hears the mean: {self.downmixed}")
        if self.clipped:
            lines.append(f"clipped, kept (more than {CLIPPED_FRAC:.1%} of the samples at full scale): {self.clipped}")
        return lines


def build_manifest(root: Path, candidates: Iterable[Candidate], settings: ManifestSettings) -> ManifestResult:
    """Write `utterances.jsonl` and `quarantine.jsonl` in `root`.

    Recordings that an utterance lists in `extra["reference"]` become utterances of split "reference", each once, and
    its `extra["reference_ids"]` names them in order. The turns of a conversation are all on one side of the split.

    Raises:
        DataError: More than `max_bad_frac` of the recordings are bad (only the quarantine is written then), or nothing
            is left, or settings that contradict each other.
    """
    if not 0 <= settings.min_duration_s < settings.max_duration_s:
        raise DataError(
            f"durations from {settings.min_duration_s} to {settings.max_duration_s} s leave nothing; "
            "expected 0 <= min < max"
        )
    root.mkdir(parents=True, exist_ok=True)
    remove_leftovers(root)
    inspect = Inspector(root / "inspected.jsonl")
    quarantine = Quarantine(root / QUARANTINE, "manifest")
    result = ManifestResult()
    seen: set[str] = set()
    listed = list(candidates)
    conversations = _conversation_texts(listed)
    references: dict[str, Utterance] = {}
    for candidate in track(listed, "inspecting recordings", len(listed)):
        if candidate.left_out:
            result.left_out[candidate.left_out] += 1
            continue
        found = inspect(candidate.audio) if candidate.audio and not candidate.problem else None
        problem = _problem(candidate, found, seen, inspect, settings)
        seen.add(candidate.id)
        unwanted = "" if problem or found is None else _unwanted(found, settings)
        if problem:
            quarantine.add(candidate.id, candidate.audio or "", problem)
        elif unwanted:
            result.left_out[unwanted] += 1
        else:
            spoken = conversations.get(candidate.extra.get("conversation", ""), candidate.text)
            utterance = _utterance(candidate, found, split_of(spoken or _sound(candidate), settings.heldout_frac))
            result.utterances.append(_with_references(utterance, inspect, references))
            result.downmixed += found is not None and found.channels > 1
            result.clipped += found is not None and found.clipped_frac > CLIPPED_FRAC
    result.quarantined = len(quarantine.rejected)
    quarantine.close(len(listed) - _not_looked_at(listed), settings.max_bad_frac)
    if not result.utterances:
        raise DataError(f"none of {len(listed)} recordings is left; " + "; ".join(result.lines()))
    result.utterances += references.values()
    write_manifest(root / MANIFEST, result.utterances)
    return result


def _problem(
    candidate: Candidate, found: Inspection | None, seen: set[str], inspect: Inspector, settings: ManifestSettings
) -> str:
    if candidate.id in seen:
        return f"duplicate id {candidate.id!r}: the first one is kept"
    if candidate.problem:
        return candidate.problem
    if not normalised_text(candidate.text or _sound(candidate)):
        return f"empty text: no letter or digit in {candidate.text!r}"
    if found is not None:
        if found.problem:
            return found.problem
        problem = _channel_problem(found, settings)
        if problem:
            return problem
    for reference in candidate.references:
        seen_reference = inspect(reference)
        reason = seen_reference.problem or _channel_problem(seen_reference, settings)
        if reason:
            return f"reference {reference}: {reason}"
    return ""


def _channel_problem(found: Inspection, settings: ManifestSettings) -> str:
    if found.channels <= MAX_MIXED_CHANNELS or settings.downmix:
        return ""
    return (
        f"{found.channels} channels: which of them hold the speech is not known; extract those, or accept their mean "
        "with --downmix"
    )


def _sound(candidate: Candidate) -> str:
    """What describes a recording that has no words."""
    described = candidate.extra.get("ambient_sound")
    return described if isinstance(described, str) else ""


def _conversation_texts(candidates: Iterable[Candidate]) -> dict[str, str]:
    """All that is said in each conversation, which decides the side of all its turns."""
    texts: dict[str, list[str]] = {}
    for candidate in candidates:
        if "conversation" in candidate.extra:
            texts.setdefault(candidate.extra["conversation"], []).append(candidate.text)
    return {name: " ".join(said) for name, said in texts.items()}


def _with_references(utterance: Utterance, inspect: Inspector, references: dict[str, Utterance]) -> Utterance:
    """The utterance with the ids of its reference clips, which are added to `references`.

    A clip that is encoded at its own level, as Realtime wants it, is another one than the same clip levelled.
    """
    listed = utterance.extra.get("reference")
    if not listed or not utterance.audio:
        return utterance
    as_recorded = "conversation" in utterance.extra
    ids: list[str | None] = []
    for path in listed:
        if path is None:
            ids.append(None)
            continue
        found = inspect(Path(path))
        name = f"ref-{found.sha256[:16]}" + "-as-recorded" * as_recorded
        ids.append(name)
        extra: dict[str, Any] = {"as_recorded": True} if as_recorded else {}
        if found.channels > 1:
            extra["downmixed_channels"] = found.channels
        references.setdefault(
            name,
            Utterance(
                id=name,
                audio=os.path.abspath(path),
                text="",
                language=utterance.language,
                duration_s=round(found.duration_s, 6),
                sha256=found.sha256,
                licence=utterance.licence,
                split=REFERENCE,
                source=utterance.source,
                extra=extra,
            ),
        )
    return dataclasses.replace(utterance, extra=utterance.extra | {"reference_ids": ids})


def _unwanted(found: Inspection, settings: ManifestSettings) -> str:
    if found.duration_s < settings.min_duration_s:
        return f"shorter than {settings.min_duration_s:g} s"
    if found.duration_s > settings.max_duration_s:
        return f"longer than {settings.max_duration_s:g} s"
    return ""


def _utterance(candidate: Candidate, found: Inspection | None, split: str) -> Utterance:
    extra = dict(candidate.extra)
    if found is not None and found.channels > 1:
        extra["downmixed_channels"] = found.channels
    if found is not None and found.clipped_frac > CLIPPED_FRAC:
        extra["clipped_frac"] = round(found.clipped_frac, 6)
    utterance = Utterance(
        id=candidate.id,
        audio=os.path.abspath(candidate.audio) if candidate.audio else "",
        text=candidate.text,
        language=candidate.language,
        speaker=candidate.speaker,
        licence=candidate.licence,
        split=split,
        source=candidate.source,
        extra=extra,
    )
    if found is None:
        return utterance
    return dataclasses.replace(utterance, duration_s=round(found.duration_s, 6), sha256=found.sha256)


def _not_looked_at(listed: list[Candidate]) -> int:
    return sum(bool(candidate.left_out) for candidate in listed)
