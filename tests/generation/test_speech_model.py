"""One object for every architecture: generate, batch, stream, compose, save."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

import moss
from moss.errors import CheckpointError, DataError, GenerationError
from moss.generation import speech_model
from moss.generation.requests import Request
from moss.generation.speech import Speech
from moss.generation.speech_model import SpeechModel
from moss.tokenizer.interface import AudioTokenizer
from tests.generation.toy import CausalTokenizer, small_cat, talking

ARCHITECTURES = ["delay", "local", "local_v15", "realtime"]
TEXT = "Hello there."


@pytest.fixture(scope="module")
def models() -> dict[str, SpeechModel]:
    return {name: talking(name, "realtime" if name == "realtime" else "tts") for name in ARCHITECTURES}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_text_becomes_codes_and_sound(models: dict[str, SpeechModel], name: str, tmp_path: Path) -> None:
    model = models[name]
    speech = model.generate(TEXT, seed=1)
    frames = len(speech.codes)
    assert 0 < frames <= 12
    assert speech.codes.shape == (frames, 4)
    assert speech.codes.dtype is torch.int64
    assert 0 <= int(speech.codes.min()) <= int(speech.codes.max()) < 16
    assert torch.equal(speech.audio, CausalTokenizer().decode([speech.codes])[0])
    assert (speech.text, speech.seed, speech.sampling_rate_hz) == (TEXT, 1, 250)
    assert speech.duration_s == frames * 0.08
    assert speech.stop_reason in ("end", "max_frames")
    assert soundfile.info(speech.save(tmp_path / "a.wav")).frames == frames * 20


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_seed_decides_and_nothing_else(models: dict[str, SpeechModel], name: str) -> None:
    model = models[name]
    speech = model.generate(TEXT, seed=1)
    assert torch.equal(model.generate(TEXT, seed=1, id="called otherwise").codes, speech.codes)
    assert not torch.equal(model.generate(TEXT, seed=2).codes, speech.codes)
    # Neighbours in a batch have no say, and the order is that of the requests.
    texts = ["A much longer text than the others, it says.", TEXT, "Hi.", "Good day to you."]
    batch = model.batch([{"text": text, "seed": 1} for text in texts])
    assert [made.text for made in batch] == texts
    assert torch.equal(batch[1].codes, speech.codes)
    for made in batch:
        assert torch.equal(made.codes, model.generate(made.text, seed=1).codes)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("chunk_frames", [1, 5, 100])
def test_a_stream_is_the_offline_result(models: dict[str, SpeechModel], name: str, chunk_frames: int) -> None:
    model = models[name]
    whole = model.generate(TEXT, seed=4)
    chunks = list(model.stream(TEXT, seed=4, chunk_frames=chunk_frames, id="streamed"))
    assert torch.equal(torch.cat([chunk.codes for chunk in chunks]), whole.codes)
    assert torch.equal(torch.cat([chunk.audio for chunk in chunks if chunk.audio is not None]), whole.audio)
    assert all(len(chunk.codes) == chunk_frames for chunk in chunks[:-1])
    if name != "realtime":
        # The whole stream can be referred to.
        again = model.generate(TEXT, seed=4, reference="streamed")
        assert torch.equal(again.codes, model.generate(TEXT, seed=4, reference=whole).codes)


@pytest.mark.parametrize("name", ["delay", "local", "local_v15"])
def test_a_continuation_does_not_contain_its_prefix(models: dict[str, SpeechModel], name: str) -> None:
    model = models[name]
    first = model.generate(TEXT, seed=1)
    more = model.generate("And on it goes.", seed=1, prefix=first)
    assert len(more.audio) == 20 * len(more.codes)
    # Decoded behind the prefix: the first frame holds the prefix's echo.
    behind = CausalTokenizer().decode([torch.cat([first.codes, more.codes])])[0]
    assert torch.equal(more.audio, behind[20 * len(first.codes) :])
    chunks = list(model.stream("And on it goes.", seed=1, prefix=first, chunk_frames=2))
    assert torch.equal(torch.cat([chunk.codes for chunk in chunks]), more.codes)
    assert torch.equal(torch.cat([chunk.audio for chunk in chunks if chunk.audio is not None]), more.audio)


@pytest.mark.parametrize(("name", "audio_channels"), [("delay", 1), ("local", 1), ("local_v15", 2), ("realtime", 1)])
def test_a_stream_with_a_streaming_tokenizer_is_the_offline_sound(
    models: dict[str, SpeechModel], name: str, audio_channels: int, tmp_path: Path
) -> None:
    mute = models[name]
    tokenizer = small_cat(audio_channels=audio_channels)
    model = SpeechModel(mute.model, mute.layout, mute.card, tokenizer=tokenizer, config=mute.config)
    first = model.generate(TEXT, seed=4)
    prefix = None if name == "realtime" else first
    whole = model.generate("And on it goes.", seed=1, prefix=prefix)
    shape = (20 * len(whole.codes),) if audio_channels == 1 else (2, 20 * len(whole.codes))
    assert whole.audio.shape == shape
    for chunk_frames in (1, 5):
        chunks = list(model.stream("And on it goes.", seed=1, prefix=prefix, chunk_frames=chunk_frames))
        assert torch.equal(torch.cat([chunk.codes for chunk in chunks]), whole.codes)
        made = torch.cat([chunk.audio for chunk in chunks if chunk.audio is not None], dim=-1)
        assert made.shape == shape
        assert torch.allclose(made, whole.audio, rtol=0, atol=5e-5)
    info = soundfile.info(whole.save(tmp_path / "a.wav"))
    assert (info.frames, info.channels) == (20 * len(whole.codes), audio_channels)


def test_generations_compose(models: dict[str, SpeechModel]) -> None:
    designer, dialogue = talking("delay", "voice_generator"), talking("delay", "ttsd")
    voice = designer.generate("I sound like this.", instruction="an old man", id="old")
    for name in ("delay", "local", "realtime"):
        with_voice = models[name].generate(TEXT, reference=voice, seed=1)
        assert torch.equal(with_voice.codes, models[name].generate(TEXT, reference=voice.codes, seed=1).codes)
        assert not torch.equal(with_voice.codes, models[name].generate(TEXT, seed=1).codes)
    text = "[S1] How are you? [S2] Fine."
    made = dialogue.generate(text, references=[voice, None])
    assert torch.equal(made.codes, dialogue.generate(text, references=[voice.codes, None]).codes)
    # Ids are known to every model of the process, and the newest is meant.
    assert torch.equal(dialogue.generate(text, references=["old", None]).codes, made.codes)
    assert torch.equal(
        models["realtime"].generate(TEXT, reference="old").codes,
        models["realtime"].generate(TEXT, reference=voice).codes,
    )
    again = models["local"].generate(TEXT, id="old", seed=3)
    assert torch.equal(
        models["delay"].generate(TEXT, reference="old").codes, models["delay"].generate(TEXT, reference=again).codes
    )
    with pytest.raises(GenerationError, match="'nobody': no such file, and none of the latest generations of this pro"):
        models["delay"].generate(TEXT, reference="nobody")


def test_codes_of_another_tokenizer_are_heard_or_refused(models: dict[str, SpeechModel]) -> None:
    class Other(CausalTokenizer):
        fingerprint = "other"

    base = models["delay"]
    other = SpeechModel(base.model, base.layout, base.card, tokenizer=Other(), config=base.config)
    voice = other.generate(TEXT, id="elsewhere")
    heard = base.tokenizer.encode([voice.audio], 4)[0]  # type: ignore[union-attr]
    made = base.generate(TEXT, reference="elsewhere", seed=1)
    # Loudness is moved as a recording's is.
    assert torch.equal(made.codes, base.generate(TEXT, reference=(voice.audio, 250), seed=1).codes)
    assert len(heard) == len(voice.codes)

    def silent(fingerprint: str) -> SpeechModel:
        card = replace(base.card, tokenizer={"name": "x", "fingerprint": fingerprint})
        return SpeechModel(base.model, base.layout, card, config=base.config)

    silent("aa").generate(TEXT, id="mute")
    assert silent("aa").generate(TEXT, reference="mute").codes.shape[1] == 4
    with pytest.raises(GenerationError, match="'mute': has codes of tokenizer aa, the model speaks those of bb; load"):
        silent("bb").generate(TEXT, reference="mute")


def prompts_of(model: SpeechModel, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> list[Any]:
    """What the decode loop is given by default and under compatibility=reference."""
    seen: list[Any] = []
    original = speech_model.generate

    def listening(model: Any, prompts: Any, *more: Any, **named: Any) -> Any:
        seen.extend(prompts)
        return original(model, prompts, *more, **named)

    monkeypatch.setattr(speech_model, "generate", listening)
    for compatibility in ("none", "reference"):
        model.generate(**fields, compatibility=compatibility)
    monkeypatch.undo()
    return seen


def test_compatibility_reaches_the_prompt(models: dict[str, SpeechModel], monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(0, 16, (6, 4))
    # The published continuation of v1.5 leaves the references out.
    fields: dict[str, Any] = {"text": "On.", "prefix": codes, "prompt_text": "So.", "reference": codes[:5]}
    kept, dropped = prompts_of(models["local_v15"], monkeypatch, **fields)
    plain, _ = prompts_of(models["local_v15"], monkeypatch, **{**fields, "reference": None})
    assert torch.equal(dropped, plain)
    assert len(kept) > len(dropped)
    # The published normaliser loses what is protected twice.
    ours, published = prompts_of(models["delay"], monkeypatch, text="See #hi-@bob now.")
    assert not torch.equal(ours, published)
    # The published header of Realtime merges with line breaks at a text's beginning.
    turn: dict[str, Any] = {"text": "On.", "prefix": codes, "prompt_text": "\nSo it goes, on and on and on, for long."}
    base = models["realtime"]
    encode = base.layout.encode
    # As the published text tokenizer does and the compact one does not.
    layout = replace(base.layout, encode=lambda text: encode(text.replace("\n\n", "\t")))  # type: ignore[type-var]
    merging = SpeechModel(base.model, layout, base.card, config=base.config)
    ours, published = prompts_of(merging, monkeypatch, **turn)
    assert not torch.equal(ours.rows, published.rows)
    # Nothing differs where the published code does not.
    assert torch.equal(*prompts_of(models["local"], monkeypatch, text=TEXT))


def test_settings_of_one_call(models: dict[str, SpeechModel]) -> None:
    model = models["delay"]
    greedy = model.generate(TEXT, temperature=0.0, seed=1)
    assert torch.equal(greedy.codes, model.generate(TEXT, temperature=0.0, seed=2).codes)
    assert len(model.generate(TEXT, max_frames=3).codes) == 3
    assert model.config.max_frames == 12
    few = models["local"].generate(TEXT, num_codebooks=2, seed=1)
    assert few.codes.shape[1] == few.num_codebooks == 2
    assert len(few.audio) == 20 * len(few.codes)
    batch = models["local"].generate(requests=[{"text": TEXT}], num_codebooks=2, seed=1)
    assert torch.equal(batch[0].codes, few.codes)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_answer_may_fill_the_context_to_its_end(name: str) -> None:
    model = talking(name, "realtime" if name == "realtime" else "tts", max_positions=300)
    prompts = model._prompts
    prompt = prompts.prompt(prompts.resolve(Request(text="Hello")))
    longest = 300 - prompts.num_positions(prompt, 0)
    if name == "realtime":
        # The text stands beside the frames, so that only what leads them counts.
        longest = 300 - len(prompt.rows) - min(12, len(prompt.text_ids))  # type: ignore[union-attr]
    assert 0 < len(model.generate("Hello", max_frames=longest).codes) <= longest
    with pytest.raises(GenerationError, match=f"{longest + 1} frames may follow, but the model holds 300"):
        model.generate("Hello", max_frames=longest + 1)


def test_a_failing_request_is_an_error_alone_and_a_row_in_a_batch(models: dict[str, SpeechModel]) -> None:
    model = models["delay"]
    bad: dict[str, Any] = {"text": TEXT, "reference": "nowhere.wav", "id": "bad"}
    with pytest.raises(GenerationError, match=r"nowhere\.wav"):
        model.generate(**bad)
    good, failed = model.batch([Request(text=TEXT, id="good"), bad])
    assert good.error is None
    assert failed.error is not None
    assert "nowhere.wav" in failed.error
    assert len(failed.codes) == 0
    with pytest.raises(GenerationError, match=r"bad: has no audio, its request failed: .*nowhere\.wav"):
        _ = failed.audio
    with pytest.raises(GenerationError, match="reference 'bad': no such|'bad': no such file"):
        model.generate(TEXT, reference="bad")


def test_a_model_that_makes_no_frame() -> None:
    model = talking("delay")
    special = model.model.config.special_tokens  # type: ignore[attr-defined]
    with torch.no_grad():
        # A dimension that every text has speaks against audio and for the end.
        head = model.model.head_weight(0)
        model.model.backbone.embed_tokens.weight[:, 2] = 20
        head[[special.audio_start, special.im_end]] = 0
        head[[special.audio_start, special.im_end], 2] = torch.tensor([-20.0, 20.0])
    with pytest.raises(GenerationError, match=r"speech-\d{4}: the model made no complete frame of audio"):
        model.generate(TEXT)
    with pytest.raises(GenerationError, match="the model made no complete frame of audio"):
        list(model.stream(TEXT))


def test_mistakes(models: dict[str, SpeechModel]) -> None:
    model = models["delay"]
    with pytest.raises(GenerationError, match="unknown field or setting 'langauge'; a request has id, text, language"):
        model.generate(TEXT, langauge="en")
    with pytest.raises(GenerationError, match="unknown setting 'text'; expected one of temperature"):
        model.batch([{"text": TEXT}], text="x")
    with pytest.raises(GenerationError, match="text and requests are both given; put the text into a request"):
        model.generate("x", requests=[{"text": TEXT}])  # type: ignore[call-overload]
    with pytest.raises(GenerationError, match="request id 'a' is given twice"):
        model.batch([{"text": TEXT, "id": "a"}, {"text": "Hi.", "id": "a"}])
    with pytest.raises(GenerationError, match="chunk_frames=0: expected at least 1"):
        model.stream(TEXT, chunk_frames=0)
    with pytest.raises(DataError, match="language"):
        model.generate(TEXT, language="Klingon")
    with pytest.raises(GenerationError, match="only Realtime models converse, this one is delay; use"):
        model.session()


def test_a_session_says_what_generate_says(models: dict[str, SpeechModel]) -> None:
    model = models["realtime"]
    voice = torch.randint(0, 16, (6, 4))
    for seed in (9, 10):
        whole = model.generate(TEXT, reference=voice, seed=seed, max_frames=8)
        session = model.session(reference=voice, seed=seed, max_frames=8)
        session.begin_turn()
        for piece in (TEXT[:3], TEXT[3:]):
            session.push_text(piece)
        session.end_text()
        wave = torch.cat(list(session.audio()))
        assert torch.equal(session.codes(), whole.codes)
        assert torch.equal(wave, whole.audio)
    assert model.config.audio.temperature > 0
    assert not torch.equal(whole.codes, model.generate(TEXT, reference=voice, seed=9, max_frames=8).codes)


def test_without_a_tokenizer_there_are_codes() -> None:
    model = talking("delay")
    silent = SpeechModel(model.model, model.layout, model.card, config=model.config)
    speech = silent.generate(TEXT, seed=1)
    assert torch.equal(speech.codes, model.generate(TEXT, seed=1).codes)
    for wanted in ("audio", "sampling_rate_hz", "duration_s"):
        with pytest.raises(GenerationError, match="loaded without an audio tokenizer; give `tokenizer=` to moss.load"):
            getattr(speech, wanted)
    assert all(chunk.audio is None for chunk in silent.stream(TEXT, seed=1))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_saved_and_loaded_it_says_the_same(models: dict[str, SpeechModel], name: str, tmp_path: Path) -> None:
    model = models[name]
    folder = model.save(tmp_path / "checkpoint")
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "moss.json"]
    tokenizer = CausalTokenizer()
    assert isinstance(tokenizer, AudioTokenizer)
    loaded = moss.load(folder, tokenizer=tokenizer)
    settings: dict[str, Any] = {"seed": 1, "max_frames": 12}
    if name != "realtime":
        settings["text_temperature"] = 0.0
    speech = loaded.generate(TEXT, **settings)
    assert isinstance(speech, Speech)
    assert torch.equal(speech.codes, model.generate(TEXT, **settings).codes)
    # A loaded model's weights lie side by side in memory, and are saved all the same.
    again = moss.load(loaded.save(tmp_path / "again"), tokenizer=tokenizer)
    assert torch.equal(again.generate(TEXT, **settings).codes, speech.codes)
    with pytest.raises(CheckpointError, match="again: exists already; choose another folder or delete it"):
        loaded.save(tmp_path / "again")
