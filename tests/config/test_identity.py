"""The same settings give the same folder; any setting that changes a result gives another."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moss.config.compose import load_config
from moss.config.identity import provenance, run_folder, run_id
from moss.config.train import TrainConfig


def config(*words: str) -> TrainConfig:
    return load_config(TrainConfig, "train", list(words))


def settings(section: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from settings(value, (*path, field.name))
        else:
            yield (*path, field.name)


def changed(section: Any, path: tuple[str, ...]) -> Any:
    name, *rest = path
    value = changed(getattr(section, name), tuple(rest)) if rest else "another"
    return dataclasses.replace(section, **{name: value})


def test_same_settings_same_id_however_they_were_written() -> None:
    assert run_id(config("seed=3", "optim.lr=0.001")) == run_id(config("optim.lr=1e-3", "seed=3"))
    assert run_id(config("experiment=quickstart")) == run_id(config("experiment=quickstart"))


def test_every_setting_but_place_name_and_logger_changes_the_id() -> None:
    base = config()
    paths = list(settings(base))
    assert len(paths) > 60
    for path in paths:
        same = path[0] in ("runs_dir", "name", "logger")
        assert (run_id(changed(base, path)) == run_id(base)) == same, ".".join(path)


def test_folder_is_place_name_and_id() -> None:
    one = config("name=a", "runs_dir=x")
    assert run_folder(one) == Path("x") / f"a-{run_id(one)}"


def test_provenance_names_versions_and_survives_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    record = provenance()
    assert record["versions"]["torch"]
    monkeypatch.setenv("PATH", "")
    assert provenance()["git"] is None
