"""Long texts are spoken in parts that carry on each other; codes are joined without loss or repetition."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moss.config.generation import GenerationConfig
from moss.config.model import Member
from moss.errors import GenerationError
from moss.generation.long_generation import (
    FrameLimit,
    expected_frames,
    fitting_parts,
    speak_parts,
    split_text,
    tail_text,
)
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
        self.first_frames: list[int] = []
        self._next = 0

    def __call__(self, request: Request) -> Speech:
        number = len(self.asked)
        self.asked.append(request)
        self.first_frames.append(self._next)
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
    speech = speak_parts(Request(id="a", text=TEXT), Member.tts, PARTS, 0.8, always, speaker)
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
    speak_parts(Request(id="a", text=TEXT), Member.tts, PARTS[:2], 1.2, short, speaker)
    assert len(speaker.asked[1].prefix) == 3  # type: ignore[arg-type]
    speaker = Speaker()
    speak_parts(Request(id="a", text=TEXT), Member.tts, PARTS[:2], 1.2, lambda part: part.prefix is None, speaker)
    assert speaker.asked[1].prefix is None


def test_a_part_that_went_wrong_is_not_carried_on() -> None:
    speaker = Speaker({1: "runaway"})
    speech = speak_parts(Request(id="a", text=TEXT), Member.tts, PARTS, 0.8, always, speaker)
    assert speech.stop_reason == "runaway"
    assert [part.stop_reason for part in speech.parts] == ["end", "runaway", "end", "end"]
    # The third part carries on the first.
    assert torch.equal(speaker.asked[2].prefix, speaker.asked[1].prefix)  # type: ignore[arg-type]
    assert speaker.asked[2].prompt_text == speaker.asked[1].prompt_text


def test_a_prefix_of_ones_own_comes_first_and_is_cut_off() -> None:
    given = torch.full((3, 2), 99)
    speaker = Speaker()
    request = Request(id="a", text=TEXT, prefix=given, prompt_text="Zero.", tokens=33)
    speech = speak_parts(request, Member.tts, PARTS[:2], 0.8, always, speaker)
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
    speak_parts(request, Member.ttsd, parts, 20, always, speaker)
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


def given(request: Request) -> list[int]:
    """The frames of a prompt's prefix."""
    return request.prefix[:, 0].tolist() if isinstance(request.prefix, Tensor) else []


ROUND = [f"[S{1 + number % 3}]The words of speaker {1 + number % 3}, turn {number:02d}." for number in range(9)]


def test_every_speaker_of_a_part_is_heard_before_it() -> None:
    speaker = Speaker()
    # A tail of five frames holds the end of one turn of 17.
    speak_parts(Request(id="a", text="".join(ROUND)), Member.ttsd, ROUND, 1, always, speaker)
    starts = speaker.first_frames
    for number, request in enumerate(speaker.asked):
        # The end of the same speaker's latest turn, then that of the part before.
        shown = [before for before in (number - 3, number - 1) if before >= 0]
        assert given(request) == [starts[before + 1] + frame for before in shown for frame in range(-5, 0)]
        tags = re.findall(r"\[S\d\]", request.prompt_text or "")
        assert (request.text or "")[:4] == ("[S1]" if number in (0, 3, 4, 5, 6, 7, 8) else f"[S{1 + len(tags)}]")
        assert re.findall(r"\d\d", request.prompt_text or "") == [f"{before:02d}" for before in shown]


def test_turns_within_a_part_are_kept_apart() -> None:
    parts = ["[S1]Aaaa aaaa aaaa.[S2]Bbbb bbbb bbbb.[S3]Cccc cccc cccc.", "[S3]Again it is me.", "[S1]Me too.[S2]Yes?"]
    speaker = Speaker()
    speak_parts(Request(id="a", text="".join(parts)), Member.ttsd, parts, 1, always, speaker)
    last = speaker.asked[2]
    assert last.text == "[S1]Me too.[S2]Yes?"
    # Thirds of the first part's 28 frames: 0 to 8, 9 to 18; then the end of the second part.
    assert given(last) == [*range(4, 9), *range(14, 19), *range(32, 37)]
    assert re.fullmatch(r"\[S1\][ a]*aaaa\.\[S2\][ b]*bbbb\.\[S3\] .*is me\.", last.prompt_text or "")


def test_a_speaker_with_a_clip_needs_no_turn_and_a_short_one_does_not_replace_a_long_one() -> None:
    parts = ["[S1]Some words that take their time.", "[S2]Others.", "[S1]Ah.", "[S2]And others.", "[S1]Back."]
    clip = torch.full((2, 2), 99)
    speaker = Speaker()
    request = Request(id="a", text="".join(parts), references=[None, clip])
    speak_parts(request, Member.ttsd, parts, 5, always, speaker)
    # Five frames are a second; "Ah." has three.
    assert given(speaker.asked[4])[:18] == list(range(18))
    assert speaker.asked[3].prompt_text == "[S1] Ah."
    assert [item is None for item in speaker.asked[3].references or []] == [True, False]


def test_a_part_that_was_cut_shows_only_what_it_came_to() -> None:
    parts = ["[S1]" + "One word more. " * 4 + "[S2]" + "Two words more. " * 4, "[S2]And so on.", "[S1]Me again."]
    speaker = Speaker({0: "max_frames"})
    speak_parts(Request(id="a", text="".join(parts)), Member.ttsd, parts, 12.5, always, speaker)
    # Half a frame a character makes 66 frames of the 107 that the text is likely to take: all of speaker 1's 52.
    made = speaker.first_frames[1]
    assert given(speaker.asked[1]) == list(range(52, made))
    assert speaker.asked[1].prompt_text == "[S1] Two words more."
    assert given(speaker.asked[2])[:52] == list(range(52))


def test_voices_without_room_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    speaker = Speaker()
    text = "".join(ROUND[:4])
    speak_parts(Request(id="a", text=text), Member.ttsd, ROUND[:4], 1, lambda part: part.prefix is None, speaker)
    assert speaker.asked[3].prefix is None
    assert "no room to show the speakers of '[S1]The words of speaker 1" in caplog.text


def test_room_is_left_for_the_voices() -> None:
    text, tail = "".join(ROUND), torch.zeros(5, 2)
    longest: list[int] = []

    def fits(request: Request) -> bool:
        if isinstance(request.prefix, Tensor):
            longest.append(len(request.prefix))
        return len(request.text or "") < 120

    parts = fitting_parts(Request(id="a", text=text), Member.ttsd, tail, fits)
    assert parts is not None
    # The tail, and five frames for each of up to three speakers.
    assert max(longest) == 20


def test_clips_that_a_dialogue_carries_on_stay_before_every_part() -> None:
    clips = torch.full((5, 2), 77)
    words = "[S1] I am. [S2] So am I."
    text = "[S1] Hello there. [S2] Good day."
    speaker = Speaker()
    request = Request(id="a", text=text, prefix=clips, prompt_text=words)
    speech = speak_parts(request, Member.ttsd, split_text(text, Member.ttsd, 20), 0.6, always, speaker)
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


@pytest.mark.parametrize(
    ("text", "frames"),
    [
        ("Hello", 5 * 0.8673),
        ("天地", 2 * 3.0984),
        ("天地 ok", 2 * 3.0984 + 3 * 0.8673),
        ("[S1]Hello[S2]", 5 * 0.8673),
        ("Hello[pause 2.0s]", 5 * 0.8673 + 25),
    ],
)
def test_expected_frames(text: str, frames: float) -> None:
    assert expected_frames(text) == pytest.approx(frames)
    assert expected_frames(text, 25.0) == pytest.approx(2 * frames)


def test_a_wanted_length_is_the_expected_one_and_small_limits_only_cut() -> None:
    limit, text = FrameLimit(100, 12.5), "x" * 100
    assert not limit.would_cut(Request(text=text))
    assert not limit.is_comfortable(Request(text=text))
    assert limit.would_cut(Request(text=text, tokens=101))
    assert limit.is_comfortable(Request(text=text, tokens=80))
    small = FrameLimit(49, 12.5)
    assert not small.would_cut(Request(text=text))
    assert small.is_comfortable(Request(text=text))


def test_parts_are_short_enough_where_they_can_be_cut() -> None:
    tail, limit = torch.zeros(4, 2), FrameLimit(60, 12.5)
    parts = fitting_parts(Request(id="a", text=TEXT), Member.tts, tail, always, limit.is_comfortable)
    assert parts is not None
    assert len(parts) > 1
    assert max(map(expected_frames, parts)) <= 48
    word = "One. " + "w" * 90
    assert fitting_parts(Request(id="a", text=word), Member.tts, tail, always, limit.is_comfortable) == [
        "One.",
        "w" * 90,
    ]
    # A wanted length is shared by the parts.
    asked = Request(id="a", text=TEXT, tokens=120)
    parts = fitting_parts(asked, Member.tts, tail, always, limit.is_comfortable)
    assert parts is not None
    assert len(parts) >= 3


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


def test_a_text_that_would_be_cut_is_split_although_it_fits() -> None:
    model = talking("local", max_positions=4000)
    long = "Here is one sentence more. " * 6
    assert expected_frames(long) > 100
    speech = model.generate(long, max_frames=60)
    assert len(speech.parts) > 1
    assert max(expected_frames(part.text) for part in speech.parts) <= 48
    # This model never ends by itself: every part says that it was cut.
    assert {part.stop_reason for part in speech.parts} == {"max_frames"}
    assert speech.stop_reason == "max_frames"
    (batched,) = model.batch([{"text": long}], max_frames=60)
    assert batched.parts == speech.parts
    assert model.generate(long, max_frames=200).parts == ()
    # A limit without room for a sentence only cuts.
    assert len(model.generate(long, max_frames=20).codes) == 20
    with pytest.raises(GenerationError, match="needs about 140 frames, with max_frames=60 .* spoken in one go; raise"):
        model.stream(long, max_frames=60)
    with pytest.raises(GenerationError, match="max_chars=30, and a stream is spoken in one go"):
        model.stream(long, max_frames=200, max_chars=30)


def test_the_parts_of_a_realtime_text_are_drawn_as_turns() -> None:
    model = talking("realtime", "realtime")
    speech = model.generate("One two. Three four.", seed=7, max_chars=12)
    first = model.generate("One two.", seed=7)
    assert torch.equal(speech.codes[: speech.parts[0].num_frames], first.codes)
    assert speech.seed == 7
    assert len(speech.parts) == 2


def test_speakers_of_a_model_keep_their_voices(monkeypatch: pytest.MonkeyPatch) -> None:
    model = talking("delay", "ttsd", max_positions=4000)
    asked: list[Request] = []
    prepare = SpeechModel._prepare

    def listening(self: SpeechModel, request: Request, config: GenerationConfig) -> Any:
        asked.append(request)
        return prepare(self, request, config)

    monkeypatch.setattr(SpeechModel, "_prepare", listening)
    dialogue = "[S1] Hello there. [S2] Good day. [S3] And me. [S1] Well then. [S2] Indeed it is. [S3] So be it."
    speech = model.generate(dialogue, max_chars=20)
    assert len(speech.parts) == len(asked) == 6
    made = torch.split(speech.codes, [part.num_frames for part in speech.parts])
    for number in (3, 4, 5):
        prefix = asked[number].prefix
        assert isinstance(prefix, Tensor)
        # The toy's parts are all cut at 12 frames; each is the beginning of its speaker's turn.
        assert torch.equal(prefix, made[number - 3][: len(prefix)])
        assert len(prefix) == 12


def test_nothing_helps_where_the_frames_alone_overrun(model: SpeechModel) -> None:
    message = r"the prompt has \d+ positions and 220 frames may follow, but the model holds 230; shorten the text or"
    with pytest.raises(GenerationError, match=message):
        model.generate("One two. Three four.", max_frames=220)
    with pytest.raises(GenerationError, match="max_chars=0: expected at least 1"):
        model.generate("One two.", max_chars=0)
