"""Published folders written, and read back to the same network."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from moss.config.load_tokenizer import config_of_folder, load_tokenizer_config
from moss.config.published_tokenizer import Generation
from moss.config.schema import to_plain
from moss.errors import CheckpointError
from moss.tokenizer.build import build_tokenizer
from moss.tokenizer.cat import CatModel
from moss.tokenizer.convert import convert_weights, main, write_published
from moss.tokenizer.hf_map import key_48khz, read_weights, write_weights
from tests.full_disk import files_up_to
from tests.tokenizer.conftest import small_model, small_settings
from tests.tokenizer.published import small_config, small_state, write_folder

GENERATIONS = list(Generation)


def codes_of(folder: Path) -> list[torch.Tensor]:
    """Codes of two clips, through the folder's own settings."""
    tokenizer = build_tokenizer(config_of_folder(folder))
    shape = (1501,) if tokenizer.spec.num_audio_channels == 1 else (2, 1501)
    generator = torch.Generator().manual_seed(5)
    waves = [torch.randn(shape, generator=generator) * 0.1 for _ in range(2)]
    return tokenizer.encode(waves)


def assert_same_codes(first: Path, second: Path) -> None:
    for a, b in zip(codes_of(first), codes_of(second), strict=True):
        assert torch.equal(a, b)
        assert a.unique().numel() > 3


def fingerprint(folder: Path) -> str:
    return build_tokenizer(config_of_folder(folder)).fingerprint


def convert_folder(source: Path, target: Path, generation: Generation | None = None) -> Generation:
    """A checkpoint folder, ours or published, in its published form."""
    return convert_weights(config_of_folder(source), source, target, generation)


def our_checkpoint(folder: Path) -> Path:
    """A checkpoint folder as training writes it."""
    config = small_config(Generation.v1)
    torch.manual_seed(3)
    model = CatModel(config)
    write_weights(folder / "model.safetensors", model)
    card = {"kind": "tokenizer", "step": 1, "tokenizer_config": to_plain(config)}
    (folder / "moss.json").write_text(json.dumps(card))
    return folder


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_folder_is_read_back_as_the_same_network(tmp_path: Path, generation: Generation) -> None:
    config, state = small_config(generation), small_state(small_config(generation))
    assert write_published(tmp_path / "out", config, state) is generation
    assert config_of_folder(tmp_path / "out").geometry() == config.geometry()
    stored = read_weights(tmp_path / "out")
    names = key_48khz if generation is Generation.v2 else str
    assert set(stored) == {names(key) for key in state}
    assert all(torch.equal(stored[names(key)], value) for key, value in state.items())


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_published_folder_through_our_hands(tmp_path: Path, generation: Generation) -> None:
    write_folder(tmp_path / "in", generation)
    (tmp_path / "in" / "README.md").write_text("words")
    (tmp_path / "in" / "old.bin").write_text("pickle")
    assert convert_folder(tmp_path / "in", tmp_path / "out") is generation
    assert_same_codes(tmp_path / "in", tmp_path / "out")
    assert fingerprint(tmp_path / "in") == fingerprint(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_our_checkpoint_becomes_a_published_one(tmp_path: Path) -> None:
    source = our_checkpoint(tmp_path / "step-1")
    assert convert_folder(source, tmp_path / "out") is Generation.v1
    assert_same_codes(source, tmp_path / "out")
    assert fingerprint(source) == fingerprint(tmp_path / "out")
    assert not (tmp_path / "out" / "moss.json").exists()


def test_v2_gets_identity_projections_where_v1_has_none(tmp_path: Path) -> None:
    config, state = write_folder(tmp_path / "in", Generation.v1)
    convert_folder(tmp_path / "in", tmp_path / "out", Generation.v2)
    stored = read_weights(tmp_path / "out")
    made_up = set(stored) - {key_48khz(key) for key in state}
    assert made_up == {"encoder.3.input_proj.weight", "encoder.3.output_proj.weight"} | {
        "decoder.0.input_proj.weight",
        "decoder.0.output_proj.weight",
    }
    assert all(torch.equal(stored[key], torch.eye(16)) for key in made_up)
    assert_same_codes(tmp_path / "in", tmp_path / "out")
    assert config.geometry() != config_of_folder(tmp_path / "out").geometry()


def test_what_v1_cannot_run_is_refused(tmp_path: Path) -> None:
    config = small_config(Generation.v2)
    with pytest.raises(CheckpointError) as caught:
        write_published(tmp_path / "out", config, small_state(config), Generation.v1)
    text = str(caught.value)
    assert "the network has no form in generation v1:" in text
    assert "num_audio_channels: v1 is mono, got 2" in text
    assert "encoder[3].always_project: v1 has no projection where the widths agree" in text
    assert not (tmp_path / "out").exists()


def test_half_width_weights_keep_the_quantizer(tmp_path: Path) -> None:
    config, state = small_config(Generation.v2), small_state(small_config(Generation.v2))
    write_published(tmp_path / "out", config, state, dtype=torch.bfloat16)
    stored = read_weights(tmp_path / "out")
    for key in stored:
        assert stored[key].dtype is (torch.float32 if key.startswith("quantizer.") else torch.bfloat16), key
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (values["dtype"], values["codec_weight_dtype"]) == ("bfloat16", "bf16")
    model = build_tokenizer(config_of_folder(tmp_path / "out")).model
    assert all(value.dtype is torch.float32 for value in model.state_dict().values())


def test_shards_are_bounded_and_indexed(tmp_path: Path) -> None:
    config, state = small_config(Generation.v1), small_state(small_config(Generation.v1))
    written: list[int] = []
    write_published(tmp_path / "out", config, state, max_shard_bytes=8_000, advance=written.append)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) == len(written) > 2
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    for file in files:
        with safe_open(file, framework="pt") as opened:
            keys = list(opened.keys())
        assert {index["weight_map"][key] for key in keys} == {file.name}
        assert sum(state[key].nbytes for key in keys) <= 8_000 or len(keys) == 1
    assert index["metadata"]["total_size"] == sum(written) == sum(value.nbytes for value in state.values())
    assert all(torch.equal(read_weights(tmp_path / "out")[key], value) for key, value in state.items())


def test_nothing_is_overwritten_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "in")
    with pytest.raises(CheckpointError, match=r"in/out: lies in the folder that is read; choose another target"):
        convert_folder(tmp_path / "in", tmp_path / "in" / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(CheckpointError, match="out: exists already and is never overwritten; delete it or choose"):
        convert_folder(tmp_path / "in", tmp_path / "out")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(CheckpointError, match="other: could not be written .No space left on device.; nothing is left"):
        convert_folder(tmp_path / "in", tmp_path / "other")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(CheckpointError, match=r"other: needs 0\.0 GB, but 0\.0 GB are free on its disk; free some"):
        convert_folder(tmp_path / "in", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_disk_that_fills_leaves_nothing(tmp_path: Path) -> None:
    write_folder(tmp_path / "in")
    with files_up_to(5_000), pytest.raises(CheckpointError, match=r"out: could not be written \(.*\); nothing is left"):
        convert_folder(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_weights_must_be_the_networks(tmp_path: Path) -> None:
    state = small_state(small_config(Generation.v1))
    del state["quantizer.output_proj.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing:\n    quantizer.output_proj.bias"):
        write_published(tmp_path / "out", small_config(Generation.v1), state)
    assert not (tmp_path / "out").exists()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "in")
    words = ["--from", str(tmp_path / "in"), "--to", str(tmp_path / "out"), "--names", "v2", "--dtype", "bfloat16"]
    assert main([*words, "--max-shard-bytes", "2e4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path / 'out'}: written in the form of v2, ")
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values["number_channels"] == 1
    assert main(words) == 4
    assert "exists already" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["--from", str(tmp_path / "empty"), "--to", str(tmp_path / "x")]) == 4
    refused = capsys.readouterr().err
    assert "empty: no tokenizer's checkpoint; a published one has config.json, one of ours moss.json" in refused
    with pytest.raises(SystemExit):
        main([*words, "--max-shard-bytes", "much"])
    assert "'much' is not a size; write 5GB" in capsys.readouterr().err


def weight_file(folder: Path) -> tuple[Path, Path]:
    """Settings of a small Cat, and its weights, each in a file."""
    settings, weights = folder / "small.yaml", folder / "w.safetensors"
    settings.write_text(yaml.safe_dump(small_settings()))
    write_weights(weights, small_model())
    return settings, weights


def test_a_weight_file_with_the_settings_that_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, weights = weight_file(tmp_path)
    words = ["--from", str(weights), "--to", str(tmp_path / "out")]
    assert main(words) == 2
    assert "w.safetensors: a weight file does not say its settings; name them with --tokenizer" in (
        capsys.readouterr().err
    )
    assert main([*words, "--tokenizer", str(settings)]) == 0
    assert "written in the form of v1, 1 weight file(s)" in capsys.readouterr().out
    plain = build_tokenizer(load_tokenizer_config(str(settings), weights))
    assert fingerprint(tmp_path / "out") == plain.fingerprint
    assert main(["--from", str(weights), "--to", str(tmp_path / "other"), "--tokenizer", "cat_xs"]) == 4
    assert f"{weights}: not the weights of this tokenizer" in capsys.readouterr().err


def test_the_current_folder_cannot_be_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = our_checkpoint(tmp_path / "step-1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CheckpointError, match=r"\.: is the current folder; name a new one"):
        convert_folder(source, Path("."))
    assert list(tmp_path.glob("here/*")) == []


def test_a_slash_makes_a_folder_of_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = write_folder(tmp_path / "cat_embedded")
    monkeypatch.chdir(tmp_path)
    assert main(["--from", "cat_embedded/", "--to", "out"]) == 0
    assert config_of_folder(tmp_path / "out").geometry() == config.geometry()


def test_settings_that_name_their_weights(tmp_path: Path) -> None:
    settings, weights = weight_file(tmp_path)
    settings.write_text(yaml.safe_dump(small_settings() | {"weights": str(weights)}))
    assert main(["--from", str(settings), "--to", str(tmp_path / "out")]) == 0
    write_folder(tmp_path / "in", Generation.v2)
    (tmp_path / "in" / "README.md").write_text("words")
    settings.write_text(yaml.safe_dump({"kind": "cat", "weights": str(tmp_path / "in")}))
    assert main(["--from", str(settings), "--to", str(tmp_path / "again")]) == 0
    assert_same_codes(tmp_path / "in", tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == "words"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cat_xs", "cat_xs: settings without weights; write --from FILE --tokenizer cat_xs, or name a checkpoint"),
        ("mel_rvq", "mel_rvq: a 'mel_rvq' tokenizer has no published form, only a Cat has"),
        ("nobody", "no tokenizer 'nobody'; expected one of"),
    ],
)
def test_names_without_a_published_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    assert main(["--from", name, "--to", str(tmp_path / "out")]) == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_shipped_cat_gets_a_published_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--from", "cat_embedded", "--to", str(tmp_path / "out")]
    assert main([*words, "--names", "v1"]) == 4
    assert "context_s: v1 has one window for all stages, got" in capsys.readouterr().err
    assert main(words) == 0
    assert "written in the form of v2, 1 weight file(s)" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    stored = read_weights(tmp_path / "out")
    for key in stored:
        assert stored[key].dtype is (torch.float32 if key.startswith("quantizer.") else torch.float16), key
    shipped = build_tokenizer(load_tokenizer_config("cat_embedded"))
    wave = 0.1 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    (codes,) = shipped.encode([wave])
    published = build_tokenizer(config_of_folder(tmp_path / "out"))
    assert torch.equal(published.encode([wave])[0], codes)
    torch.testing.assert_close(published.decode([codes])[0], shipped.decode([codes])[0], atol=1e-5, rtol=0)


def test_interrupt_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    write_folder(tmp_path / "in")
    monkeypatch.setattr("safetensors.torch.save_file", interrupt)
    assert main(["--from", str(tmp_path / "in"), "--to", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "interrupted: nothing is left\n"
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in ("--from", "--tokenizer", "--to", "--names", "--dtype", "--max-shard-bytes", "never overwritten"):
        assert word in text
    assert "the shipped cat_embedded is stored, and so written, as float16" in " ".join(text.split())
