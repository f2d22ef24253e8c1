"""Long texts are spoken in parts that carry on each other; codes are joined without loss or repetition."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moss.config.model import Member
from moss.errors import GenerationError
from moss.generation.long_generation import fitting_parts, speak_parts, split_text, tail_text
from moss.generation.requests import Request
from moss.generation.segments import AudioSegment
from moss.generation.speech import Speech
from moss.generation.speech_model import SpeechModel
from tests.generation.toy import talking

TEXT = "One two three. Four five six. Seven eight nine. Ten eleven twelve."
PARTS = ["One two three.", "Four five six.", "Seven eight nine.", "Ten eleven twelve."]
DIALOGUE = "[S1] Hello there. [S2] Good day. [S3] And me. [S1] Well then."


class Speaker:
    """Stands in for a model: counts upwards, one frame for two characters, and remembers what it was asked."""

    def __init__(self, stops: dict[int, str] | None = None) -> None:
        self.asked: list[Request] = []
        self.stops = stops or {}
        self._next = 0

    def __call__(self, request: Request) -> Speech:
        number = len(self.asked)
        self.asked.append(request)
        frames = len(request.text or "") // 2
        codes = torch.arange(self._next, self._next + frames)[:, None].repeat(1, 2)
        self._next += frames
        given = request.prefix if isinstance(request.prefix, Tensor) else codes[:0]
        return Speech(
            id=request.id,
            text=request.text,
            segments=[AudioSegment(torch.cat([given, codes]), len(given))],
            stop_reason=self.stops.get(number, "end"),
            seed=0,
            num_codebooks=2,
            elapsed_s=1.0,
        )


def always(_: Request) -> bool:
    return True


def test_parts_join_without_loss_and_hold_the_tail() -> None:
    speaker = Speaker()
    speech = speak_parts(Request(id="a", text=TEXT), Member.tts, PARTS, 4, always, speaker)
    total = sum(len(part) // 2 for part in PARTS)
    # The counting model makes every frame once: nothing is lost, no prefix frame repeated.
    assert torch.equal(speech.codes[:, 0], torch.arange(total))
    assert speech.text == TEXT
    assert (speech.stop_reason, speech.elapsed_s) == ("end", 4.0)
    assert [(part.text, part.num_frames, part.stop_reason) for part in speech.parts] == [
        (part, len(part) // 2, "end") for part in PARTS
    ]
    assert [request.text for request in speaker.asked] == PARTS
    assert speaker.asked[0].prefix is None
    made = 0
    for before, request in zip(PARTS[:-1], speaker.asked[1:], strict=True):
        made += len(before) // 2
        assert isinstance(request.prefix, Tensor)
        assert request.prefix[:, 0].tolist() == list(range(made - 4, made))
        # Four of seven or eight frames: the last words of the part before.
        assert request.prompt_text == before.split(" ", 1)[1]


def test_a_shorter_tail_where_there_is_no_room() -> None:
    def short(request: Request) -> bool:
        return request.prefix is None or len(request.prefix) <= 3  # type: ignore[arg-type]

    speaker = Speaker()
    speak_parts(Request(id="a", text=TEXT), Member.tts, PARTS[:2], 6, short, speaker)
    assert len(speaker.asked[1].prefix) == 3  # type: ignore[arg-type]
    speaker = Speaker()
    speak_parts(Request(id="a", text=TEXT), Member.tts, PARTS[:2], 6, lambda part: part.prefix is None, speaker)
    assert speaker.asked[1].prefix is None


def test_a_part_that_went_wrong_is_not_carried_on() -> None:
    speaker = Speaker({1: "runaway"})
    speech = speak_parts(Request(id="a", text=TEXT), Member.tts, PARTS, 4, always, speaker)
    assert speech.stop_reason == "runaway"
    assert [part.stop_reason for part in speech.parts] == ["end", "runaway", "end", "end"]
    # The third part carries on the first.
    assert torch.equal(speaker.asked[2].prefix, speaker.asked[1].prefix)  # type: ignore[arg-type]
    assert speaker.asked[2].prompt_text == speaker.asked[1].prompt_text


def test_a_prefix_of_ones_own_comes_first_and_is_cut_off() -> None:
    given = torch.full((3, 2), 99)
    speaker = Speaker()
    request = Request(id="a", text=TEXT, prefix=given, prompt_text="Zero.", tokens=33)
    speech = speak_parts(request, Member.tts, PARTS[:2], 4, always, speaker)
    assert torch.equal(speaker.asked[0].prefix, given)  # type: ignore[arg-type]
    assert torch.equal(speech.segments[0].codes[:3], given)
    assert torch.equal(speech.codes[:, 0], torch.arange(14))
    # Wanted lengths are shared by characters.
    assert [request.tokens for request in speaker.asked] == [16, 16]


def test_speakers_of_a_dialogue_keep_their_clips() -> None:
    clips = [torch.full((2, 2), number) for number in (1, 2, 3)]
    parts = split_text(DIALOGUE, Member.ttsd, 20)
    assert len(parts) == 4
    speaker = Speaker()
    request = Request(id="a", text=DIALOGUE, references=clips)
    speak_parts(request, Member.ttsd, parts, 100, always, speaker)
    assert [request.text for request in speaker.asked] == [
        "[S1]Hello there.",
        "[S2]Good day.",
        "[S2]And me.",
        "[S2]Well then.",
    ]
    assert [request.prompt_text for request in speaker.asked] == [
        None,
        "[S1] Hello there.",
        "[S1] Good day.",
        "[S1] And me.",
    ]
    voices = [[int(clip[0, 0]) for clip in request.references] for request in speaker.asked]  # type: ignore[index,union-attr]
    # The numbers are those of a part, the clips those of the speakers.
    assert voices == [[1], [1, 2], [2, 3], [3, 1]]


def test_clips_that_a_dialogue_carries_on_stay_before_every_part() -> None:
    clips = torch.full((5, 2), 77)
    words = "[S1] I am. [S2] So am I."
    text = "[S1] Hello there. [S2] Good day."
    speaker = Speaker()
    request = Request(id="a", text=text, prefix=clips, prompt_text=words)
    speech = speak_parts(request, Member.ttsd, split_text(text, Member.ttsd, 20), 3, always, speaker)
    first, second = speaker.asked
    assert (first.prompt_text, second.prompt_text) == (words, f"{words}[S1] there.")
    assert torch.equal(first.prefix, clips)  # type: ignore[arg-type]
    assert torch.equal(second.prefix[:5], clips)  # type: ignore[index]
    assert second.prefix[5:, 0].tolist() == [5, 6, 7]  # type: ignore[index]
    assert torch.equal(speech.codes[:, 0], torch.arange(len(speech.codes)))


@pytest.mark.parametrize(
    ("text", "share", "tail"),
    [
        ("one two three four", 1.0, "one two three four"),
        ("one two three four", 0.3, "four"),
        ("one two three four", 0.35, "three four"),
        ("天地玄黄宇宙洪荒", 0.5, "宇宙洪荒"),
        ("[S1] one two [S2] three four", 0.15, "[S2] four"),
        ("[S1] one two [S2] three four", 0.7, "[S1] two [S2] three four"),
        ("[S1] one two [S2] three four", 1.0, "[S1] one two [S2] three four"),
    ],
)
def test_words_of_a_tail(text: str, share: float, tail: str) -> None:
    assert tail_text(text, share) == tail


def test_texts_are_cut_until_every_part_has_room() -> None:
    def room(chars: int) -> Callable[[Request], bool]:
        return lambda part: len(part.text or "") + len(part.prompt_text or "") <= chars

    tail, request = torch.zeros(4, 2), Request(id="a", text=TEXT)
    assert fitting_parts(request, Member.tts, tail, room(200)) == [TEXT]
    # The words of the part before count, because a tail may hold all of them.
    assert fitting_parts(request, Member.tts, tail, room(35)) == PARTS
    assert fitting_parts(replace(request, max_chars=35), Member.tts, tail, room(200)) == [
        "One two three. Four five six.",
        "Seven eight nine.",
        "Ten eleven twelve.",
    ]
    # A tail is given up before the text is.
    assert fitting_parts(request, Member.tts, torch.zeros(4, 2), lambda part: part.prefix is None) == [TEXT]
    assert fitting_parts(request, Member.tts, tail, room(1)) is None


@pytest.fixture(scope="module")
def model() -> SpeechModel:
    return talking("delay", max_positions=230)


def test_a_model_speaks_what_does_not_fit(model: SpeechModel) -> None:
    long = "Here is one sentence more. " * 40
    speech = model.generate(long, seed=3, id="long")
    assert len(speech.parts) > 1
    assert sum(part.num_frames for part in speech.parts) == len(speech.codes)
    assert "".join(part.text for part in speech.parts).replace(" ", "") == long.replace(" ", "")
    assert len(speech.audio) == 20 * len(speech.codes)
    assert torch.equal(model.generate(long, seed=3).codes, speech.codes)
    (batched,) = model.batch([{"text": long, "seed": 3}])
    assert torch.equal(batched.codes, speech.codes)
    # Asked for explicitly, a text that would fit is cut as well.
    assert len(model.generate("One two. Three four.", max_chars=12).parts) == 2
    assert model.generate("One two. Three four.").parts == ()


def test_nothing_helps_where_the_frames_alone_overrun(model: SpeechModel) -> None:
    message = r"the prompt has \d+ positions and 220 frames may follow, but the model holds 230; shorten the text or"
    with pytest.raises(GenerationError, match=message):
        model.generate("One two. Three four.", max_frames=220)
    with pytest.raises(GenerationError, match="max_chars=0: expected at least 1"):
        model.generate("One two.", max_chars=0)
