"""One object for every architecture: generate, batch, stream, compose, save."""

from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

import moss
from moss.errors import CheckpointError, DataError, GenerationError
from moss.generation.requests import Request
from moss.generation.speech import Speech
from moss.generation.speech_model import HISTORY, SpeechModel
from moss.tokenizer.interface import AudioTokenizer
from tests.generation.toy import CausalTokenizer, talking

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
    # Ids are those of the model that made them.
    with pytest.raises(GenerationError, match="'old': no such file, and no earlier generation of this model has that"):
        models["delay"].generate(TEXT, reference="old")


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
    with pytest.raises(GenerationError, match="speech-0001: the model made no complete frame of audio"):
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
    session = model.session(reference=voice, seed=9, max_frames=8)
    session.begin_turn()
    session.push_text(TEXT)
    session.end_text()
    frames = torch.stack(list(session.frames()))
    assert frames.shape == (8, 4)
    assert len(torch.cat(list(session.audio()))) == 8 * 20


def test_without_a_tokenizer_there_are_codes() -> None:
    model = talking("delay")
    silent = SpeechModel(model.model, model.layout, model.card, config=model.config)
    speech = silent.generate(TEXT, seed=1)
    assert torch.equal(speech.codes, model.generate(TEXT, seed=1).codes)
    for wanted in ("audio", "sampling_rate_hz", "duration_s"):
        with pytest.raises(GenerationError, match="loaded without an audio tokenizer; give `tokenizer=` to moss.load"):
            getattr(speech, wanted)
    assert all(chunk.audio is None for chunk in silent.stream(TEXT, seed=1))


def test_only_the_latest_generations_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert HISTORY >= 100
    monkeypatch.setattr("moss.generation.speech_model.HISTORY", 2)
    model = talking("delay")
    for name in "abc":
        model.generate(TEXT, id=name)
    model.generate(TEXT, reference="b")
    with pytest.raises(GenerationError, match="'a': no such file"):
        model.generate(TEXT, reference="a")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_saved_and_loaded_it_says_the_same(models: dict[str, SpeechModel], name: str, tmp_path: Path) -> None:
    model = models[name]
    folder = model.save(tmp_path / "checkpoint")
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "moss.json"]
    tokenizer = CausalTokenizer()
    assert isinstance(tokenizer, AudioTokenizer)
    loaded = moss.load(folder, tokenizer=tokenizer)
    settings: dict[str, Any] = {"seed": 1, "text_temperature": 0.0, "max_frames": 12}
    speech = loaded.generate(TEXT, **settings)
    assert isinstance(speech, Speech)
    assert torch.equal(speech.codes, model.generate(TEXT, **settings).codes)
    # A loaded model's weights lie side by side in memory, and are saved all the same.
    again = moss.load(loaded.save(tmp_path / "again"), tokenizer=tokenizer)
    assert torch.equal(again.generate(TEXT, **settings).codes, speech.codes)
    with pytest.raises(CheckpointError, match="again: exists already; choose another folder or delete it"):
        loaded.save(tmp_path / "again")
