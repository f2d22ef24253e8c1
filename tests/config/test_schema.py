"""Plain mappings become frozen sections, and every mistake is told at once with its dotted path."""

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

import pytest

from moss.config.schema import build, check, defaults, format_problems, section, to_plain
from moss.errors import ConfigError


class Colour(StrEnum):
    green = "green"
    blue = "blue"


@section
class Inner:
    width: int = 1
    share: float = 0.5

    def validate(self) -> list[str]:
        return [] if self.width > 0 else [f"width: must be positive, got {self.width}"]


@section
class Shape:
    discriminator: ClassVar[str] = "kind"
    variants: ClassVar[dict[str, type]] = {}
    kind: str


@section
class Circle(Shape):
    kind: str = "circle"
    radius: float = 1.0


Shape.variants["circle"] = Circle


@section
class Root:
    name: str
    on: bool = False
    colour: Colour = Colour.green
    folder: Path | None = None
    sizes: list[int] = dataclasses.field(default_factory=list)
    table: dict[str, Inner] = dataclasses.field(default_factory=dict)
    inner: Inner = Inner()
    shape: Shape = Circle()


def test_every_kind_of_value_is_built_and_given_back() -> None:
    plain = {
        "name": "a",
        "on": True,
        "colour": "blue",
        "folder": "x/y",
        "sizes": [1, 2.0],
        "table": {"k": {"width": 3}},
        "inner": {"share": 1},
        "shape": {"kind": "circle", "radius": 2},
    }
    root = build(Root, plain)
    assert root == Root(
        name="a",
        on=True,
        colour=Colour.blue,
        folder=Path("x/y"),
        sizes=[1, 2],
        table={"k": Inner(width=3)},
        inner=Inner(share=1.0),
        shape=Circle(radius=2.0),
    )
    assert build(Root, to_plain(root)) == root
    with pytest.raises(dataclasses.FrozenInstanceError):
        root.name = "b"  # type: ignore[misc]


def test_all_mistakes_at_once_with_dotted_paths() -> None:
    wrong = {
        "on": 1,
        "colour": "gren",
        "folder": "",
        "sizes": [1, "two", 2.5],
        "table": {"k": {"wdth": 3}},
        "inner": {"width": 0},
        "shape": {"kind": "square"},
        "nmae": "a",
    }
    assert check(Root, wrong) == [
        "nmae: no such setting; did you mean 'name'?",
        "name: is required, but not set",
        "on: expected true or false, got 1",
        "colour: expected one of green, blue, got 'gren'; did you mean 'green'?",
        "folder: expected a path, got ''",
        "sizes[1]: expected a whole number, got 'two'",
        "sizes[2]: expected a whole number, got 2.5",
        "table.k.wdth: no such setting; did you mean 'width'?",
        "inner.width: must be positive, got 0",
        "shape.kind: expected one of circle, got 'square'",
    ]
    with pytest.raises(
        ConfigError, match=r"\A10 mistakes in the configuration:\n  1\. nmae: .*\n 10\. |\n  10\. shape"
    ):
        build(Root, wrong)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": 3}, "name: expected a text, got 3; a text of digits wants quotes, on the command line '\"...\"'"),
        ({"name": True}, "name: expected a text, got True"),
        ({"name": None}, "name: expected a text, got None"),
        ({"inner": 3}, "inner: expected a group of settings, got 3"),
        ({"inner": {"share": True}}, "inner.share: expected a number, got True"),
        ({"inner": {"share": float("nan")}}, "inner.share: expected a number, got nan"),
        ({"inner": {"width": True}}, "inner.width: expected a whole number, got True"),
        ({"sizes": 3}, "sizes: expected a list, got 3"),
        ({"table": []}, "table: expected a mapping, got []"),
        ({"zzzz": 3}, "zzzz: no such setting; this section has name, on, colour, folder, sizes, table, inner, shape"),
    ],
)
def test_messages(values: dict[str, object], message: str) -> None:
    assert check(Root, {"name": "a", **values}) == [message]


def test_defaults_leave_out_what_must_be_set() -> None:
    assert "name" not in defaults(Root)
    assert defaults(Root)["inner"] == {"width": 1, "share": 0.5}


def test_one_mistake_is_not_mistakes() -> None:
    assert format_problems(["a: b"]) == "1 mistake in the configuration:\n  1. a: b"
