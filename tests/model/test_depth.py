"""Depth networks: causal, the same step by step, and the arithmetic that their architecture asks for."""

import math

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model, Qwen3Config, Qwen3Model

from moss.model.depth import DepthNetwork, DepthTransformer
from moss.model.depth_gpt2 import Gpt2Depth

WIDTH, CAPACITY = 24, 6


def qwen(rope_theta: float | None) -> DepthTransformer:
    return DepthTransformer(
        WIDTH,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=20,
        capacity=CAPACITY,
        rope_theta=rope_theta,
        eps=1e-6,
        std=0.3,
    )


def gpt2(rope_theta: float | None) -> Gpt2Depth:
    return Gpt2Depth(
        WIDTH,
        num_layers=2,
        num_heads=3,
        intermediate_size=20,
        capacity=CAPACITY,
        rope_theta=rope_theta,
        activation="silu",
        eps=1e-5,
        std=0.3,
    )


def randomised(network: DepthNetwork) -> DepthNetwork:
    """Norms and biases that are not what initialisation leaves them at."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return network


@pytest.fixture(params=["qwen", "qwen_rope", "gpt2", "gpt2_rope"])
def network(request: pytest.FixtureRequest) -> DepthNetwork:
    torch.manual_seed(0)
    theta = 100.0 if request.param.endswith("rope") else None
    return randomised(qwen(theta) if request.param.startswith("qwen") else gpt2(theta))


@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True])
def test_steps_equal_the_whole(network: DepthNetwork, fused: bool) -> None:
    x = torch.randn(3, CAPACITY, WIDTH)
    whole = network(x)
    if fused:
        network.fuse_()
    cache = network.start(3)
    steps = [network.step(x[:, position], cache) for position in range(CAPACITY)]
    torch.testing.assert_close(torch.stack(steps, dim=1), whole, rtol=1e-5, atol=1e-5)
    assert cache.length == CAPACITY
    with pytest.raises(AssertionError, match="the frame is complete"):
        network.step(x[:, 0], cache)


def test_a_position_sees_only_those_before_it(network: DepthNetwork) -> None:
    x = torch.randn(2, CAPACITY, WIDTH, requires_grad=True)
    network(x)[:, 2].sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().amax(dim=(0, 2)) > 0).tolist() == [True] * 3 + [False] * 3


def test_frames_do_not_see_each_other(network: DepthNetwork) -> None:
    x = torch.randn(3, CAPACITY, WIDTH)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), rtol=1e-5, atol=1e-6)
    assert network(x[:0]).shape == (0, CAPACITY, WIDTH)


@torch.no_grad()
def test_fewer_positions_are_the_beginning(network: DepthNetwork) -> None:
    x = torch.randn(2, CAPACITY, WIDTH)
    torch.testing.assert_close(network(x[:, :3]), network(x)[:, :3], rtol=1e-5, atol=1e-6)
    cache = network.start(2, 3)
    assert cache.keys.shape[3] == 3


@torch.no_grad()
def test_positions_matter_only_where_there_are_positions() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 1, WIDTH).expand(1, 3, WIDTH)
    for network, matters in ((qwen(None), False), (gpt2(None), True)):
        y = randomised(network)(x)
        assert torch.allclose(y[:, 0], y[:, 2], atol=1e-5) is not matters
    # Turning equal values changes nothing, so rotary positions show in the order of a past that differs; only a
    # single block has no other way to know that order.
    x = torch.randn(1, 3, WIDTH)
    for network, matters in ((qwen(None), False), (qwen(100.0), True), (gpt2(100.0), True)):
        for name in {"layers", "h"} & set(dict(network.named_children())):
            setattr(network, name, nn.ModuleList([network.blocks[0]]))
        randomised(network)
        swapped = network(x[:, [1, 0, 2]])[:, 2]
        assert torch.allclose(swapped, network(x)[:, 2], atol=1e-5) is not matters


def test_tables_made_while_generating_serve_training(network: DepthNetwork) -> None:
    x = torch.randn(2, CAPACITY, WIDTH)
    with torch.inference_mode():
        network.step(x[:, 0], network.start(2))
    network(x).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@torch.no_grad()
def test_rotary_blocks_are_those_of_qwen3() -> None:
    torch.manual_seed(0)
    network = randomised(qwen(100.0))
    config = Qwen3Config(
        vocab_size=4,
        hidden_size=WIDTH,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )
    other = Qwen3Model(config)
    other.load_state_dict({**network.state_dict(), "embed_tokens.weight": other.embed_tokens.weight})
    x = torch.randn(2, CAPACITY, WIDTH)
    torch.testing.assert_close(network(x), other(inputs_embeds=x).last_hidden_state, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_learned_positions_are_those_of_gpt2() -> None:
    torch.manual_seed(0)
    network = randomised(gpt2(None))
    config = GPT2Config(
        vocab_size=4,
        n_positions=CAPACITY + 1,
        n_embd=WIDTH,
        n_layer=2,
        n_head=3,
        n_inner=20,
        activation_function="silu",
    )
    other = GPT2Model(config).eval()
    renamed = {}
    for name, value in network.state_dict().items():
        name = name.replace("fc_in", "c_fc").replace("fc_out", "c_proj")
        # GPT-2 keeps its matrices the other way round.
        renamed[name] = value.T if value.dim() == 2 and name != "wpe.weight" else value
    other.load_state_dict({**renamed, "wte.weight": other.wte.weight})
    x = torch.randn(2, CAPACITY, WIDTH)
    torch.testing.assert_close(network(x), other(inputs_embeds=x).last_hidden_state, rtol=1e-5, atol=1e-5)


def test_rotary_pairs_of_v15_are_neighbours() -> None:
    """Turning a pair is multiplying it, read as a complex number, by a unit one."""
    network = gpt2(100.0)
    cos, sin = rotary_of(network)
    block = network.blocks[0]
    x = torch.randn(2, CAPACITY, WIDTH)
    plain, _, _ = block.project(x, None)
    turned, _, _ = block.project(x, (cos[:, None], sin[:, None]))
    half = torch.arange(0, 8, 2) / 8
    angles = torch.arange(CAPACITY)[:, None] * 100.0**-half
    unit = torch.polar(torch.ones_like(angles), angles)
    want = torch.view_as_complex(plain.unflatten(-1, (-1, 2)).contiguous()) * unit[:, None]
    torch.testing.assert_close(turned, torch.view_as_real(want).flatten(-2), rtol=1e-5, atol=1e-5)
    assert math.isclose(float(sin[1, 2]), math.sin(100.0**-0.25), rel_tol=1e-5)


def rotary_of(network: DepthNetwork) -> tuple[Tensor, Tensor]:
    found = network._rotary_for(torch.zeros(1, 1))
    assert found is not None
    return found
