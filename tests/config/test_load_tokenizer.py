import dataclasses
import json
import re
from pathlib import Path

import pytest

from moss.config.load_tokenizer import load_tokenizer_config
from moss.config.schema import to_plain
from moss.config.tokenizer import CatConfig, MelRvqConfig, Part
from moss.errors import CheckpointError, ConfigError
from tests.tokenizer.published import Generation, small_config, write_folder


def test_by_kind_by_name_and_by_file(tmp_path):
    assert load_tokenizer_config("mel_rvq") == MelRvqConfig()
    small = load_tokenizer_config("cat_xs")
    assert isinstance(small, CatConfig)
    assert small.quantizer.num_codebooks == 8
    path = tmp_path / "mine.yaml"
    path.write_text("defaults: [something]\nkind: mel_rvq\ngriffin_lim_iterations: 5\n")
    assert load_tokenizer_config(str(path), Path("w.safetensors")) == MelRvqConfig(
        griffin_lim_iterations=5, weights=Path("w.safetensors")
    )


def test_every_mistake_is_a_config_error(tmp_path):
    with pytest.raises(
        ConfigError, match=r"no tokenizer 'mel'; expected one of .*cat_xs.*mel_rvq.*or the path of a \.yaml"
    ):
        load_tokenizer_config("mel")
    path = tmp_path / "bad.yaml"
    path.write_text("- a\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml: expected settings as `key: value` lines, got list"):
        load_tokenizer_config(str(path))
    path.write_text("a: [\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml: not YAML: "):
        load_tokenizer_config(str(path))
    path.write_text("kind: mel_rvq\ngriffin_lim_iteration: 5\n")
    with pytest.raises(ConfigError, match="griffin_lim_iteration"):
        load_tokenizer_config(str(path))


@pytest.mark.parametrize("generation", list(Generation))
def test_by_published_folder(tmp_path, generation):
    config, _ = write_folder(tmp_path / "f", generation)
    found = load_tokenizer_config(str(tmp_path / "f"))
    assert found.geometry() == config.geometry()
    assert found.weights == tmp_path / "f"


def test_sharded_folder_says_its_projections_by_its_index(tmp_path):
    config, state = write_folder(tmp_path / "f", Generation.v2)
    (tmp_path / "f" / "model.safetensors").unlink()
    values = json.loads((tmp_path / "f" / "config.json").read_text())
    del values["number_channels"], values["enable_channel_interleave"]
    (tmp_path / "f" / "config.json").write_text(json.dumps(values))
    index = {"weight_map": {key: "model-00001-of-00001.safetensors" for key in state}}
    (tmp_path / "f" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_tokenizer_config(str(tmp_path / "f")).geometry() == config.geometry()


def test_by_our_checkpoint_folder(tmp_path):
    config = small_config(Generation.v1)
    card = {"kind": "tokenizer", "step": 3, "tokenizer_config": to_plain(config)}
    (tmp_path / "moss.json").write_text(json.dumps(card))
    assert load_tokenizer_config(str(tmp_path)) == dataclasses.replace(config, weights=tmp_path)


def test_weights_of_a_folder_decide_the_geometry_that_is_left_open(tmp_path):
    config, _ = write_folder(tmp_path / "f", Generation.v2)
    assert load_tokenizer_config("cat", tmp_path / "f").geometry() == config.geometry()
    (tmp_path / "mine.yaml").write_text(f"kind: cat\npart: encoder\nweights: {tmp_path / 'f'}\n")
    found = load_tokenizer_config(str(tmp_path / "mine.yaml"))
    assert found.geometry() == config.geometry()
    assert found.part is Part.encoder
    for preset in ("cat_full", "cat_v2", "cat_nano"):
        with pytest.raises(ConfigError, match=f"but the settings describe the published .*{preset_words(preset)}"):
            load_tokenizer_config(preset, tmp_path / "f")


def preset_words(preset):
    return {"cat_full": "24 kHz mono", "cat_v2": "48 kHz stereo", "cat_nano": "Nano"}[preset]


def test_many_contradictions_are_cut_short(tmp_path):
    write_folder(tmp_path / "f", Generation.v2)
    with pytest.raises(ConfigError) as caught:
        load_tokenizer_config("cat_v2", tmp_path / "f")
    lines = str(caught.value).splitlines()
    assert len(lines) == 22
    assert re.fullmatch(r"  and \d+ more", lines[-1])


def test_folders_without_a_tokenizer(tmp_path):
    with pytest.raises(CheckpointError, match=r"no tokenizer's checkpoint; a published one has config\.json, "):
        load_tokenizer_config(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read \("):
        load_tokenizer_config(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json: expected an object of fields, got list"):
        load_tokenizer_config(str(tmp_path))
    (tmp_path / "moss.json").write_text('{"kind": "tokenizer", "tokenizer_config": {"kind": "mel_rvq"}}')
    with pytest.raises(CheckpointError, match=r"moss\.json: the checkpoint of a 'mel_rvq' tokenizer cannot be read"):
        load_tokenizer_config(str(tmp_path))
