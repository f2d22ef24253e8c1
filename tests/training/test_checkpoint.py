"""Checkpoints are complete or absent, whatever happens while one is written."""

from pathlib import Path
from typing import Any

import pytest
import torch

from moss.errors import CheckpointError
from moss.training.checkpoint import FolderCheckpointIO, complete_checkpoints, remove_unfinished, step_folder
from tests.full_disk import files_up_to


def content(step: int) -> dict[str, Any]:
    weights = {"a": torch.full((300, 100), float(step)), "b": torch.arange(6).reshape(2, 3).T}
    return {"state_dict": weights, "global_step": step, "optimizer_states": [torch.ones(500, 100) * step]}


class Saver(FolderCheckpointIO):
    """Saves and publishes at once."""

    def __init__(self) -> None:
        super().__init__(lambda step: f'{{"step": {step}}}\n')

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        assert not Path(path).exists()
        self.publish(Path(path))


@pytest.fixture
def saver() -> Saver:
    return Saver()


def test_round_trip(saver: Saver, tmp_path: Path) -> None:
    saver.save_checkpoint(content(4), step_folder(tmp_path, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]
    assert (tmp_path / "step-00000004" / "moss.json").read_text() == '{"step": 4}\n'
    loaded, saved = saver.load_checkpoint(step_folder(tmp_path, 4)), content(4)
    assert torch.equal(loaded["state_dict"]["b"], saved["state_dict"]["b"])
    assert torch.equal(loaded["optimizer_states"][0], saved["optimizer_states"][0])
    assert loaded["global_step"] == 4
    saver.remove_checkpoint(step_folder(tmp_path, 4))
    assert complete_checkpoints(tmp_path) == []


@pytest.mark.parametrize("limit_bytes", [50_000, 150_000])
def test_a_full_disk_leaves_the_old_one_and_nothing_else(saver: Saver, tmp_path: Path, limit_bytes: int) -> None:
    saver.save_checkpoint(content(4), step_folder(tmp_path, 4))
    message = r"step-00000008: could not be written: no space left on the device; earlier checkpoints are kept, free"
    with files_up_to(limit_bytes), pytest.raises(CheckpointError, match=message):
        saver.save_checkpoint(content(8), step_folder(tmp_path, 8))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]
    assert saver.load_checkpoint(step_folder(tmp_path, 4))["global_step"] == 4


def test_a_folder_that_cannot_be_made(saver: Saver, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match="could not be written: .*Not a directory"):
        saver.save_checkpoint(content(4), step_folder(tmp_path / "checkpoints", 4))


@pytest.mark.parametrize("place", ["torch.save", "moss.training.checkpoint.save_weights", "pathlib.Path.rename"])
def test_a_kill_while_saving_leaves_no_step_folder(
    saver: Saver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    saver.save_checkpoint(content(4), step_folder(tmp_path, 4))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(place, killed)
        saver.save_checkpoint(content(8), step_folder(tmp_path, 8))
    assert complete_checkpoints(tmp_path) == [step_folder(tmp_path, 4)]
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]
    saver.save_checkpoint(content(8), step_folder(tmp_path, 8))
    assert len(complete_checkpoints(tmp_path)) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "moss.json", "trainer.pt"])
def test_a_missing_file_is_named(saver: Saver, tmp_path: Path, name: str) -> None:
    folder = step_folder(tmp_path, 4)
    saver.save_checkpoint(content(4), folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"step-00000004: {name} is missing; delete the folder to resume from"):
        saver.load_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.pt"])
def test_a_cut_file_is_damage(saver: Saver, tmp_path: Path, name: str) -> None:
    folder = step_folder(tmp_path, 4)
    saver.save_checkpoint(content(4), folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"step-00000004: damaged \(\w+\); delete the folder to resume"):
        saver.load_checkpoint(folder)


def test_nothing_in_a_checkpoint_is_executed(saver: Saver, tmp_path: Path) -> None:
    folder = step_folder(tmp_path, 4)
    saver.save_checkpoint(content(4), folder)
    marker = tmp_path / "planted"

    class Runs:
        def __reduce__(self) -> tuple[Any, tuple[Path]]:
            return (Path.touch, (marker,))

    torch.save({"x": Runs()}, folder / "trainer.pt")
    with pytest.raises(CheckpointError, match="damaged"):
        saver.load_checkpoint(folder)
    assert not marker.exists()


def test_no_folder_no_checkpoints(tmp_path: Path) -> None:
    assert complete_checkpoints(tmp_path / "nowhere") == []
    remove_unfinished(tmp_path / "nowhere")
