"""Requests -> wav + codes + generations.jsonl, resumable: what a folder holds already is not made again."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from moss.config.generation import GenerationConfig
from moss.config.schema import to_plain
from moss.data.audio import load_audio, write_wav
from moss.data.files import append_jsonl, read_journal, sha256_file, write_bytes, write_jsonl
from moss.data.shard_writer import to_npy
from moss.errors import GenerationError, MossError
from moss.generation.references import Reference
from moss.generation.requests import Request, check_unique, request_json, request_seed
from moss.generation.speech import Speech
from moss.generation.speech_model import SpeechModel
from moss.model.safetensors_files import open_weights
from moss.tokenizer.interface import AudioTokenizer


class Engine:
    """Writes what a model says.

    Args:
        model: From `moss.load`, with an audio tokenizer and a folder.
        config: Samplers and limits; None takes the model's own.

    Raises:
        GenerationError: The model has no audio tokenizer.
    """

    def __init__(self, model: SpeechModel, config: GenerationConfig | None = None) -> None:
        if model.tokenizer is None or model.folder is None:
            raise GenerationError("writing wavs needs an audio tokenizer; load the model with `tokenizer=`")
        self.model, self.folder = model, model.folder
        self.tokenizer: AudioTokenizer = model.tokenizer
        self.config = model.config if config is None else config
        weights = "".join(sha256_file(file.path) for file in open_weights(self.folder).files)
        # A model that is used as another member reads another prompt.
        settings = json.dumps(to_plain(self.config), sort_keys=True)
        self._identity = hashlib.sha256(f"{weights}{settings}{model.model.config.member}".encode()).hexdigest()[:16]

    def run(self, requests: Sequence[Request], output: Path, reconstruct: bool = False) -> list[dict[str, Any]]:
        """Make every request and write the folder.

        Args:
            requests: With unique ids; clips are paths.
            output: Gets wavs/, codes/ and generations.jsonl.
            reconstruct: Also pass each request's target through the tokenizer, with the model's codebooks.

        Returns:
            The rows of generations.jsonl, in the order of the requests; a failed request has `wav: null` and `error`.

        Raises:
            GenerationError: Two requests with one id.
        """
        check_unique(requests)
        journal = output / "generations.jsonl"
        done = {row["request_id"]: row for row in read_journal(journal) if self._is_current(row, output, reconstruct)}
        todo = [request for request in requests if self._key(request) != done.get(request.id, {}).get("key")]
        for index, speech in self.model.speak(todo, self.config):
            row = self._written(todo[index], speech, output, reconstruct)
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
        return hashlib.sha256(f"{self._identity}{request_json(request)}".encode()).hexdigest()[:16]

    def _written(self, request: Request, speech: Speech, output: Path, reconstruct: bool) -> dict[str, Any]:
        """Decode one result to a waveform and write its files."""
        row = self._row(request) | {"stop_reason": speech.stop_reason, "seconds": speech.elapsed_s}
        try:
            if reconstruct and request.target is not None and speech.stop_reason is not None:
                wave = load_audio(request.target.wav, self.tokenizer.spec.sampling_rate_hz)
                codes = self.tokenizer.encode([wave], self.model.model.config.num_codebooks)[0]
                wav = f"reconstructions/{request.id}.wav"
                self._write(output / wav, self.tokenizer.decode([codes])[0])
                row["reconstruction"] = {"wav": wav}
            if speech.error is not None:
                return row | {"error": speech.error}
            codes = speech.codes
            row |= {"wav": f"wavs/{request.id}.wav", "codes": f"codes/{request.id}.npy", "frames": len(codes)}
            if speech.parts:
                row["parts"] = [asdict(part) for part in speech.parts]
            write_bytes(output / row["codes"], to_npy(codes.numpy().astype(np.uint16)))
            self._write(output / row["wav"], speech.audio)
        except MossError as error:
            return row | {"wav": None, "error": str(error)}
        return row

    def _write(self, path: Path, wave: Tensor) -> None:
        write_wav(path, wave, self.tokenizer.spec.sampling_rate_hz)

    def _row(self, request: Request) -> dict[str, Any]:
        """The row of a request before anything is made."""
        more = ("instruction", "ambient_sound", "prefix", "duration_s")
        return {
            "request_id": request.id,
            "text": request.text,
            "language": request.language,
            "wav": None,
            "codes": None,
            "frames": 0,
            "sampling_rate_hz": self.tokenizer.spec.sampling_rate_hz,
            "seed": request_seed(self.config.seed, request, plain=self.model.model.config.architecture == "realtime"),
            "sampler": to_plain(self.config),
            "stop_reason": None,
            "seconds": 0.0,
            "reference": _shown(request.reference),
            "tokens": request.tokens,
            "target": None if request.target is None else asdict(request.target),
            "group": request.group,
            "checkpoint": str(self.folder),
            "key": self._key(request),
            "error": None,
            **{name: _shown(getattr(request, name)) for name in more if getattr(request, name) is not None},
            **({} if request.references is None else {"references": [_shown(clip) for clip in request.references]}),
        }


def _shown(value: Reference | float | None) -> Any:
    """A field as JSON; requests with clips that are no paths are refused when their hash is made."""
    return str(value) if isinstance(value, Path) else value
