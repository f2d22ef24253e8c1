"""Command line: `python -m moss.generation.realtime_demo --checkpoint DIR`; feeds a text word by word, times frames."""

import argparse
import itertools
import logging
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moss.command import run_command
from moss.errors import GenerationError

if TYPE_CHECKING:
    from moss.generation.realtime_session import RealtimeSession

TEXT = (
    "Hello, and thank you for calling. I am speaking while my sentences are still being written, "
    "one word after the other, so you need not wait for the end of a paragraph."
)
PUBLISHED_FRAME_S = 0.08
"""Duration of a frame of the published tokenizers, for a model without one."""


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        prog="python -m moss.generation.realtime_demo",
        description="Feed a text to a Realtime model one word at a time and print how fast frames come.",
        epilog="Without --checkpoint a small random model speaks: noise, good for nothing but the latencies.",
    )
    add = made.add_argument
    add("--checkpoint", type=Path, help="checkpoint, run or published folder of a Realtime model")
    add("--text", default=TEXT, help="what to say (default: two sentences)")
    add("--reference", type=Path, help="recording whose voice is used; needs --checkpoint")
    add("--word-delay-ms", type=float, default=0.0, help="pause before each further word (default: %(default)s)")
    add("--output", type=Path, help="write the speech to this wav; needs --checkpoint")
    add("--max-frames", type=int, default=250, help="cut after so many frames (default: %(default)s)")
    add("--seed", type=int, default=0)
    add("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: %(default)s)")
    return made


@dataclass(slots=True, kw_only=True, eq=False)
class Timings:
    """What a run measured, in seconds.

    Attributes:
        codes: What was said, shape (frames, codebooks).
        latencies_s: Time that each frame took to compute.
        first_frame_s: From the first word to the first frame, pauses included.
        total_s: From the first word to the last frame.
        decodings_s: Time that turning each frame into sound took; empty without an audio tokenizer.
        audio: The sound, shape (samples,) or (2, samples); None likewise.
    """

    codes: Tensor
    latencies_s: list[float]
    first_frame_s: float
    total_s: float
    decodings_s: list[float] = field(default_factory=list)
    audio: Tensor | None = None


def feed_words(session: "RealtimeSession", text: str, word_delay_s: float = 0.0) -> Timings:
    """Speak one turn, its text fed one word at a time and every frame taken, and heard, as soon as it exists.

    Raises:
        GenerationError: The text is empty, or the model ends before its first frame.
    """
    words = re.findall(r"\s*\S+", text)
    if not words:
        raise GenerationError("--text is empty; give at least one word")
    latencies_s: list[float] = []
    decodings_s: list[float] = []
    waves: list[Tensor] = []
    session.begin_turn()
    started_s = time.perf_counter()
    first_frame_s = 0.0
    for index in range(len(words) + 1):
        if index < len(words):
            time.sleep(word_delay_s if index else 0.0)
            session.push_text(words[index])
        else:
            session.end_text()
        before_s = time.perf_counter()
        for _ in session.frames():
            now_s = time.perf_counter()
            first_frame_s = first_frame_s or now_s - started_s
            latencies_s.append(now_s - before_s)
            before_s = now_s
            if session.has_audio:
                # A frame that exists is decoded, no other one is made.
                waves += itertools.islice(session.audio(), 1)
                before_s = time.perf_counter()
                decodings_s.append(before_s - now_s)
    if not latencies_s:
        raise GenerationError("the model ended its turn before the first frame; try another --seed or --text")
    return Timings(
        codes=session.codes(),
        latencies_s=latencies_s,
        first_frame_s=first_frame_s,
        total_s=time.perf_counter() - started_s,
        decodings_s=decodings_s,
        audio=torch.cat(waves, dim=-1) if waves else None,
    )


def warm_up(session: "RealtimeSession") -> None:
    """Speak a few frames that nobody hears, so that buffers are allocated and kernels chosen; forget them."""
    session.begin_turn()
    session.push_text("one two three")
    session.end_text()
    for _ in itertools.islice(session.audio() if session.has_audio else session.frames(), 10):
        pass
    session.reset()


def report(timings: Timings, frame_s: float, stop_reason: str) -> str:
    """The measurements in words."""
    latencies_s = torch.tensor(timings.latencies_s)
    p50, p95 = _quantiles_ms(timings.latencies_s)
    computing_s, audio_s = float(latencies_s.sum()), len(latencies_s) * frame_s
    decoding = ""
    if timings.decodings_s:
        decoding_p50, decoding_p95 = _quantiles_ms(timings.decodings_s)
        both = (computing_s + sum(timings.decodings_s)) / audio_s
        decoding = (
            f"decoding a frame to sound p50 {decoding_p50:.1f} ms, p95 {decoding_p95:.1f} ms; real-time factor with it "
            f"{both:.3f}\n"
        )
    return (
        f"{len(latencies_s)} frames, {audio_s:.1f} s of audio, stop reason {stop_reason}\n"
        f"first frame after {1000 * timings.first_frame_s:.1f} ms (computing {1000 * timings.latencies_s[0]:.1f} ms)\n"
        f"per frame p50 {p50:.1f} ms, p95 {p95:.1f} ms; a frame lasts {1000 * frame_s:.0f} ms\n"
        f"real-time factor {computing_s / audio_s:.3f} (computing over audio; below 1 keeps up)\n" + decoding
    )


def _quantiles_ms(times_s: Sequence[float]) -> list[float]:
    """The median and the 95th percentile."""
    return [1000 * float(torch.tensor(times_s).quantile(share)) for share in (0.5, 0.95)]


def random_session(max_frames: int, seed: int, device: str) -> "RealtimeSession":
    """A session with an untrained model of the preset `realtime_xs`, on the compact text tokenizer."""
    from moss.config.compose import load_config
    from moss.config.generation import RECOMMENDED
    from moss.config.model import TextTokenizerConfig, TextTokenizerKind
    from moss.config.train import TrainConfig
    from moss.data.text_tokenizer import build_text_tokenizer
    from moss.generation.loading import usable_device
    from moss.generation.realtime_session import RealtimeSession
    from moss.model.build import build_model
    from moss.model.realtime import RealtimeModel
    from moss.sequence.layout import build_layout
    from moss.sequence.layout_realtime import RealtimeLayout

    torch.manual_seed(seed)
    config = load_config(TrainConfig, "train", ["model=realtime_xs"]).model
    model = build_model(config).eval().to(usable_device(device))
    encode = build_text_tokenizer(TextTokenizerConfig(kind=TextTokenizerKind.compact)).encode
    layout = build_layout(config, encode)
    assert isinstance(model, RealtimeModel)
    assert isinstance(layout, RealtimeLayout)
    model.fuse_()
    settings = replace(RECOMMENDED["realtime"], max_frames=max_frames, runaway_repeats=0)
    return RealtimeSession(model, layout, config=settings, seed=seed)


def main(arguments: Sequence[str]) -> None:
    """Speak as the options ask for and print the latencies.

    Raises:
        GenerationError: Options that need a checkpoint, an empty text, or a model that does not converse.
    """
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    frame_s = PUBLISHED_FRAME_S
    if options.checkpoint is None:
        if options.reference is not None or options.output is not None:
            raise GenerationError("--reference and --output need --checkpoint: the random model has no voice")
        sys.stdout.write("no --checkpoint: a small random model, so this is noise; only the latencies mean something\n")
        session, tokenizer = random_session(options.max_frames, options.seed, options.device), None
    else:
        from moss.data.audio import write_wav
        from moss.generation.loading import load_speech_model

        speech = load_speech_model(options.checkpoint, device=options.device)
        tokenizer = speech.tokenizer
        if options.output is not None and tokenizer is None:
            raise GenerationError("--output: this checkpoint has no audio tokenizer, so there is no sound to write")
        session = speech.session(reference=options.reference, seed=options.seed, max_frames=options.max_frames)
        frame_s = frame_s if tokenizer is None else tokenizer.spec.seconds(1)
    warm_up(session)
    timings = feed_words(session, options.text, options.word_delay_ms / 1000)
    sys.stdout.write(report(timings, frame_s, str(session.stop_reason)))
    if options.output is not None:
        assert tokenizer is not None
        # As it was heard, a frame at a time.
        assert timings.audio is not None
        write_wav(options.output, timings.audio, tokenizer.spec.sampling_rate_hz)
        sys.stdout.write(f"{options.output}\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
