"""The tokenizer benchmark without a checkout of the published code: what it prepares, prints and refuses."""

import importlib
import json
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from moss.command import run_command
from moss.config.published_tokenizer import config_from_published
from moss.config.schema import build
from moss.config.tokenizer import CatConfig
from moss.errors import ConfigError
from moss.tokenizer.cat import CatModel, CatTokenizer
from tests.recordings import REPOSITORY
from tests.tokenizer.conftest import small_settings

MODULES = ("tokenizer", "tokenizer_cases", "tokenizer_child", "tokenizer_reference")


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "benchmarks"))
        yield {name: importlib.import_module(name) for name in MODULES}


@pytest.fixture
def small() -> CatTokenizer:
    torch.manual_seed(0)
    return CatTokenizer(CatModel(build(CatConfig, small_settings())))


def test_a_folder_that_is_no_checkout_is_refused_at_once(
    modules: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(modules["tokenizer"].main, ["--reference", str(tmp_path), "--threads", "1"]) != 0
    message = capsys.readouterr().err
    assert f"{tmp_path} has no modeling_moss_audio_tokenizer.py" in message
    assert "checkout of OpenMOSS/MOSS-Audio-Tokenizer" in message


@pytest.mark.parametrize("wrong", [["--hours", "0"], ["--repeats", "0"], ["--threads", "0"], ["--depth-divisor", "0"]])
def test_counts_must_be_positive(
    modules: dict[str, ModuleType], wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(modules["tokenizer"].main, ["--long", *wrong]) != 0
    assert "expected more than 0" in capsys.readouterr().err


def test_undivided_geometry_is_the_published_one(modules: dict[str, ModuleType]) -> None:
    full = modules["tokenizer_cases"].scaled_config(1, 1)
    assert full.geometry() == CatConfig().geometry()
    quarter = modules["tokenizer_cases"].scaled_config(4, 4)
    assert [stage.hidden_size for stage in quarter.encoder[1::2]] == [192, 192, 192, 320]
    assert [stage.num_layers for stage in quarter.encoder[1::2]] == [3, 3, 3, 8]


@pytest.mark.parametrize(
    ("divisors", "named"), [((3, 1), "--width-divisor"), ((1, 5), "--depth-divisor"), ((8, 1), "--width-divisor")]
)
def test_divisors_that_do_not_divide_are_refused(
    modules: dict[str, ModuleType], divisors: tuple[int, int], named: str
) -> None:
    with pytest.raises(ConfigError, match=f"{named}: expected 1, 2 or 4, got"):
        modules["tokenizer_cases"].scaled_config(*divisors)


def test_published_settings_say_the_same_geometry(modules: dict[str, ModuleType]) -> None:
    for config in (modules["tokenizer_cases"].scaled_config(4, 4), modules["tokenizer_cases"].quantizer_config()):
        assert config_from_published(modules["tokenizer_reference"].published_settings(config)).geometry() == (
            config.geometry()
        )


def test_windows_of_several_lengths_are_refused(modules: dict[str, ModuleType]) -> None:
    settings = small_settings()
    settings["encoder"].append({**settings["encoder"][1], "input_size": 12, "output_size": 12, "context_s": 0.3})
    config = build(CatConfig, settings)
    with pytest.raises(ConfigError, match=r"one window for all stages, got \[0.2, 0.3\] s"):
        modules["tokenizer_reference"].published_settings(config)


def test_the_signal_is_one_recording_of_any_length(modules: dict[str, ModuleType]) -> None:
    signal = modules["tokenizer_cases"].signal
    whole = signal(25.0, 8000)
    assert whole.shape == (200_000,)
    assert torch.equal(signal(12.5, 8000), whole[:100_000])
    assert not torch.equal(signal(12.5, 8000, seed=1), whole[:100_000])
    assert 0.05 < whole.abs().max() < 1
    assert (whole[:80_000] - whole[80_000:160_000]).abs().max() > 0.1, "blocks differ"


def test_streams_of_the_benchmark_give_what_one_call_gives(modules: dict[str, ModuleType], small: CatTokenizer) -> None:
    cases = modules["tokenizer_cases"]
    wave = cases.signal(1.0, small.spec.sampling_rate_hz)
    (codes,) = small.encode([wave])
    assert torch.equal(cases.encode_stream(small, wave), codes)
    torch.testing.assert_close(cases.decode_stream(small, codes), small.decode([codes])[0], atol=1e-5, rtol=0)


def test_agreement_counts_codes_and_measures_samples(modules: dict[str, ModuleType]) -> None:
    agreement = modules["tokenizer"].agreement
    ours = [torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([[7, 8]])]
    theirs = [torch.tensor([[1, 2], [3, 0]]), torch.tensor([[7, 8]])]
    assert agreement(ours, theirs) == "83.33%"
    assert agreement([torch.tensor([1.0, 2.0])], [torch.tensor([1.0, 4.0])]) == "5e-01 of peak"


def test_a_row_of_memory_says_who_failed(modules: dict[str, ModuleType]) -> None:
    row = modules["tokenizer"].memory_row
    ours = {"seconds": 3.0, "peak_bytes": 60_000_000}
    assert row("encode", 600.0, ours, {"failed": "out of memory"}) == (
        "| encode 600 s | 60 | 100,000 | out of memory |  | 0.0050 |"
    )
    assert row("decode_stream", 15.0, ours, {"seconds": 30.0, "peak_bytes": 90_000_000}) == (
        "| decode 15 s in 80 ms pushes | 60 | 4,000,000 | 90 | 1.5 | 0.2000 |"
    )
    assert row("encode", 10.0, {"failed": "out of time"}, ours) == "| encode 10 s | out of time |  | 60 |  |  |"


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        (0, "", {"seconds": 1.0}),
        (1, "RuntimeError: can't allocate memory: you tried to allocate 9 bytes", {"failed": "out of memory"}),
        (-9, "", {"failed": "out of memory"}),
    ],
)
def test_how_a_measurement_ends(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, code: int, message: str, expected: dict[str, Any]
) -> None:
    done = subprocess.CompletedProcess([], code, 'a warning\n{"seconds": 1.0}\n', f"Traceback\n{message}\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert modules["tokenizer_child"].measure({"threads": 1}, 1.0) == expected


def test_a_measurement_that_is_wrong_or_broken_is_no_result(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    child = modules["tokenizer_child"]
    for message, kind in (("error: no tokenizer 'x'", ConfigError), ("KeyError: 'side'", RuntimeError)):
        done = subprocess.CompletedProcess([], 2, "", f"{message}\n")
        monkeypatch.setattr(subprocess, "run", lambda *_, done=done, **__: done)
        words = message.removeprefix("error: ") if kind is ConfigError else rf"the measurement .*failed: {message}"
        with pytest.raises(kind, match=words):
            child.measure({"threads": 1}, 1.0)


def test_a_measurement_has_a_time_limit(modules: dict[str, ModuleType]) -> None:
    assert modules["tokenizer_child"].measure({"what": "encode", "threads": 1}, 0.01) == {"failed": "out of time"}


def test_one_measurement_counts_what_the_call_needs(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    child = modules["tokenizer_child"]
    monkeypatch.setattr(child, "scaled_config", lambda *_: build(CatConfig, small_settings()))
    task = {"side": "ours", "width_divisor": 4, "depth_divisor": 4, "threads": 1}
    for what in ("encode", "decode", "encode_stream", "decode_stream"):
        child.main([json.dumps(task | {"what": what, "audio_s": 2.0})])
        result = json.loads(capsys.readouterr().out)
        assert result["seconds"] > 0
        assert 0 <= result["peak_bytes"] < 500_000_000


def test_a_long_recording_is_pushed_block_by_block(
    modules: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "small.yaml"
    settings.write_text(yaml.safe_dump(small_settings()))
    task = {"what": "long", "tokenizer": str(settings), "random_weights": True, "audio_s": 25.0, "threads": 1}
    modules["tokenizer_child"].main([json.dumps(task)])
    result = json.loads(capsys.readouterr().out)
    assert result["frames"] == 30 * 24_000 // 480
    assert result["audio_s"] == 30.0
    assert result["peak_bytes"] > 10_000_000


@pytest.mark.parametrize(
    ("random_weights", "message"), [(False, "mel_rvq: has no streams"), (True, "--random-weights: only for")]
)
def test_a_tokenizer_without_streams_is_refused(
    modules: dict[str, ModuleType], random_weights: bool, message: str
) -> None:
    task = {"what": "long", "tokenizer": "mel_rvq", "random_weights": random_weights, "audio_s": 1.0, "threads": 1}
    with pytest.raises(ConfigError, match=message):
        modules["tokenizer_child"].main([json.dumps(task)])


def test_the_heading_says_when_and_on_what(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = modules["tokenizer"]
    monkeypatch.setattr(module, "processor", lambda: "Some CPU @ 3 GHz")
    monkeypatch.setattr(module.os, "cpu_count", lambda: 6)
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    result = {"seconds": 1.0, "audio_s": 10.0, "frames": 125, "peak_bytes": 1_000_000}
    monkeypatch.setattr(module, "measure", lambda *_: result)
    module.main(["--long", "--threads", "1", "--output", str(tmp_path / "long.md")])
    place = re.search(
        r"(\d{4}-\d\d-\d\d), x86_64, Some CPU @ 3 GHz, 6 cores, 1 thread", (tmp_path / "long.md").read_text()
    )
    assert place is not None
    assert abs(datetime.now(UTC).date() - date.fromisoformat(place[1])) <= timedelta(days=1)


def test_the_table_ends_with_where_the_time_goes(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = modules["tokenizer"]
    monkeypatch.setattr(module, "scaled_config", lambda *_, **__: build(CatConfig, small_settings()))
    monkeypatch.setattr(module, "_cases", lambda *_: [])
    monkeypatch.setattr(module.published, "check_checkout", lambda _: None)
    output = tmp_path / "table.md"
    module.main(["--reference", str(tmp_path), "--threads", "1", "--only", "nothing", "--output", str(output)])
    last = output.read_text().splitlines()[-1]
    assert last == module.PROFILE
    assert "not measured in this run" in last


def test_the_long_run_says_whether_it_reached_its_goal(
    modules: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = {"seconds": 360.0, "audio_s": 3600.0, "frames": 45_000, "peak_bytes": 2_100_000_000}
    monkeypatch.setattr(modules["tokenizer"], "measure", lambda *_: result)
    output = tmp_path / "long.md"
    modules["tokenizer"].main(["--long", "--threads", "1", "--output", str(output)])
    text = output.read_text()
    assert text in capsys.readouterr().out
    assert text.startswith(
        "# A long recording through the tokenizer's encoder stream\n\n`python benchmarks/tokenizer.py "
    )
    assert "1 h of audio, 45,000 frames" in text
    assert "2,100 MB, NOT below the goal of 2 GB; real-time factor 0.1000" in text
    monkeypatch.setattr(modules["tokenizer"], "measure", lambda *_: {"failed": "out of time"})
    assert run_command(modules["tokenizer"].main, ["--long", "--threads", "1"]) != 0
    assert "out of time; choose a smaller tokenizer" in capsys.readouterr().err
