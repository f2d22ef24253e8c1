"""A model that got its memory from files is the one that was built and filled."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from moss.model.build import build_model
from moss.model.checkpoint import load_generator, load_weights
from moss.model.interface import Generator
from moss.model.tensor_loading import expected_shapes, without_parameters
from tests.model.published_folders import CONFIGS, write_published


def computed(model: Generator) -> list[Tensor]:
    """Hidden states, what the heads see, and the logits of a frame."""
    channels = range(1 if model.config.architecture == "realtime" else 0, model.num_channels)
    tokens = torch.randint(0, 10, (2, 6, model.num_channels), generator=torch.Generator().manual_seed(1))
    logits = []
    with torch.no_grad():
        hidden = model(tokens).hidden
        states = model.supervised(hidden, tokens).states
        frame = model.begin_frame(hidden[:, -1])
        for channel in channels:
            logits.append(frame.logits(channel))
            frame.feed(channel, tokens[:, -1, channel] % 2)
    return [hidden, states, *logits]


@pytest.mark.parametrize("kind", CONFIGS)
def test_nothing_is_left_without_memory(kind: str, tmp_path: Path) -> None:
    folder = write_published(tmp_path / "published", kind)
    loaded, card = load_generator(folder, dtype=torch.float32)
    assert not [name for name, tensor in [*loaded.named_parameters(), *loaded.named_buffers()] if tensor.is_meta]
    filled = build_model(card.model).eval()
    load_weights(filled, folder)
    assert all(torch.equal(a, b) for a, b in zip(computed(loaded), computed(filled), strict=True))
    trainable = {name for name, parameter in filled.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in loaded.named_parameters() if parameter.requires_grad} == trainable
    loaded.fuse_()
    assert torch.allclose(computed(loaded)[0], computed(filled)[0], atol=1e-6)


def test_tied_parameters_stay_one(tmp_path: Path) -> None:
    loaded, card = load_generator(write_published(tmp_path / "published", "local_v15", tied=False))
    state = loaded.state_dict(keep_vars=True)
    assert state["text_lm_head.weight"] is state["transformer.embed_tokens.weight"]
    assert state["audio_lm_heads.2.weight"] is state["audio_embeddings.2.weight"]
    assert expected_shapes(card.model).keys() == state.keys()


def test_modules_that_are_built_later_have_memory_again() -> None:
    with without_parameters():
        assert nn.Linear(2, 3).weight.is_meta
    assert not nn.Linear(2, 3).weight.is_meta
