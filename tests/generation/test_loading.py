"""From folders to models: ours, runs, published ones; what is wrong is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import moss
from moss.data.text_tokenizer import COMPACT_ASSET
from moss.errors import CheckpointError, ConfigError, GenerationError, MossError
from moss.generation.loading import load_speech_model, move_all_but_layers, newest_checkpoint
from moss.generation.speech_model import SpeechModel
from moss.model.checkpoint import save_weights
from moss.model.hf_map import published_config
from tests.generation.toy import (
    FINGERPRINT,
    CausalTokenizer,
    HummingTokenizer,
    build_humming,
    talking,
    write_checkpoint,
)

COMPACT = Path(str(Path(moss.__file__).parent / "data" / "assets" / COMPACT_ASSET))
GREEDY: dict[str, Any] = {"text_temperature": 0.0, "temperature": 0.0, "max_frames": 8}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "step-00000001")


@pytest.fixture(autouse=True)
def _humming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moss.generation.loading.build_tokenizer", build_humming)


def published(folder: Path, model: SpeechModel, text_tokenizer: bool = True) -> Path:
    """A folder as the family publishes them: config.json, safetensors, tokenizer.json."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(published_config(model.model.config)))
    save_weights(model.model.state_dict(), folder)
    if text_tokenizer:
        (folder / "tokenizer.json").write_bytes(COMPACT.read_bytes())
    return folder


def test_run_folder_means_its_newest_checkpoint(checkpoint: Path) -> None:
    run = checkpoint.parents[1]
    assert newest_checkpoint(run) == newest_checkpoint(checkpoint) == checkpoint
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run folder with checkpoints"):
        newest_checkpoint(checkpoint.parent)


def test_our_checkpoint_brings_its_tokenizers(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = moss.load(checkpoint)
    assert model.folder == checkpoint
    assert len(model.generate("one two", language="en", **GREEDY).audio) > 0
    # One line, without any configuration of logging.
    assert capsys.readouterr().err == (
        f"moss: {checkpoint.parents[1].name}/step-00000001 delay on cpu, float32, attention sdpa, offload none, "
        "member tts, audio tokenizer 0123456789abcdef\n"
    )


@pytest.mark.parametrize(
    ("architecture", "member"),
    [("delay", "ttsd"), ("local", "tts"), ("local_v15", "tts"), ("realtime", "realtime")],
)
def test_a_published_folder(
    architecture: str,
    member: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = talking(architecture, member)
    folder = published(tmp_path / "hf", model)
    text = "[S1] Hello there." if member == "ttsd" else "Hello there."
    greedy = {name: GREEDY[name] for name in GREEDY if architecture != "realtime" or not name.startswith("text_")}
    loaded = moss.load(folder, member=member)
    assert f"moss: hf {architecture} on cpu, float32, attention sdpa, offload none" in capsys.readouterr().err
    assert "says no audio tokenizer, so only codes can be made; give `tokenizer=` for audio" in caplog.text
    assert loaded.model.config.template is model.model.config.template
    speech = loaded.generate(text, **greedy)
    assert torch.equal(speech.codes, model.generate(text, **greedy).codes)
    with pytest.raises(GenerationError, match="give `tokenizer=` to moss.load"):
        _ = speech.audio
    assert len(moss.load(folder, member=member, tokenizer=CausalTokenizer()).generate(text, **greedy).audio) == 160


def test_a_published_delay_folder_of_sixteen_codebooks_needs_its_member(tmp_path: Path) -> None:
    folder = published(tmp_path / "hf", talking("delay", num_codebooks=16))
    choices = r'give member="ttsd" \| "voice_generator" \| "sound_effect" \| "tts"'
    with pytest.raises(
        CheckpointError, match=rf"hf: a published Delay checkpoint of 16 codebooks .*gibberish; {choices}"
    ):
        moss.load(folder)
    for member in ("ttsd", "voice_generator", "sound_effect", "tts"):
        assert moss.load(folder, member=member).model.config.member.value == member
    # No other architecture has several members of that shape.
    assert moss.load(published(tmp_path / "local", talking("local", num_codebooks=16))).model.config.num_codebooks == 16


def test_a_published_folder_without_text_tokenizer_takes_the_given_one(tmp_path: Path) -> None:
    model = talking("local")
    folder = published(tmp_path / "hf", model, text_tokenizer=False)
    for given in ("compact", COMPACT, str(COMPACT)):
        loaded = moss.load(folder, text_tokenizer=given)
        assert torch.equal(
            loaded.generate("Hello there.", **GREEDY).codes, model.generate("Hello there.", **GREEDY).codes
        )


def test_dtype_and_member(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = moss.load(checkpoint, dtype="bfloat16", member="voice_generator")
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.bfloat16}
    assert "trained as tts, used as voice_generator" in caplog.text
    assert model.config.audio.top_p == 0.6
    assert torch.float16 in {p.dtype for p in moss.load(checkpoint, dtype=torch.float16).model.parameters()}


def test_offloaded_layers_stay_where_they_are() -> None:
    model = talking("delay")
    before = {id(parameter) for parameter in model.model.backbone.layers.parameters()}
    move_all_but_layers(model.model, torch.device("meta"))
    assert {id(parameter) for parameter in model.model.backbone.layers.parameters()} == before
    assert all(p.device.type == "cpu" for p in model.model.backbone.layers.parameters())
    assert isinstance(model.model.backbone.layers, nn.ModuleList)
    assert model.model.head_weight(0).device.type == "meta"


def test_offload_and_attention_change_nothing(checkpoint: Path) -> None:
    plain = moss.load(checkpoint).generate("press the star key", language="en", **GREEDY)
    for changes in ({"offload": "cpu"}, {"attention": "eager"}):
        model = load_speech_model(checkpoint, **changes)  # type: ignore[arg-type]
        assert getattr(model.config, next(iter(changes))).value == next(iter(changes.values()))
        assert torch.equal(model.generate("press the star key", language="en", **GREEDY).codes, plain.codes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dtype": "int8"}, GenerationError, "dtype 'int8': expected one of float32, bfloat16, float16"),
        (
            {"attention": "fast"},
            GenerationError,
            "attention='fast': expected one of auto, sdpa, flash_attention_2",
        ),
        ({"attention": "flash_attention_2"}, GenerationError, "attention=flash_attention_2 needs a CUDA device"),
        ({"offload": "disk"}, GenerationError, "offload='disk': expected one of none, cpu"),
        ({"member": "singer"}, GenerationError, "member='singer': expected one of tts, ttsd, voice_generator"),
        ({"template": "x"}, GenerationError, "template='x': expected one of moss_tts_delay_v1, "),
        (
            {"template": "moss_ttsd_v1"},
            CheckpointError,
            "trained with prompt template moss_tts_delay_v1, moss_ttsd_v1 is asked for",
        ),
        ({"tokenizer": "no_such"}, ConfigError, "no tokenizer 'no_such'; expected one of"),
        (
            {"tokenizer": HummingTokenizer("fedcba9876543210")},
            CheckpointError,
            f"trained on codes of tokenizer {FINGERPRINT}, humming is fedcba9876543210 here; encode and train again",
        ),
        (
            {"text_tokenizer": "qwen"},
            CheckpointError,
            "trained with text tokenizer .*, this program has .*; give the model's own tokenizer.json as `text",
        ),
    ],
)
def test_what_cannot_be_loaded(checkpoint: Path, changes: dict[str, Any], error: type[MossError], message: str) -> None:
    with pytest.raises(error, match=message):
        moss.load(checkpoint, **changes)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "hpu", "meta"])
def test_a_device_that_is_not_there(checkpoint: Path, device: str) -> None:
    with pytest.raises(GenerationError, match=f"device '{device}' cannot be used: "):
        moss.load(checkpoint, device=device)


def test_another_tokenizer_than_that_of_training(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "moss.generation.loading.build_tokenizer"
    monkeypatch.setattr(other, lambda *_: HummingTokenizer("fedcba9876543210"))
    with pytest.raises(CheckpointError, match="humming is fedcba9876543210 here"):
        moss.load(checkpoint)


def test_a_tokenizer_of_another_shape(tmp_path: Path) -> None:
    folder = published(tmp_path / "hf", talking("local", num_codebooks=5))
    message = "speaks 5 codebooks of 16 entries, the audio tokenizer has 4 of 16; give the one that it was trained with"
    with pytest.raises(CheckpointError, match=message):
        moss.load(folder, tokenizer=HummingTokenizer())


def test_a_text_table_that_is_too_small(tmp_path: Path) -> None:
    folder = published(tmp_path / "hf", talking("delay"), text_tokenizer=False)
    vocabulary = {f"w{i}": i for i in range(1500)}
    content = {"model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", **content}))
    with pytest.raises(CheckpointError, match="the text table has 1024 rows, the text tokenizer 1500 ids; give the"):
        moss.load(folder)


def test_a_tokenizer_folder_without_configuration(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer's checkpoint; a published one has config\.json"):
        moss.load(checkpoint, tokenizer=tmp_path)
