"""Every rule of the text normaliser, on examples of our own."""

import gzip
import io
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moss.sequence.normalize import LINE_PREFIX, PROTECTED, REPEATS, SPACING, STRUCTURE, Rule, normalize_tts_text
from tests.parity.fixture_files import DEFAULT_FOLDER

CONTROLS = [
    ("one\u200b two\ufeff", "one two"),
    ("be\u0007ll\u001b", "bell"),
    ("family 👩\u200d👧", "family 👩👧"),
    ("soft\u00adhyphen", "softhyphen"),
    ("private\ue000use", "privateuse"),
    ("tab\there", "tab here"),
    ("\u3000wide\u3000blank\u3000", "wide blank"),
]
LINES = [
    ("one\r\ntwo\rthree", "one。two。three"),
    ("one\n\n  \ntwo\n", "one。two"),
    ("one\u2028two\u2029three", "one。two。three"),
    ("First line.\nSecond line.", "First line.。Second line."),
    ("see [the notes](https://example.org/a) now", "see the notes https://example.org/a now"),
    ("[not a link](notes.txt)", "[not a link](notes.txt)"),
    ("### Title\n> quoted\n* item\n+ item\n12) item", "Title。quoted。item。item。item"),
    ("# > - 3. all of them", "all of them"),
    ("####### seven\n-no blank", "####### seven。-no blank"),
]
PROTECTED_CASES = [
    ("看http://例子.cn/路径?a=b--c，好", "看 http://例子.cn/路径?a=b--c，好"),
    ("写信给 a.b+c@mail.example.org。", "写信给 a.b+c@mail.example.org。"),
    ("问@some_one吧", "问 @some_one 吧"),
    ("他在r/askscience和u/someone", "他在 r/askscience 和 u/someone"),
    ("#一个话题...真的 后面", "#一个话题...真的 后面"),
    ("改.bashrc和..a", "改 .bashrc 和 ..a"),
    ("版本v1.2--rc3的a/b_c-d.tar.gz包", "版本 v1.2--rc3 的 a/b_c-d.tar.gz 包"),
    ("3.14 和 1:30 和 10-20", "3.14和1:30和10-20"),
]
SPACING_CASES = [
    ("a   b \t c", "a b c"),
    ("中 文　字 テ ス ト", "中文字テスト"),
    ("共 12 个 3 组", "共12个3组"),
    ("用Python写", "用 Python 写"),
    ("第3km处", "第 3km 处"),
    ("word , and . more ! ok ? ; end", "word, and. more! ok?; end"),
    ("他说 ： “ 好 ” 。 走", "他说：“好”。走"),
    ("  both ends  ", "both ends"),
    ("한국어 텍스트 abc", "한국어 텍스트 abc"),
]
STRUCTURE_CASES = [
    ("【快讯】『内部』完", "快讯。内部。完"),
    ("一。【快讯】『内部』「慎言」完", "一。快讯。内部。「慎言」完"),
    ("他说「不行」就走", "他说「不行」就走"),
    ("《标题》", "标题"),
    ("到了。《标题》，开始", "到了。标题，开始"),
    ("《书名》很好", "《书名》很好"),
    ("我读《书名》。", "我读《书名》。"),
    ("甲 => 乙 <- 丙 <=> 丁 ↦ 戊", "甲，乙，丙，丁，戊"),
    ("wait — what", "wait — what"),
    ("wait —— what – – no --- ok", "wait。what – – no。ok"),
]
REPEAT_CASES = [
    ("well.... yes… no……", "well。yes… no。"),
    ("好。。．走", "好。走"),
    ("一，,，二,,", "一，二，"),
    ("no!！! what？? eh", "no！what？eh"),
    ("huh!? ok?! no!?!?", "huh？！ok？！no？！"),
]
KEPT = [
    "[S1]Hi there.[S2]Hello!",
    "take a breath [pause 3.2s] now",
    "/həloʊ/ and /tɛst/",
    "{laugh} sure",
    "nin2 hao3 nǐ hǎo",
]
SPOKEN_CASES = [
    "/ˈhɛloʊ...  wɜːld -- eh??/",
    "/ə.../ or /ɛ--/, /k’æt  s/!",
    "say it [pause  1.5s ] now",
    "我/ˈtɛst--a/你",
    "《书》/ŋ.../",
    "word/wɜːd.../ next",
    "#tag/aɪ--/ b",
]
NOT_SPOKEN = [
    "1/2/3...4",
    "/ ŋ.../ x",
    "//ŋ...// x",
    "/a...b/",
    "他/她...ŋ，它/ x",
    "https://x.example/ŋ...b/ y",
    "[pause...]",
]
EXAMPLES = [*CONTROLS, *LINES, *PROTECTED_CASES, *SPACING_CASES, *STRUCTURE_CASES, *REPEAT_CASES]


@pytest.mark.parametrize(("text", "expected"), [*EXAMPLES, *((text, text) for text in KEPT)])
def test_example(text: str, expected: str) -> None:
    assert normalize_tts_text(text) == expected


@pytest.mark.parametrize("text", SPOKEN_CASES)
def test_ipa_and_pauses_pass_through_by_default(text: str) -> None:
    assert normalize_tts_text(text) == text
    assert normalize_tts_text(text, reference=True) != text or text.startswith("#"), "shows nothing"
    assert normalize_tts_text(f"  {text}   and...").startswith(text)


@pytest.mark.parametrize("text", NOT_SPOKEN)
def test_what_only_looks_like_ipa_is_cleaned_as_published(text: str) -> None:
    assert normalize_tts_text(text) == normalize_tts_text(text, reference=True)


def test_private_characters_of_a_text_are_no_marks() -> None:
    text = "\U000f0000 /ŋ.../ ___PROT0___ #a/ŋ--/"
    assert normalize_tts_text(text) == "/ŋ.../ #a/ŋ--/ #a/ŋ--/"


@pytest.mark.parametrize("text", ["", " \n\t ", "\u200b\ufeff", "\r\n\u3000\n"])
def test_nothing_speakable_is_the_empty_string(text: str) -> None:
    assert normalize_tts_text(text) == ""


def test_nested_spans_leak_a_mark_in_the_published_normaliser_only() -> None:
    text = "#话题@some_one 转"
    assert normalize_tts_text(text) == "#话题@some_one 转"
    assert normalize_tts_text(text, reference=True) == "#话题___PROT0___ 转"


def test_mention_of_more_than_32_characters_is_cut_through_a_mark() -> None:
    text = "@" + "a" * 25 + "https://example.org"
    assert normalize_tts_text(text) == text


def test_more_than_ten_protected_spans_come_back_in_place() -> None:
    text = " ".join(f"f{i}.txt" for i in range(25))
    assert normalize_tts_text(text) == text


@pytest.mark.parametrize("rule", [*SPACING, *STRUCTURE, *REPEATS], ids=lambda rule: rule.name)
def test_each_rule_is_needed_by_an_example(rule: Rule) -> None:
    """Every rule of the tables changes at least one of the examples above."""
    examples = [text for text, _ in [*LINES, *SPACING_CASES, *STRUCTURE_CASES, *REPEAT_CASES]]
    assert any(rule.apply(text) != text for text in examples)


@pytest.mark.parametrize(("name", "pattern"), PROTECTED, ids=[name for name, _ in PROTECTED])
def test_each_protected_kind_has_an_example(name: str, pattern: re.Pattern[str]) -> None:
    assert any(pattern.search(text) for text, _ in PROTECTED_CASES), name


def test_line_prefix_always_matches_at_the_start() -> None:
    match = LINE_PREFIX.match("plain")
    assert match is not None
    assert match.end() == 0


@given(st.text(alphabet="中文a1 .-_/@#!?。，《》【】「」—>=<\n\t\u200b", max_size=40))
def test_result_is_one_clean_line(text: str) -> None:
    result = normalize_tts_text(text)
    assert result == result.strip()
    assert not set(result) & set("\n\u200b\t")
    assert "  " not in result


def test_the_default_differs_in_no_ordinary_string() -> None:
    """On the strings of our copy of the fixture; others may hold what the default protects."""
    packed = (DEFAULT_FOLDER / "ref_delay.pt.gz").read_bytes()
    cases = torch.load(io.BytesIO(gzip.decompress(packed)), weights_only=True)["normalizer"]
    assert any("/" in text for _, text, _, _ in cases)
    assert {name: normalize_tts_text(text) for name, text, _, _ in cases} == {name: made for name, _, _, made in cases}
