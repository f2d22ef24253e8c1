"""Requests from files and manifests, each mistake with its place."""

import json
from pathlib import Path

import numpy as np
import pytest

from moss.data.manifest import Utterance
from moss.errors import DataError, GenerationError
from moss.generation.requests import (
    Request,
    Target,
    draw_requests,
    read_requests,
    request_from,
    request_json,
    request_seed,
    turn_seed,
)


def written(folder: Path, *rows: object) -> Path:
    path = folder / "requests.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def test_all_fields_and_numbered_ids(tmp_path: Path) -> None:
    target = {"wav": "a.wav", "duration_s": 1.5}
    full = {"id": "x", "text": "a", "language": "en", "tokens": 4, "reference": "r.wav", "group": "g"}
    path = written(
        tmp_path,
        full | {"target": target},
        "",
        {"text": "b", "reference": None},
        {"ambient_sound": "rain", "text": None, "duration_s": 2, "seed": 4},
        {"text": "c", "references": ["a.wav", None], "prompt_texts": ["x", None], "max_chars": 9},
    )
    assert read_requests(path) == [
        Request(**full, target=Target(wav="a.wav", duration_s=1.5)),  # type: ignore[arg-type]
        Request(id="r000003", text="b"),
        Request(id="r000004", ambient_sound="rain", duration_s=2, seed=4),
        Request(id="r000005", text="c", references=["a.wav", None], prompt_texts=["x", None], max_chars=9),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"requests\.jsonl:2: not JSON"),
        ("[]", r"requests\.jsonl:2: expected a JSON object, got list"),
        ({"text": "a", "lang": "en"}, r"requests\.jsonl:2: unknown field 'lang'; a request has ambient_sound, dur"),
        ({"id": "a"}, r"requests\.jsonl:2: no text"),
        ({"text": " \n"}, r"requests\.jsonl:2: no text"),
        ({"text": 5}, r"requests\.jsonl:2: no text"),
        ({"text": "a", "id": 7}, r"requests\.jsonl:2: id=7, expected a text"),
        ({"text": "a", "language": None}, r"requests\.jsonl:2: language=None, expected a text"),
        ({"text": "a", "reference": 1}, r"requests\.jsonl:2: reference=1, expected a text"),
        ({"text": "a", "tokens": "9"}, r"requests\.jsonl:2: tokens='9', expected a number of frames, at least 1"),
        ({"text": "a", "tokens": 0}, r"requests\.jsonl:2: tokens=0, expected"),
        (
            {"text": "a", "references": "a.wav"},
            r"requests\.jsonl:2: references='a\.wav', expected a list of texts",
        ),
        ({"text": "a", "references": [1]}, r"requests\.jsonl:2: references=\[1\], expected a list of texts, one for"),
        ({"text": "a", "seed": -1}, r"requests\.jsonl:2: seed=-1, expected a whole number, at least 0, or null"),
        ({"text": "a", "duration_s": 0}, r"requests\.jsonl:2: duration_s=0, expected seconds, more than 0, or null"),
        ({"text": "a", "max_chars": 0}, r"requests\.jsonl:2: max_chars=0, expected a number, at least 1, or null"),
        ({"text": "a", "scene": 1}, r"requests\.jsonl:2: scene=1, expected a text"),
        ({"text": "a", "target": {"wav": "x"}}, r"requests\.jsonl:2: target=.*, expected wav, duration_s and maybe"),
        ({"text": "a", "target": "x.wav"}, r"requests\.jsonl:2: target='x\.wav', expected wav"),
    ],
)
def test_mistakes_name_their_line(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_requests(written(tmp_path, {"text": "fine"}, row))


def test_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"requests\.jsonl: holds no request"):
        read_requests(written(tmp_path, ""))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "a"], "request id 'a' is given twice; ids name the output files"),
        (["a/b"], "request id 'a/b' cannot name a file"),
        ([".."], "cannot name a file"),
        ([""], "cannot name a file"),
    ],
)
def test_ids_that_cannot_name_files(tmp_path: Path, ids: list[str], message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        read_requests(written(tmp_path, *({"id": name, "text": "t"} for name in ids)))


def utterances() -> list[Utterance]:
    return [
        Utterance(
            id=f"u{i:02d}",
            audio=f"u{i:02d}.wav",
            text=f"word number {i % 15}",
            language="en",
            speaker="s",
            duration_s=1.0 + (i == 3) * 20,
            split="heldout" if i % 3 == 0 else "train",
        )
        for i in range(30)
    ]


def test_drawn_sentences_are_fixed_by_the_seed_and_fit() -> None:
    drawn = draw_requests(utterances(), 3, 2, 12.0, seed=0)
    assert drawn == draw_requests(utterances(), 3, 2, 12.0, seed=0)
    backwards = draw_requests(utterances()[::-1], 3, 2, 12.0, seed=0)
    assert {request.text for request in backwards} == {request.text for request in drawn}
    assert drawn != draw_requests(utterances(), 3, 2, 12.0, seed=1)
    assert [request.group for request in drawn] == ["seen"] * 3 + ["heldout"] * 3
    by_id = {row.id: row for row in utterances()}
    for request in drawn:
        row = by_id[request.id]
        assert (row.text, row.split == "train") == (request.text, request.group == "seen")
        assert request.target == Target(wav=row.audio, duration_s=1.0, speaker="s")
    assert len({request.text for request in drawn}) == 6


def test_too_few_sentences() -> None:
    message = "split 'heldout' has 4 sentences of at least 2 words and at most 12 s, 5 are asked for"
    with pytest.raises(GenerationError, match=message):
        draw_requests([row for row in utterances() if row.id != "u18"], 5, 2, 12.0, 0)


def test_seeds_are_a_requests_own() -> None:
    seeds = {
        request_seed(run, Request(id=name, text=text)) for run in (0, 1) for name in ("a", "b") for text in ("x", "y")
    }
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_of_its_own_makes_the_id_a_mere_name() -> None:
    named = [Request(id=name, text="x", seed=3) for name in ("a", "b")]
    assert request_seed(0, named[0]) == request_seed(1, named[1])
    assert request_seed(0, named[0]) != request_seed(0, Request(id="a", text="y", seed=3))
    assert request_seed(0, named[0]) != request_seed(0, Request(id="a", text="x", seed=4))


def test_the_plain_seed_knows_no_text() -> None:
    assert request_seed(0, Request(id="a", text="x", seed=3), plain=True) == 3
    without = Request(id="a", text="x")
    assert request_seed(0, without, plain=True) == request_seed(0, without) != request_seed(1, without)


def test_turn_seeds() -> None:
    assert turn_seed(5, 0) == 5
    assert len({turn_seed(seed, turn) for seed in (1, 2) for turn in range(4)}) == 8
    assert 0 <= turn_seed(1, 7) < 2**63


def test_the_hash_of_a_request_sees_what_is_set() -> None:
    old = {"id": "a", "text": "x", "language": "en", "tokens": None, "reference": None, "group": "", "target": None}
    plain = Request(id="a", text="x", language="en")
    # Folders written before a request had more fields are still recognised.
    assert request_json(plain) == json.dumps(old, sort_keys=True)
    assert json.loads(request_json(Request(id="a", instruction="old", prefix=Path("p.wav"))))["prefix"] == "p.wav"
    assert request_json(Request(id="a", text="x", language="en", instruction="old")) != request_json(plain)
    with pytest.raises(GenerationError, match="must be paths, got a ndarray"):
        request_json(Request(id="a", text="x", reference=np.zeros(3)))  # type: ignore[arg-type]


def test_fields_by_name() -> None:
    assert request_from({"text": "a", "tokens": 3}) == Request(text="a", tokens=3)
    with pytest.raises(GenerationError, match="unknown field or setting 'lang'; a request has id, text, "):
        request_from({"text": "a", "lang": "en"})
