"""Published folder -> ours -> published folder, byte for byte; and what stands in the way."""

import collections
import dataclasses
import gzip
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moss.config.model import Member, Template, TextTokenizerKind
from moss.data.text_tokenizer import FileTextTokenizer
from moss.errors import CheckpointError
from moss.model.checkpoint import load_generator, read_card, save_generator, save_weights
from moss.model.convert import export_folder, import_folder, main
from moss.model.hf_map import model_config, read_config
from tests.model.published_folders import CONFIGS, FILES, contents, random_weights, write_published
from tests.parity.fixture_files import fixture_path

LAYOUTS = {
    "delay": ("delay", 1, True),
    "delay_sharded": ("delay", 3, True),
    "local": ("local", 1, True),
    "local_sharded": ("local", 2, True),
    "local_v15_tied_present": ("local_v15", 1, True),
    "local_v15_tied_absent": ("local_v15", 1, False),
    "local_v15_sharded": ("local_v15", 3, True),
    "realtime": ("realtime", 1, True),
    "realtime_sharded": ("realtime", 4, True),
}


@pytest.fixture(params=LAYOUTS)
def published(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    kind, shards, tied = LAYOUTS[request.param]
    return write_published(tmp_path / "published", kind, shards=shards, tied=tied)


def test_import_and_export_give_every_byte_back(published: Path, tmp_path: Path) -> None:
    card = import_folder(published, tmp_path / "ours")
    missing = export_folder(tmp_path / "ours", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(published)
    assert card.model == model_config(read_config(published)[0])
    assert "tokenizer.json" not in missing
    assert not list(tmp_path.glob(".unfinished*"))


def test_what_training_saves_is_exported_bitwise(published: Path, tmp_path: Path) -> None:
    import_folder(published, tmp_path / "ours")
    model, card = load_generator(tmp_path / "ours")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for file in (tmp_path / "ours").glob("model*"):
        file.unlink()
    save_weights(model.state_dict(), tmp_path / "ours")
    export_folder(tmp_path / "ours", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(published)
    save_generator(model, card, tmp_path / "saved", source=tmp_path / "ours")
    export_folder(tmp_path / "saved", tmp_path / "third")
    assert contents(tmp_path / "third") == contents(published)


def test_a_checkpoint_without_kept_files_takes_them_from_the_original(published: Path, tmp_path: Path) -> None:
    model, card = load_generator(published)
    save_generator(model, card, tmp_path / "trained")
    assert not (tmp_path / "trained" / "published").exists()
    export_folder(tmp_path / "trained", tmp_path / "again", original=published)
    assert contents(tmp_path / "again") == contents(published)
    save_generator(model, card, tmp_path / "with_files", source=published)
    export_folder(tmp_path / "with_files", tmp_path / "third")
    assert contents(tmp_path / "third") == contents(published)


def test_a_published_folder_loads_as_it_is(published: Path, tmp_path: Path) -> None:
    direct, card = load_generator(published)
    import_folder(published, tmp_path / "ours")
    converted, _ = load_generator(tmp_path / "ours")
    expected = random_weights(read_config(published)[0])
    state = direct.state_dict()
    assert state.keys() == expected.keys() == converted.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert all(torch.equal(converted.state_dict()[name], tensor) for name, tensor in expected.items())
    assert card.text_tokenizer.path == published / "tokenizer.json"
    assert (card.tokenizer, card.tokenizer_config, card.step) == (None, None, 0)


@pytest.mark.parametrize("kind", ["delay", "local_v15"])
def test_another_dtype_keeps_files_order_and_metadata(kind: str, tmp_path: Path) -> None:
    published = write_published(tmp_path / "published", kind, shards=2)
    import_folder(published, tmp_path / "ours")
    model, card = load_generator(tmp_path / "ours", dtype=torch.float32)
    save_generator(model, card, tmp_path / "trained", source=tmp_path / "ours")
    export_folder(tmp_path / "trained", tmp_path / "again")
    before, after = (
        json.loads((f / "model.safetensors.index.json").read_text()) for f in (published, tmp_path / "again")
    )
    assert after["weight_map"] == before["weight_map"]
    assert after["metadata"] == {"total_size": 2 * before["metadata"]["total_size"]}
    for file in published.glob("*.safetensors"):
        old, new = load_file(file), load_file(tmp_path / "again" / file.name)
        assert list(new) == list(old)
        assert all(torch.equal(new[name], tensor.float()) for name, tensor in old.items())
    assert (tmp_path / "again" / "config.json").read_bytes() == (published / "config.json").read_bytes()


def test_changed_settings_are_written_and_the_rest_survives(tmp_path: Path) -> None:
    published = write_published(tmp_path / "published", "delay")
    import_folder(published, tmp_path / "ours")
    card = read_card(tmp_path / "ours")
    longer = dataclasses.replace(card, model=dataclasses.replace(card.model, max_positions=128))
    (tmp_path / "ours" / "moss.json").write_text(longer.to_json())
    export_folder(tmp_path / "ours", tmp_path / "again")
    expected = json.loads(json.dumps(CONFIGS["delay"]))
    expected["language_config"]["max_position_embeddings"] = 128
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == expected


def test_new_shards(tmp_path: Path) -> None:
    published = write_published(tmp_path / "published", "local_v15")
    import_folder(published, tmp_path / "ours")
    export_folder(tmp_path / "ours", tmp_path / "again", max_shard_bytes=8_000)
    files = sorted((tmp_path / "again").glob("*.safetensors"))
    assert len(files) > 2
    assert max(file.stat().st_size for file in files) < 8_000 + 4_000
    index = json.loads((tmp_path / "again" / "model.safetensors.index.json").read_text())
    merged = {name: tensor for file in files for name, tensor in load_file(file).items()}
    expected = random_weights(CONFIGS["local_v15"], tied=False)
    assert merged.keys() == expected.keys() == index["weight_map"].keys(), "tied names are left out"
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in merged.values())


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_trained_from_scratch(kind: str, tmp_path: Path) -> None:
    model, card = load_generator(write_published(tmp_path / "published", kind))
    save_generator(model, card, tmp_path / "ours")
    missing = export_folder(tmp_path / "ours", tmp_path / "exported")
    assert (tmp_path / "exported" / "tokenizer.json").read_bytes() == FILES["tokenizer.json"]
    again, card_again = load_generator(tmp_path / "exported")
    assert card_again.model == card.model
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert missing
    assert all(name.endswith(".py") for name in missing)
    checkout = tmp_path / "checkout" / CHECKOUT_FOLDERS[kind]
    checkout.mkdir(parents=True)
    for name in missing:
        (checkout / Path(name).name).write_text("import nothing_that_exists\n")
    assert not export_folder(tmp_path / "ours", tmp_path / "exported", support=tmp_path / "checkout", overwrite=True)
    copied = tmp_path / "exported" / missing[0]
    assert copied.read_text() == "import nothing_that_exists\n"


CHECKOUT_FOLDERS = {
    "delay": "moss_tts_delay",
    "local": "moss_tts_local",
    "local_v15": "moss_tts_local_v1.5",
    "realtime": "moss_tts_realtime/mossttsrealtime",
}


def test_support_without_the_files(tmp_path: Path) -> None:
    import_folder(write_published(tmp_path / "published", "delay"), tmp_path / "ours")
    with pytest.raises(
        CheckpointError, match=r"no moss_tts_delay/configuration_moss_tts\.py; give a checkout of the pub"
    ):
        export_folder(tmp_path / "ours", tmp_path / "again", support=tmp_path)
    assert not (tmp_path / "again").exists()


def test_the_text_tokenizer_is_the_one_of_the_folder(tmp_path: Path) -> None:
    published = write_published(tmp_path / "published", "delay")
    toy = fixture_path("toy_tokenizer_delay_local.json.gz")
    (published / "tokenizer.json").write_bytes(gzip.decompress(toy.read_bytes()))
    card = import_folder(published, tmp_path / "ours")
    assert card.text_tokenizer.kind is TextTokenizerKind.file
    moved = (tmp_path / "ours").rename(tmp_path / "elsewhere")
    card = read_card(moved)
    assert card.text_tokenizer.path == moved / "published" / "tokenizer.json"
    assert card.text_fingerprint == FileTextTokenizer(card.text_tokenizer.path).fingerprint
    (published / "tokenizer.json").unlink()
    without = import_folder(published, tmp_path / "without")
    assert (without.text_tokenizer.kind, without.text_fingerprint) == (TextTokenizerKind.qwen, None)


def test_member_and_template_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published = write_published(tmp_path / "published", "delay")
    assert main(["import", str(published), str(tmp_path / "ours"), "--member", "ttsd"]) == 0
    assert "ours: delay, 3 codebooks, member ttsd, template moss_ttsd_v1" in capsys.readouterr().out
    card = read_card(tmp_path / "ours")
    assert (card.model.member, card.model.template) == (Member.ttsd, Template.moss_ttsd_v1)
    export_folder(tmp_path / "ours", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(published)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published = write_published(tmp_path / "published", "realtime")
    ours, again = str(tmp_path / "ours"), str(tmp_path / "again")
    assert main(["import", str(published), ours]) == 0
    assert main(["import", str(published), ours]) == CheckpointError.exit_code
    assert "ours: exists already; add --overwrite to replace it" in capsys.readouterr().err
    assert main(["import", str(published), ours, "--overwrite"]) == 0
    assert main(["export", ours, again, "--max-shard-bytes", "20KB"]) == 0
    out = capsys.readouterr().out
    assert "the published processors also need these files" in out
    assert "  mossttsrealtime/processing_mossttsrealtime.py\n" in out
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    with pytest.raises(SystemExit):
        main(["export", ours, again, "--max-shard-bytes", "much"])
    assert "'much' is not a size; write 5GB" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "published folder -> ours" in capsys.readouterr().out


def test_targets_that_are_refused(tmp_path: Path) -> None:
    published = write_published(tmp_path / "published", "delay")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("all my work")
    with pytest.raises(CheckpointError, match="exists already; it is no checkpoint, choose another name"):
        import_folder(published, precious, overwrite=True)
    assert contents(precious) == {"thesis.txt": b"all my work"}
    for target in (published, published / "ours", tmp_path):
        with pytest.raises(CheckpointError, match="overlaps with the folder that is read; choose another target"):
            import_folder(published, target, overwrite=True)


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = write_published(tmp_path / "published", "delay")
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(
        CheckpointError, match=r"ours: needs 0\.0 GB, but 0\.0 GB are free on its disk; free some space"
    ):
        import_folder(published, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = write_published(tmp_path / "published", "delay")
    import_folder(published, tmp_path / "ours")
    before = contents(tmp_path / "ours")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(
        CheckpointError, match=r"ours: could not be written \(No space left on device\); nothing is left"
    ):
        import_folder(published, tmp_path / "ours", overwrite=True)
    assert contents(tmp_path / "ours") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "published"]


def test_original_files_that_do_not_fit(tmp_path: Path) -> None:
    import_folder(write_published(tmp_path / "published", "delay"), tmp_path / "ours")
    path = tmp_path / "ours" / "published_layout.json"
    layout = json.loads(path.read_text())
    entries = json.loads(layout["files"][0]["header"])
    entries["old.weight"] = entries.pop("lm_heads.1.weight")
    layout["files"][0]["header"] = json.dumps(entries)
    path.write_text(json.dumps(layout))
    with pytest.raises(
        CheckpointError, match=r"no old\.weight, which model\.safetensors of the original has; export with --"
    ):
        export_folder(tmp_path / "ours", tmp_path / "again")
    del entries["old.weight"]
    layout["files"][0]["header"] = json.dumps(entries)
    path.write_text(json.dumps(layout))
    with pytest.raises(
        CheckpointError, match=r"the original's files have no place for lm_heads\.1\.weight; export with --"
    ):
        export_folder(tmp_path / "ours", tmp_path / "again")
    export_folder(tmp_path / "ours", tmp_path / "again", max_shard_bytes=10**6)
    path.write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"published_layout\.json: cannot be read .*name the published folder with"
    ):
        export_folder(tmp_path / "ours", tmp_path / "third")


def test_files_of_no_use_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    published = write_published(tmp_path / "published", "delay")
    expected = contents(published)
    (published / "training_args.bin").write_bytes(b"\x80\x04anything")
    (published / ".git").mkdir()
    (published / ".git" / "HEAD").write_text("ref")
    import_folder(published, tmp_path / "ours")
    assert "training_args.bin: is not part of the model and is left out" in caplog.text
    export_folder(tmp_path / "ours", tmp_path / "again")
    assert contents(tmp_path / "again") == expected
    digest = hashlib.sha256(expected["tokenizer.json"]).hexdigest()[:16]
    assert read_card(tmp_path / "ours").text_fingerprint == digest
