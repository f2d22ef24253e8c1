"""Requests -> wav + codes + generations.jsonl, resumable: what a folder holds already is not made again."""

import hashlib
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moss.config.generation import GenerationConfig
from moss.config.schema import build, to_plain
from moss.config.tokenizer import TokenizerConfig
from moss.data.audio import load_audio, write_wav
from moss.data.files import append_jsonl, read_journal, sha256_file, write_bytes, write_jsonl
from moss.data.loader import ExampleBuilder
from moss.data.progress import track
from moss.data.shard_writer import to_npy
from moss.data.text_tokenizer import build_text_tokenizer
from moss.errors import CheckpointError, GenerationError, MossError
from moss.generation.delay_codes import audio_segments
from moss.generation.delay_loop import Decoded, generate_delay, new_positions
from moss.generation.requests import Request, check_unique, request_seed
from moss.model.checkpoint import WEIGHTS_FILE, load_generator
from moss.sequence.layout import DelayLayout
from moss.tokenizer.build import build_tokenizer

logger = logging.getLogger(__name__)

REFERENCE_DBFS, MAX_GAIN_DB = -20.0, 3.0


class Engine:
    """A loaded generator with its tokenizers.

    Args:
        checkpoint: A checkpoint folder, or a run folder whose newest checkpoint is taken.
        config: Samplers and limits.
        device: Where the model runs.

    Raises:
        CheckpointError: No checkpoint, a damaged one, or tokenizers other than those it was trained with.
        GenerationError: The device cannot be used.
    """

    def __init__(self, checkpoint: Path, config: GenerationConfig, device: str = "cpu") -> None:
        self.config = config
        self.folder = newest_checkpoint(checkpoint)
        self.model, self.card = load_generator(self.folder)
        try:
            self.model.to(device)
        # A build without CUDA asserts, a missing or unknown device is a RuntimeError.
        except (RuntimeError, AssertionError) as error:
            raise GenerationError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
        text_tokenizer = build_text_tokenizer(self.card.text_tokenizer)
        if text_tokenizer.fingerprint != self.card.text_fingerprint:
            raise CheckpointError(
                f"{self.folder}: trained with text tokenizer {self.card.text_fingerprint}, this program has "
                f"{text_tokenizer.fingerprint}"
            )
        self.tokenizer = build_tokenizer(build(TokenizerConfig, self.card.tokenizer_config))
        if self.tokenizer.fingerprint != self.card.tokenizer["fingerprint"]:
            raise CheckpointError(
                f"{self.folder}: trained on codes of tokenizer {self.card.tokenizer['fingerprint']}, "
                f"{self.card.tokenizer['name']} is {self.tokenizer.fingerprint} here; encode and train again, or "
                "restore the weights"
            )
        special = self.model.config.special_tokens
        self.layout = DelayLayout(
            encode=text_tokenizer.encode,
            special=special,
            num_codebooks=self.model.config.num_codebooks,
            codebook_size=self.model.config.codebook_size,
        )
        self._identity = hashlib.sha256(
            f"{sha256_file(self.folder / WEIGHTS_FILE)}{json.dumps(to_plain(config), sort_keys=True)}".encode()
        ).hexdigest()[:16]

    def run(self, requests: Sequence[Request], output: Path, reconstruct: bool = False) -> list[dict[str, Any]]:
        """Make every request and write the folder.

        Args:
            requests: With unique ids.
            output: Gets wavs/, codes/ and generations.jsonl.
            reconstruct: Also pass each request's target through the tokenizer, with the model's codebooks.

        Returns:
            The rows of generations.jsonl, in the order of the requests; a failed request has `wav: null` and `error`.
        """
        check_unique(requests)
        journal = output / "generations.jsonl"
        done = {row["request_id"]: row for row in read_journal(journal) if self._is_current(row, output, reconstruct)}
        todo = [request for request in requests if self._key(request) != done.get(request.id, {}).get("key")]
        # Similar lengths share a batch; a request's result does not depend on its neighbours.
        todo.sort(key=lambda request: len(request.text))
        size = self.config.batch_size
        batches = [todo[i : i + size] for i in range(0, len(todo), size)]
        for batch in track(batches, "generating", len(batches)):
            for row in self._batch(batch, output, reconstruct):
                append_jsonl(journal, row)
                done[row["request_id"]] = row
        rows = [done[request.id] for request in requests]
        write_jsonl(journal, rows)
        return rows

    def _is_current(self, row: dict[str, Any], output: Path, reconstruct: bool) -> bool:
        """Whether a row of an earlier start is complete and has what is wanted now."""
        missing = reconstruct and row.get("target") is not None and row.get("reconstruction") is None
        return row.get("wav") is not None and (output / row["wav"]).is_file() and not missing

    def _key(self, request: Request) -> str:
        content = json.dumps(asdict(request), sort_keys=True)
        return hashlib.sha256(f"{self._identity}{content}".encode()).hexdigest()[:16]

    def _batch(self, batch: Sequence[Request], output: Path, reconstruct: bool) -> list[dict[str, Any]]:
        started_at = time.perf_counter()
        prompts: list[tuple[Request, Tensor]] = []
        rows = []
        for request in batch:
            try:
                prompts.append((request, self._prompt(request)))
            except MossError as error:
                rows.append(self._row(request) | {"error": str(error)})
        if prompts:
            seeds = [request_seed(self.config.seed, request) for request, _ in prompts]
            decoded = generate_delay(self.model, [prompt for _, prompt in prompts], seeds, self.config)
            elapsed_s = (time.perf_counter() - started_at) / len(prompts)
            rows += [
                self._finish(request, result, output, elapsed_s, reconstruct)
                for (request, _), result in zip(prompts, decoded, strict=True)
            ]
        return rows

    def _prompt(self, request: Request) -> Tensor:
        reference = None if request.reference is None else self._encode(request.reference, loudness=True)
        prompt = ExampleBuilder.prompt(request.text, request.language, request.tokens, reference)
        rows = self.layout.conversation(prompt)
        wanted = new_positions(self.config.max_frames, self.model.config.num_codebooks)
        if len(rows) + wanted > self.model.config.max_positions:
            raise GenerationError(
                f"the prompt has {len(rows)} positions and {self.config.max_frames} frames may follow, but the model "
                f"holds {self.model.config.max_positions}; shorten the text or the reference, or lower max_frames"
            )
        return rows

    def _encode(self, path: str, loudness: bool) -> Tensor:
        wave = load_audio(path, self.tokenizer.spec.sampling_rate_hz)
        wave = normalise_loudness(wave) if loudness else wave
        return self.tokenizer.encode([wave], self.model.config.num_codebooks)[0]

    def _finish(
        self, request: Request, decoded: Decoded, output: Path, elapsed_s: float, reconstruct: bool
    ) -> dict[str, Any]:
        """Decode one result to a waveform and write its files."""
        row = self._row(request) | {"stop_reason": "end" if decoded.ended else "max_frames", "seconds": elapsed_s}
        size = self.model.config.codebook_size
        segments = audio_segments(decoded.rows, decoded.num_given, size, self.config.compatibility)
        try:
            if reconstruct and request.target is not None:
                codes = self._encode(request.target.wav, loudness=False)
                wav = f"reconstructions/{request.id}.wav"
                self._write(output / wav, codes)
                row["reconstruction"] = {"wav": wav}
            if not segments:
                return row | {"error": "the model made no complete frame of audio"}
            codes = torch.cat([segment.codes[segment.num_given :] for segment in segments]).clamp(max=size)
            # A turn that was cut spent the positions of its closing rows on frames.
            codes = codes[: self.config.max_frames]
            row |= {"wav": f"wavs/{request.id}.wav", "codes": f"codes/{request.id}.npy", "frames": len(codes)}
            write_bytes(output / row["codes"], to_npy(codes.numpy().astype(np.uint16)))
            self._write(output / row["wav"], codes)
        except MossError as error:
            return row | {"wav": None, "error": str(error)}
        return row

    def _write(self, path: Path, codes: Tensor) -> None:
        write_wav(path, self.tokenizer.decode([codes])[0], self.tokenizer.spec.sampling_rate_hz)

    def _row(self, request: Request) -> dict[str, Any]:
        """The row of a request before anything is made."""
        return {
            "request_id": request.id,
            "text": request.text,
            "language": request.language,
            "wav": None,
            "codes": None,
            "frames": 0,
            "sampling_rate_hz": self.tokenizer.spec.sampling_rate_hz,
            "seed": request_seed(self.config.seed, request),
            "sampler": to_plain(self.config),
            "stop_reason": None,
            "seconds": 0.0,
            "reference": request.reference,
            "tokens": request.tokens,
            "target": None if request.target is None else asdict(request.target),
            "group": request.group,
            "checkpoint": str(self.folder),
            "key": self._key(request),
            "error": None,
        }


def newest_checkpoint(path: Path) -> Path:
    """The checkpoint folder meant by a path: itself, or the newest one of a run folder.

    Raises:
        CheckpointError: There is none.
    """
    if (path / WEIGHTS_FILE).is_file():
        return path
    candidates = sorted((path / "checkpoints").glob("step-*"))
    if not candidates:
        raise CheckpointError(f"{path}: neither a checkpoint nor a run folder with checkpoints")
    return candidates[-1]


def normalise_loudness(wave: Tensor, target_dbfs: float = REFERENCE_DBFS, max_gain_db: float = MAX_GAIN_DB) -> Tensor:
    """Bring a voice clip towards the level the published models expect, by at most `max_gain_db` either way.

    Args:
        wave: Shape (samples,).
        target_dbfs: RMS level in dB relative to full scale.
        max_gain_db: Bound of the gain.
    Source: MOSS-TTS moss_tts_delay/processing_moss_tts.py:756 @58b20a0.
    """
    rms = float(wave.square().mean().sqrt())
    if rms == 0.0:
        return wave
    gain_db = max(-max_gain_db, min(max_gain_db, target_dbfs - 20 * math.log10(rms)))
    return wave * (10 ** (gain_db / 20))
