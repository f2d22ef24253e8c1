"""Which segments have a transcript, and which kind it is."""

from moss.config.model import TextTokenizerConfig, TextTokenizerKind
from moss.config.tokenizer_training import SemanticConfig
from moss.data.manifest import Utterance
from moss.data.text_tokenizer import build_text_tokenizer
from moss.tokenizer.semantic import SemanticTask
from moss.training.tokenizer_texts import TranscriptReader

COMPACT = build_text_tokenizer(TextTokenizerConfig(kind=TextTokenizerKind.compact))


def spoken(text: str, **extra: object) -> Utterance:
    return Utterance(id="u", audio="u.wav", text=text, language="en", extra=dict(extra))


def test_cut_overlong_and_silent_clips_have_none() -> None:
    reader = TranscriptReader(COMPACT, SemanticConfig(max_text_tokens=20), 100)
    clips = [spoken("one two"), spoken("one two"), spoken("word " * 40), spoken("")]
    texts = reader.read(clips, [950, 1001, 1000, 30], 1000)
    ids = COMPACT.encode("one two")
    assert texts.lengths_B.tolist() == [len(ids), 0, 0, 0]
    assert texts.text_BL[0, : len(ids)].tolist() == ids
    assert texts.frames_B.tolist() == [10, 10, 10, 1]
    # The end token is predicted too, once per text.
    assert int(texts.num_targets) == len(ids) + 1


def test_cut_clips_keep_theirs_on_request() -> None:
    reader = TranscriptReader(COMPACT, SemanticConfig(whole_clips_only=False), 100)
    assert reader.read([spoken("one two")], [5000], 1000).lengths_B.tolist() == [len(COMPACT.encode("one two"))]


def test_kinds_of_text_are_told_apart() -> None:
    reader = TranscriptReader(COMPACT, SemanticConfig(), 100)
    clips = [spoken("hello"), spoken("[S1] hello [S2] hi"), spoken("", ambient_sound="rain on a roof")]
    texts = reader.read(clips, [500] * 3, 1000)
    assert texts.tags_B.tolist() == [SemanticTask.asr, SemanticTask.multi_speaker_asr, SemanticTask.caption]
    caption = COMPACT.encode("rain on a roof")
    assert texts.text_BL[2, : len(caption)].tolist() == caption
