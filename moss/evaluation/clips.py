"""Which clips benchmark=tokenizer scores: the embedded corpus, a manifest, or a public test set in its own layout."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moss.config.evaluation import EMBEDDED_LANGUAGE, EMBEDDED_MIN_DURATION_S, EvalConfig
from moss.data.audio import audio_info
from moss.data.corpus import SOURCE, asterisk_source
from moss.data.fetch import Download, download_with_apt, fetch
from moss.data.manifest import Utterance, read_manifest
from moss.data.manifest_build import MANIFEST, ManifestSettings, build_manifest
from moss.data.source_choice import duration_limits
from moss.data.split import HELDOUT
from moss.errors import EvaluationError, MossError

logger = logging.getLogger(__name__)

EMBEDDED_ROOT = Path("data/speech")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipChoice:
    """What is scored, and how that is said in a table."""

    utterances: list[Utterance]
    description: str
    notes: list[str]
    """What a reader must know, such as recordings that are missing."""


def choose_clips(
    config: EvalConfig, *, root: Path = EMBEDDED_ROOT, download: Download = download_with_apt
) -> ClipChoice:
    """The clips that a configuration asks for, in the order of their list.

    Args:
        config: Manifest, dataset, split, language, shortest duration and largest number.
        root: Where the embedded corpus lies, or is put on first use.
        download: Where its packages come from.

    Raises:
        DataError: the manifest is missing or has a broken line; a folder that is no such dataset; the corpus can
            neither be found nor fetched.
        EvaluationError: nothing is left of the split, language or durations.
    """
    language, shortest_s = config.language, config.min_duration_s
    split = HELDOUT if config.split is None else config.split
    notes: list[str] = []
    if config.dataset is not None:
        from moss.evaluation.datasets.reading import open_dataset

        assert config.data_dir is not None
        dataset = open_dataset(config.dataset.value, config.data_dir, config.split or None, language=language or "")
        listed, notes, where = dataset.utterances, dataset.notes, f"{dataset.name} ({config.data_dir})"
    elif config.manifest is not None:
        listed = _of_split(read_manifest(config.manifest, needs_text=False), split, str(config.manifest))
        where = f"{config.manifest} ({split or 'all'})"
    else:
        language = EMBEDDED_LANGUAGE if language is None else language
        shortest_s = EMBEDDED_MIN_DURATION_S if shortest_s is None else shortest_s
        manifest = embedded_manifest(root, language, download)
        embedded = [utterance for utterance in read_manifest(manifest) if utterance.source == SOURCE]
        if not embedded:
            raise EvaluationError(
                f"{manifest}: holds nothing of the embedded corpus (source {SOURCE!r}); set manifest={manifest} to "
                "score what it holds, or move it away to have the corpus fetched"
            )
        listed = _of_split(embedded, split, str(manifest))
        where = f"the embedded corpus, {manifest} ({split or 'all'})"
    chosen = _filtered(listed, language, shortest_s or 0.0, where)
    kept = draw(chosen, config.max_utterances, config.bootstrap.seed)
    description = f"{len(kept)} clips ({sum(utterance.duration_s for utterance in kept):.0f} s) of {where}"
    if language:
        description += f", language {language}"
    if shortest_s:
        description += f", at least {shortest_s:g} s long"
    if len(kept) < len(chosen):
        description += f", drawn from {len(chosen)} with seed {config.bootstrap.seed}"
    return ClipChoice(utterances=kept, description=description, notes=notes)


def embedded_manifest(root: Path, language: str, download: Download) -> Path:
    """The manifest of the embedded corpus; on first use the recordings of a language are fetched and listed.

    Raises:
        DataError: an unknown language; no network, apt or dpkg; recordings that are broken.
    """
    manifest = root / MANIFEST
    if manifest.is_file():
        return manifest
    logger.info(
        "%s does not exist: fetching the embedded corpus, language %s (about 11 MB), into %s and listing it",
        manifest,
        language,
        root,
    )
    fetch(root, [language], download)
    shortest_s, longest_s = duration_limits(SOURCE, None, None)
    result = build_manifest(
        root, asterisk_source(root), ManifestSettings(min_duration_s=shortest_s, max_duration_s=longest_s)
    )
    logger.info("%d recordings are listed in %s", len(result.utterances), manifest)
    return manifest


def draw(utterances: Sequence[Utterance], count: int | None, seed: int) -> list[Utterance]:
    """At most `count` utterances at random, in their order; the same seed draws the same ones."""
    if count is None or count >= len(utterances):
        return list(utterances)
    kept = set(random.Random(seed).sample(range(len(utterances)), count))
    return [utterance for i, utterance in enumerate(utterances) if i in kept]


def _of_split(utterances: Sequence[Utterance], split: str, where: str) -> list[Utterance]:
    chosen = [utterance for utterance in utterances if not split or utterance.split == split]
    if not chosen:
        found = ", ".join(sorted({utterance.split or "(none)" for utterance in utterances})) or "nothing"
        raise EvaluationError(
            f"{where}: none of {len(utterances)} utterances has split {split!r}, found {found}; "
            "set split=... to one of these, or split='' for all"
        )
    return chosen


def _filtered(utterances: Sequence[Utterance], language: str | None, shortest_s: float, where: str) -> list[Utterance]:
    spoken = [utterance for utterance in utterances if language is None or utterance.language == language]
    chosen = [utterance for utterance in spoken if not shortest_s or _is_long(utterance, shortest_s)]
    if not chosen:
        languages = ", ".join(sorted({utterance.language or "(none)" for utterance in utterances})) or "none"
        raise EvaluationError(
            f"{where}: nothing is left of {len(utterances)} clips with language {language or 'any'} (found "
            f"{languages}) and at least {shortest_s:g} s; change language=... or min_duration_s=..."
        )
    return chosen


def _is_long(utterance: Utterance, shortest_s: float) -> bool:
    """Whether a clip is long enough; one that cannot be read stays, so that it is counted as a failure."""
    if utterance.duration_s:
        return utterance.duration_s >= shortest_s
    try:
        return audio_info(utterance.audio).duration_s >= shortest_s
    except MossError:
        return True
