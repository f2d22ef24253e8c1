"""Where a run starts from: weights of an earlier one, merged adapters, and weights that do not belong to it."""

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moss.config.compose import from_yaml
from moss.config.identity import run_folder
from moss.config.model import TextTokenizerConfig, TextTokenizerKind
from moss.config.train import TrainConfig
from moss.data.text_tokenizer import build_text_tokenizer
from moss.errors import CheckpointError
from moss.model.checkpoint import load_generator, published_card
from moss.model.convert import export_folder, import_folder
from moss.model.lora import main as lora_main
from moss.model.lora import merge_checkpoint
from moss.training.run import train
from tests.model.published_folders import contents
from tests.tiny import tiny_shards
from tests.training.small import ARCHITECTURES, small_config


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_run_of_adapters_from_weights_to_weights(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], architecture: str
) -> None:
    base = train(small_config(architecture, shards, tmp_path / "base", schedule__max_steps=2))
    start = base / "checkpoints" / "step-00000002"
    config = small_config(
        architecture, shards, tmp_path / "lora", schedule__max_steps=4, model__init_from=start, lora__rank=2
    )
    run = train(config)
    weights = load_file(start / "model.safetensors")
    state = load_file(run / "checkpoints" / "step-00000004" / "model.safetensors")
    for name, tensor in state.items():
        if "lora_" not in name:
            assert torch.equal(tensor, weights[name.replace(".base_layer.", ".")]), name
    assert any("lora_B" in name and bool(tensor.any()) for name, tensor in state.items())

    # Loaded for use, the adapters are in the weights; merged on disk, the folder is an ordinary one.
    used, card = load_generator(run / "checkpoints" / "step-00000004")
    assert card.step == 4
    merged = tmp_path / "merged"
    assert lora_main(["merge", str(run), str(merged)]) == 0
    assert capsys.readouterr().out == f"{merged}: merged\n"
    on_disk = load_file(merged / "model.safetensors")
    assert on_disk.keys() == weights.keys()
    assert all(torch.equal(tensor, used.state_dict()[name]) for name, tensor in on_disk.items())
    assert not all(torch.equal(tensor, weights[name]) for name, tensor in on_disk.items())
    # Training goes on from the merged weights as from any others.
    again = small_config(
        architecture, shards, tmp_path, schedule__max_steps=2, model__init_from=merged, optim__lr=1e-30
    )
    after = load_file(train(again) / "checkpoints" / "step-00000002" / "model.safetensors")
    assert all(torch.equal(tensor, on_disk[name]) for name, tensor in after.items())

    for words, message in [
        ([str(run), str(merged)], f"error: {merged}: exists already; choose another folder or delete it\n"),
        ([str(merged), str(tmp_path / "x")], f"error: {merged}: holds no adapters, so there is nothing to merge; use "),
    ]:
        assert lora_main(["merge", *words]) == CheckpointError.exit_code
        assert capsys.readouterr().err.startswith(message)
    assert not list(tmp_path.glob(".unfinished*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__num_codebooks": 3}, r"has num_codebooks 4, this run 3; choose the same, or other weights$"),
        ({"model__template": "moss_ttsd_v1"}, "has template moss_tts_delay_v1, this run moss_ttsd_v1; choose the same"),
        ({"architecture": "local"}, "has architecture delay, this run local; choose"),
        (
            {"text_tokenizer__kind": "qwen", "model__vocab_size": 151_936},
            r"has text tokenizer \w{16}, this run \w{16}; choose the same",
        ),
    ],
)
def test_weights_of_another_kind(shards: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    base = train(small_config("delay", shards, tmp_path / "base", schedule__max_steps=2))
    start = base / "checkpoints" / "step-00000002"
    extra = {"model__init_from": start, **changes}
    if "text_tokenizer__kind" in extra:
        # Ids that no text can have in either tokenizer.
        roles = ("pad", "im_start", "im_end", "audio_start", "audio_end", "audio_user_slot")
        roles += ("audio_assistant_gen_slot", "audio_assistant_delay_slot")
        extra |= {f"model__{role}_token_id": 151_643 + i for i, role in enumerate(roles)}
    architecture = str(extra.pop("architecture", "delay"))
    with pytest.raises(CheckpointError, match=message) as caught:
        train(small_config(architecture, shards, tmp_path, **extra))
    assert str(caught.value).startswith(f"model.init_from={start}: ")


def test_a_published_folder(shards: Path, tmp_path: Path) -> None:
    base = train(small_config("local_v15", shards, tmp_path / "base", schedule__max_steps=2))
    published = tmp_path / "published"
    export_folder(base / "checkpoints" / "step-00000002", published)
    extra = {"schedule__max_steps": 2, "model__init_from": published, "optim__lr": 1e-30}
    run = train(small_config("local_v15", shards, tmp_path, **extra))
    weights = [load_file(folder / "checkpoints/step-00000002/model.safetensors") for folder in (base, run)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    message = rf"model\.init_from={published}: has architecture local_v15, this run realtime; choose"
    with pytest.raises(CheckpointError, match=message):
        train(small_config("realtime", shards, tmp_path, **extra))


OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "local_v15": {
        "qwen3_config.rms_norm_eps": 1e-4,
        "qwen3_config.rope_parameters.rope_theta": 77.0,
        "gpt2_config.n_head": 2,
        "gpt2_config.activation_function": "gelu_new",
        "gpt2_config.rope_base": 55.0,
        "gpt2_config.layer_norm_epsilon": 1e-3,
        "audio_start_token_id": 1020,
        "audio_end_token_id": 1019,
    },
    "realtime": {
        "local_config.rope_parameters.rope_theta": 33.0,
        "delay_tokens_len": 5,
        "text_pad": 1023,
    },
}


@pytest.mark.parametrize("architecture", OWN_SETTINGS)
def test_the_checkpoints_own_settings_win(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, architecture: str
) -> None:
    base = train(small_config(architecture, shards, tmp_path / "base", schedule__max_steps=2))
    published = tmp_path / "published"
    export_folder(base / "checkpoints" / "step-00000002", published)
    settings = json.loads((published / "config.json").read_text())
    for path, value in OWN_SETTINGS[architecture].items():
        *parents, last = path.split(".")
        # Local v1.5 says its backbone twice.
        for places in (parents, ["language_config", *parents[1:]]) if parents[:1] == ["qwen3_config"] else (parents,):
            group = settings
            for name in places:
                group = group[name]
            group[last] = value
    (published / "config.json").write_text(json.dumps(settings))
    words = {"schedule__max_steps": 2, "model__init_from": published, "optim__lr": 1e-30, "model__max_positions": 999}
    config = small_config(architecture, shards, tmp_path, **words)
    with caplog.at_level(logging.INFO, logger="moss"):
        run = train(config)
    assert run == run_folder(config)
    step = run / "checkpoints" / "step-00000002"
    theirs, card = load_generator(published)
    mine, mine_card = load_generator(step)
    changed = re.findall(r" model\.(\w+)=", caplog.text)
    assert len(changed) == len(OWN_SETTINGS[architecture])
    for field in changed:
        value, before = getattr(card.model, field), getattr(config.model, field)
        assert f"model.{field}={value}: taken from {published} in place of {before}" in caplog.text
    # What is written down is what was used; the run keeps what it decides itself.
    assert mine_card.model == replace(card.model, init_from=published, max_positions=999, initializer_range=0.02)
    assert from_yaml(TrainConfig, run / "config.yaml") == replace(config, model=mine_card.model)
    tokens = torch.arange(5 * theirs.num_channels).reshape(1, 5, -1)
    with torch.no_grad():
        assert torch.equal(mine(tokens).hidden, theirs(tokens).hidden)
    # Started again, it is the same run, finished.
    assert train(config) == run


def test_every_difference_in_shape_is_named(shards: Path, tmp_path: Path) -> None:
    base = train(small_config("local_v15", shards, tmp_path / "base", schedule__max_steps=2))
    start = base / "checkpoints" / "step-00000002"
    other = {"model__hidden_size": 64, "model__rope_theta": 5.0, "model__depth_position": "learned"}
    message = r"has hidden_size 32, this run 64; depth_position rope, this run learned; choose the same, or other we"
    with pytest.raises(CheckpointError, match=message):
        train(small_config("local_v15", shards, tmp_path, model__init_from=start, **other))


def test_the_text_tokenizer_of_an_exported_run(shards: Path, tmp_path: Path) -> None:
    base = train(small_config("realtime", shards, tmp_path / "base", schedule__max_steps=2))
    published = tmp_path / "published"
    export_folder(base / "checkpoints" / "step-00000002", published)
    words = {"model__init_from": published, "schedule__max_steps": 2}
    # Realtime's control tokens have other names in the published file; the ids of texts are the same.
    compact = build_text_tokenizer(TextTokenizerConfig(kind=TextTokenizerKind.compact))
    assert published_card(published).text_fingerprint != compact.fingerprint
    train(small_config("realtime", shards, tmp_path, **words))
    path = published / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"].pop()
    path.write_text(json.dumps(content))
    message = rf"this run \w{{16}}; choose the same with text_tokenizer\.kind=file text_tokenizer\.path={path}, or oth"
    with pytest.raises(CheckpointError, match=message):
        train(small_config("realtime", shards, tmp_path / "again", **words))
    train(small_config("realtime", shards, tmp_path, **words, text_tokenizer__kind="file", text_tokenizer__path=path))


@pytest.mark.parametrize("imported", [False, True])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_fine_tuned_published_model_is_exported_by_itself(
    shards: Path, tmp_path: Path, rank: int, imported: bool
) -> None:
    base = train(small_config("local_v15", shards, tmp_path / "base", schedule__max_steps=2))
    published, start = tmp_path / "published", tmp_path / "ours"
    export_folder(base / "checkpoints" / "step-00000002", published, max_shard_bytes=100_000)
    (published / "assets").mkdir()
    (published / "assets" / "clip.wav").write_bytes(bytes(range(256)))
    (published / "README.md").write_bytes(b"# A model\r\n")
    (published / "config.json").write_text(json.dumps(json.loads((published / "config.json").read_text()) | {"new": 1}))
    before = contents(published)
    if imported:
        import_folder(published, start)
    words = {"schedule__max_steps": 4, "model__init_from": start if imported else published, "lora__rank": rank}
    words |= {"optim__freeze": "['audio_lm_heads.*']"} if rank == 0 else {"lora__targets": "[mlp]"}
    run = train(small_config("local_v15", shards, tmp_path, **words))
    shutil.rmtree(start if imported else published)
    trained = run / "checkpoints" / "step-00000004"
    if rank:
        merge_checkpoint(run, tmp_path / "merged")
        trained = tmp_path / "merged"
    export_folder(trained, tmp_path / "exported")
    after = contents(tmp_path / "exported")
    assert after.keys() == before.keys()
    assert len([name for name in after if name.endswith(".safetensors")]) > 1
    for name, content in before.items():
        if not name.endswith(".safetensors"):
            assert after[name] == content, name
            continue
        (tmp_path / "before").write_bytes(content)
        old, new = load_file(tmp_path / "before"), load_file(tmp_path / "exported" / name)
        assert list(old) == list(new)
        still = {key for key in old if torch.equal(old[key], new[key])}
        frozen = {key for key in old if ("mlp." not in key if rank else "audio_" in key)}
        assert frozen <= still
