"""Where a run starts from: weights of an earlier one, merged adapters, and weights that do not belong to it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moss.errors import CheckpointError
from moss.model.checkpoint import load_generator
from moss.model.convert import export_folder
from moss.model.lora import main as lora_main
from moss.training.run import train
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
