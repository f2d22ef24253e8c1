"""Score an audio tokenizer on the held-out clips of a manifest: STOI, PESQ and WER by number of codebooks.

Very short clips are single words, which a recogniser spells in its own way ("12." for "twelve") whatever their sound:
therefore one table for each shortest duration.
"""

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from moss.config.evaluation import AsrConfig, BootstrapConfig, Metric
from moss.config.load_tokenizer import load_tokenizer_config
from moss.data.audio import load_audio, write_wav
from moss.data.command import run_command
from moss.data.files import atomic_write
from moss.data.manifest import Utterance, read_manifest
from moss.data.progress import track
from moss.data.split import is_heldout
from moss.errors import ConfigError, DataError
from moss.evaluation.aggregate import Score, score_records
from moss.evaluation.items import Item
from moss.evaluation.metrics.signal import SCORING_RATE_HZ
from moss.evaluation.protocol import METRICS, PROTOCOL
from moss.evaluation.records import Journal, Record
from moss.evaluation.score import embedded_backends, score_items
from moss.tokenizer.build import build_tokenizer
from moss.tokenizer.interface import AudioTokenizer

SIGNAL_METRICS = (Metric.STOI, Metric.PESQ_NB_16K, Metric.PESQ_WB)
ORIGINAL = "original"

FOOT = (
    "Means over all clips with 95 % bootstrap intervals. A score that cannot be computed counts as the floor (STOI 0, "
    "PESQ 1, WER 100 %) and under `failed`. WER is the mean over clips after Seed-TTS normalisation."
)


def main(arguments: Sequence[str]) -> None:
    """Parse, reconstruct, score, write the table."""
    options = _parse(arguments)
    tokenizer = build_tokenizer(load_tokenizer_config(options.tokenizer))
    counts = _codebook_counts(options.codebooks, tokenizer.spec.num_codebooks)
    shortest_s = sorted({float(word) for word in options.min_durations_s.split(",")})
    utterances = _heldout(options.manifest, options.language, shortest_s[0], options.limit)
    folder: Path = options.work_dir
    started = time.process_time()
    items = _reconstruct(tokenizer, utterances, counts, folder)
    seconds = time.process_time() - started
    records, recogniser = _score(items, folder)
    facts = {
        "tokenizer": f"{options.tokenizer}, fingerprint {tokenizer.fingerprint}",
        "clips": f"held-out, language {options.language}, of {options.manifest}",
        "reconstruction": f"{seconds:.1f} s of CPU time for one encoding and {len(counts)} decodings of each clip",
        "protocol": f"{PROTOCOL}, {recogniser}",
    }
    lines = _heading(facts, arguments)
    for least_s in reversed(shortest_s):
        ids = {utterance.id: utterance.duration_s for utterance in utterances if utterance.duration_s >= least_s}
        lines += ["", f"## {len(ids)} clips of at least {least_s:g} s ({sum(ids.values()):.0f} s)", ""]
        lines += _table([record for record in records if record.utterance in ids])
    text = "\n".join([*lines, "", FOOT, ""])
    with atomic_write(options.output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tokenizer_card.py", description=__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="utterances.jsonl")
    parser.add_argument("--tokenizer", default="mel_rvq", help="name in configs/tokenizer, or a .yaml file")
    parser.add_argument(
        "--codebooks", default="1,2,4,8,all", help="numbers of codebooks to decode; default 1,2,4,8,all"
    )
    parser.add_argument("--output", type=Path, required=True, help="table to write (.md)")
    parser.add_argument(
        "--work-dir", type=Path, default=Path("runs/tokenizer_card"), help="reconstructions and records"
    )
    parser.add_argument("--language", default="en", help="language of the clips; the recogniser knows English only")
    parser.add_argument("--min-durations-s", default="0.8,1.5", help="one table for each; default 0.8,1.5")
    parser.add_argument("--limit", type=int, help="at most this many clips, the first by id")
    return parser.parse_args(arguments)


def _codebook_counts(words: str, num_codebooks: int) -> list[int]:
    counts = []
    for word in words.split(","):
        count = num_codebooks if word.strip() == "all" else int(word) if word.strip().isdigit() else 0
        if not 1 <= count <= num_codebooks:
            raise ConfigError(f"--codebooks: expected numbers from 1 to {num_codebooks} or 'all', got {word!r}")
        counts.append(count)
    return sorted(set(counts))


def _heldout(manifest: Path, language: str, min_duration_s: float, limit: int | None) -> list[Utterance]:
    chosen = [
        utterance
        for utterance in read_manifest(manifest)
        if utterance.language == language and is_heldout(utterance.text) and utterance.duration_s >= min_duration_s
    ]
    if not chosen:
        raise DataError(f"{manifest} holds no held-out clip of language {language!r}; make it from the whole corpus")
    return sorted(chosen, key=lambda utterance: utterance.id)[:limit]


def _reconstruct(
    tokenizer: AudioTokenizer, utterances: Sequence[Utterance], counts: Sequence[int], folder: Path
) -> list[Item]:
    """Write every clip as decoded from 1, 2, ... codebooks, and list them with the originals."""
    items = []
    rate_hz = tokenizer.spec.sampling_rate_hz
    for utterance in track(utterances, "reconstructing", len(utterances)):
        target = folder / ORIGINAL / f"{utterance.id}.wav"
        write_wav(target, load_audio(utterance.audio, SCORING_RATE_HZ), SCORING_RATE_HZ)
        items.append(_item(ORIGINAL, utterance, target, None))
        wave = load_audio(utterance.audio, rate_hz)
        (codes,) = tokenizer.encode([wave])
        for count in counts:
            (decoded,) = tokenizer.decode([codes[:, :count]], [len(wave)])
            path = folder / f"codebooks-{count}" / f"{utterance.id}.wav"
            write_wav(path, decoded, rate_hz)
            items.append(_item(str(count), utterance, path, target))
    return items


def _item(system: str, utterance: Utterance, wav: Path, target: Path | None) -> Item:
    return Item(
        system=system,
        group="heldout",
        utterance=utterance.id,
        text=utterance.text,
        language=utterance.language,
        metrics=(Metric.WER,) if target is None else (*SIGNAL_METRICS, Metric.WER),
        wav=wav,
        target=target,
    )


def _score(items: Sequence[Item], folder: Path) -> tuple[list[Record], str]:
    """One record per clip, system and metric, in the order of the items; and which recogniser made the WER."""
    backends = embedded_backends(AsrConfig())
    journal = Journal(folder)
    records = score_items(items, backends, journal)
    journal.finish(records)
    return records, str(backends.recogniser.revision)


def _heading(facts: Mapping[str, str], arguments: Sequence[str]) -> list[str]:
    packages = ("torch", "numpy", "scikit-learn", "faster-whisper", "pesq", "pystoi")
    versions = [f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
    facts = dict(facts) | {
        "hardware": f"{os.cpu_count()} cores, {_processor()}",
        "versions": ", ".join(versions),
        "date": f"{datetime.now(UTC):%Y-%m-%d}, one run",
        "command": f"`python benchmarks/tokenizer_card.py {shlex.join(arguments)}`",
    }
    return ["# Tokenizer reconstruction by number of codebooks", "", *(f"- {k}: {v}" for k, v in facts.items())]


def _table(records: Sequence[Record]) -> list[str]:
    """Rows by system in the order of the records."""
    columns = (*SIGNAL_METRICS, Metric.WER)
    header = " | ".join(METRICS[metric].label for metric in columns)
    lines = [f"| codebooks | {header} | failed |", "|---" * (len(columns) + 2) + "|"]
    for system in dict.fromkeys(record.system for record in records):
        cells, failed, expected = [], 0, 0
        for metric in columns:
            chosen = [record for record in records if (record.system, record.metric) == (system, metric)]
            score = score_records(metric, chosen, BootstrapConfig()) if chosen else None
            cells.append(_cell(metric, score))
            failed += sum(record.value is None for record in chosen)
            expected += len(chosen)
        lines.append(f"| {system} | {' | '.join(cells)} | {failed} of {expected} |")
    return lines


def _cell(metric: Metric, score: Score | None) -> str:
    if score is None or score.mean is None or score.low is None or score.high is None:
        return ""
    if METRICS[metric].percent:
        return f"{100 * score.mean:.1f} % ({100 * score.low:.1f} to {100 * score.high:.1f})"
    return f"{score.mean:.3f} ({score.low:.3f} to {score.high:.3f})"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in path.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(run_command(main))
