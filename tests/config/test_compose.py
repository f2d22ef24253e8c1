"""Misspelt keys, wrong types and signs are refused wherever they stand, and what is shown can be read back."""

import shutil
import sys
from pathlib import Path

import pytest

from moss.config.compose import CONFIG_DIR, from_yaml, load_config, run_command, to_yaml
from moss.config.evaluation import EvalConfig
from moss.config.train import TrainConfig
from moss.errors import ConfigError, DataError


def mistakes(words: list[str], config_dir: Path = CONFIG_DIR) -> list[str]:
    """The numbered lines of the error, without their numbers."""
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, "train", words, config_dir)
    headline, *lines = str(caught.value).splitlines()
    assert headline == f"{len(lines)} mistake{'s' * (len(lines) > 1)} in the configuration:"
    return [line.split(". ", 1)[1] for line in lines]


def test_three_mistakes_are_three_lines_and_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[TrainConfig] = []
    words = ["experiment=quickstart", "model.hiden_size=3", "+sede=1", "optim.lr=fast"]
    assert run_command(TrainConfig, "train", ran.append, words) == 2
    headline, *lines = capsys.readouterr().err.splitlines()
    assert headline == "error: 3 mistakes in the configuration:"
    assert sorted(line[5:] for line in lines) == [
        "model.hiden_size: no such setting; did you mean 'hidden_size'?",
        "optim.lr: expected a number, got 'fast'",
        "sede: no such setting; did you mean 'seed'?",
    ]
    assert not ran


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("+seed=1", "seed: +seed adds a key; every setting exists already, write seed=..."),
        ("++optim.lr=1", "optim.lr: ++optim.lr forces a key; every setting exists already, write optim.lr=..."),
        ("~optim.lr", "optim.lr: ~optim.lr deletes a key; every setting exists already, write optim.lr=..."),
        ("~model", "model: ~model deletes a key; every setting exists already, write model=..."),
        ("+model=delay_xs", "model: +model adds a key; every setting exists already, write model=..."),
        ("seed=1.5", "seed: expected a whole number, got 1.5"),
        ("model.num_layers.x=1", "model.num_layers.x: num_layers is a value, not a group of settings"),
        ("data.shards=data", "data.shards: expected a list, got 'data'"),
        ("task=generatr", "task: expected one of generator, tokenizer, got 'generatr'; did you mean 'generator'?"),
        ("optim.lr=1e-3,2e-3", "optim.lr: 1e-3,2e-3 is several values; one job for each needs --multirun"),
        ("model=delay_xs,other", "model: delay_xs,other is several values; one job for each needs --multirun"),
        ("optim.lr", "optim.lr: cannot be read; write group=name or dotted.key=value"),
        ("--sede=1", "--sede=1: cannot be read; write group=name or dotted.key=value"),
        ("optim.warmup_steps=2000", "optim.warmup_steps: 2000 is more than schedule.max_steps=1000"),
        ("optim.betas=[1,2,3]", "optim.betas: expected two numbers in [0, 1), got [1.0, 2.0, 3.0]"),
        ("loss.channel_weights=[1,2,3]", "loss.channel_weights: expected 2 or 9 numbers, got 3"),
        (
            "loss.channel_weights=[1,-2]",
            "loss.channel_weights: weights are 0 or more and at least one is positive, got [1.0, -2.0]",
        ),
        ("name=a/b", "name: must be one folder name, got 'a/b'"),
        ("data.shards=[]", "data.shards: is empty; name at least one folder written by data_prep/03_write_shards.py"),
        ("name=${nobody}", "Interpolation key 'nobody' not found"),
    ],
)
def test_one_mistake_on_the_command_line(word: str, message: str) -> None:
    assert mistakes([word]) == [message]


def test_misspelt_choice_names_the_nearest() -> None:
    available = ", ".join(sorted(path.stem for path in (CONFIG_DIR / "model").glob("*.yaml")))
    assert mistakes(["model=delai_xs"]) == [
        f"model: there is no 'delai_xs'; available: {available}; did you mean 'delay_xs'?"
    ]


def test_a_checkpoint_folder_is_no_choice_of_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    available = ", ".join(sorted(path.stem for path in (CONFIG_DIR / "tokenizer").glob("*.yaml")))
    hint = "a checkpoint folder goes into tokenizer.weights=... or, in evaluate.py, tokenizers=[...]"
    for name in (str(tmp_path / "mine"), "gone/step-1", "mine"):
        message = f"tokenizer: there is no {name!r}; available: {available}; {hint}"
        assert mistakes([f"tokenizer={name}"]) == [message]
        with pytest.raises(ConfigError) as caught:
            load_config(EvalConfig, "evaluate", ["benchmark=tokenizer", f"tokenizer={name}"])
        assert message in str(caught.value)
    assert hint not in mistakes(["tokenizer=other"])[0]
    assert hint not in mistakes(["model=a/b"])[0]


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    return shutil.copytree(CONFIG_DIR, tmp_path / "configs")


def test_mistakes_in_a_yaml_file(configs: Path) -> None:
    content = "# @package _global_\nsede: 1\noptim:\n  lr: fast\n  warmpu_steps: 3\nmodel:\n  num_layers: many\n"
    (configs / "experiment" / "planted.yaml").write_text(content)
    found = mistakes(["experiment=planted", "seed=one", "data.budget=2"], configs)
    assert sorted(found)[0].startswith("data.budget: no such setting; ")
    assert sorted(found)[1:] == [
        "model.num_layers: expected a whole number, got 'many'",
        "optim.lr: expected a number, got 'fast'",
        "optim.warmpu_steps: no such setting; did you mean 'warmup_steps'?",
        "sede: no such setting; did you mean 'seed'?",
        "seed: expected a whole number, got 'one'",
    ]


def test_broken_yaml_names_the_file_set(configs: Path) -> None:
    (configs / "experiment" / "planted.yaml").write_text("# @package _global_\ndefaults:\n  - override /modle: x\n")
    with pytest.raises(ConfigError, match=r"configs/train\.yaml: .*modle"):
        load_config(TrainConfig, "train", ["experiment=planted"], configs)


def test_values_override_files_and_quotes_are_kept() -> None:
    config = load_config(TrainConfig, "train", ["experiment=quickstart", "name='a b'", "data.shards=['x y',z]"])
    assert config.name == "a b"
    assert config.data.shards == [Path("x y"), Path("z")]
    assert config.optim.warmup_steps == 60


def test_cfg_job_prints_what_from_yaml_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=quickstart", "optim.lr=3e-4"]
    assert run_command(TrainConfig, "train", lambda _: pytest.fail("ran"), [*words, "--cfg", "job"]) == 0
    path = tmp_path / "config.yaml"
    path.write_text(capsys.readouterr().out)
    config = load_config(TrainConfig, "train", words)
    assert from_yaml(TrainConfig, path) == config
    assert to_yaml(config) == path.read_text()
    path.write_text(path.read_text().replace("min_lr_frac: ", "min_rl_frac: "))
    with pytest.raises(ConfigError, match=r"config\.yaml: 1 mistake .*\n  1\. optim\.min_rl_frac: no such setting"):
        from_yaml(TrainConfig, path)


def test_help_lists_groups_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(TrainConfig, "train", lambda _: pytest.fail("ran"), ["--help"]) == 0
    shown = capsys.readouterr().out
    assert "  experiment: delay_xs, " in shown
    assert "--cfg job" in shown


def test_errors_become_one_line_and_their_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(_: TrainConfig) -> None:
        raise DataError("no such shard")

    def interrupt(_: TrainConfig) -> None:
        raise KeyboardInterrupt

    assert run_command(TrainConfig, "train", refuse, []) == 3
    assert capsys.readouterr().err == "error: no such shard\n"
    assert run_command(TrainConfig, "train", interrupt, []) == 130
    assert capsys.readouterr().err == "interrupted: finished work is kept; start the same command again to go on\n"


def sweep(run: list[TrainConfig], tmp_path: Path, *words: str) -> int:
    return run_command(TrainConfig, "train", run.append, ["-m", f"hydra.sweep.dir={tmp_path}", *words])


def test_a_sweep_refuses_signs_and_tells_a_jobs_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    ran: list[TrainConfig] = []
    assert sweep(ran, tmp_path, "++seed=1,2", "~optim.lr", "optim") == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: 3 mistakes in the configuration:",
        "  1. seed: ++seed forces a key; every setting exists already, write seed=...",
        "  2. optim.lr: ~optim.lr deletes a key; every setting exists already, write optim.lr=...",
        "  3. optim: cannot be read; write group=name or dotted.key=value",
    ]
    assert sweep(ran, tmp_path, "seed=1,one") == 2
    assert "1. seed: expected a whole number, got 'one'" in capsys.readouterr().err
    assert [config.seed for config in ran] == [1]
