"""What holds for every architecture: packing, caching, padding, fusing, checkpointing and sharing change nothing."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.cache_utils import DynamicCache

from moss.config.model import TextTokenizerConfig, TextTokenizerKind
from moss.loss import LossSums, channel_loss_sums, weighted_mean
from moss.model.checkpoint import ModelCard, load_generator, save_generator
from moss.model.decoder_weights import layer_weights
from moss.model.delay import DelayModel
from moss.model.depth import DepthBlock
from moss.model.interface import Generator, rows_together, without_codes_outside
from moss.model.realtime import RealtimeModel
from moss.spec import IGNORE_LABEL
from tests.model.toys import CONFIGS, DEPTH_NAMES, FULL_VOCAB, some_labels, some_tokens, toy_model

LENGTHS = [5, 8, 9, 6]
NAMES = sorted(CONFIGS)


@pytest.fixture(params=[*NAMES, "full_vocab"])
def model(request: pytest.FixtureRequest) -> Generator:
    return toy_model(FULL_VOCAB if request.param == "full_vocab" else CONFIGS[request.param])


@pytest.fixture(params=[*DEPTH_NAMES, "full_vocab"])
def depth_model(request: pytest.FixtureRequest) -> Generator:
    return toy_model(FULL_VOCAB if request.param == "full_vocab" else CONFIGS[request.param])


def sums_of(model: Generator, hidden: Tensor, labels: Tensor, frames: Tensor | None = None) -> LossSums:
    seen = model.supervised(hidden, labels, frames)
    return channel_loss_sums(seen.states, seen.labels, model.head_weight, scales=seen.scales)


def gradients_of(model: Generator) -> dict[str, Tensor]:
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return found


def close(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert set(mine) == set(theirs)
    assert any(bool(value.abs().max() > 0) for value in mine.values())
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5, msg=name)


def test_packed_documents_equal_each_alone(model: Generator) -> None:
    documents = [some_tokens(length) for length in LENGTHS]
    packed = model(torch.cat(documents, dim=1), document_lengths=LENGTHS).hidden
    for document, hidden in zip(documents, packed.split(LENGTHS, dim=1), strict=True):
        torch.testing.assert_close(hidden, model(document).hidden, rtol=1e-5, atol=1e-5)


def test_packed_loss_equals_padded_loss(model: Generator) -> None:
    tokens, labels = [some_tokens(n) for n in LENGTHS], [some_labels(n) for n in LENGTHS]
    packed = model(torch.cat(tokens, dim=1), document_lengths=LENGTHS).hidden
    got = sums_of(model, packed, torch.cat(labels, dim=1))
    longest = max(LENGTHS)
    padded = torch.cat([torch.cat([some_tokens(longest - n), t], dim=1) if n < longest else t
                        for n, t in zip(LENGTHS, tokens, strict=True)])  # fmt: skip
    targets = torch.cat([torch.nn.functional.pad(y, (0, 0, longest - y.shape[1], 0), value=IGNORE_LABEL)
                         for y in labels])  # fmt: skip
    mask = torch.arange(longest) >= longest - torch.tensor(LENGTHS)[:, None]
    want = sums_of(model, model(padded, attention_mask=mask).hidden, targets)
    torch.testing.assert_close(got.sums, want.sums, rtol=1e-5, atol=1e-5)
    assert torch.equal(got.counts, want.counts)
    assert int(got.counts[1]) > int(got.counts[2]) > 0


def test_cached_decode_equals_the_full_pass(model: Generator) -> None:
    tokens = some_tokens(12)
    cache = DynamicCache()
    parts = [model(part, cache=cache).hidden for part in tokens.split([5, 1, 1, 5], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens).hidden, rtol=1e-5, atol=1e-5)


def test_left_padding_changes_nothing_with_and_without_cache(model: Generator) -> None:
    tokens, padding = some_tokens(7), some_tokens(4)
    mask = torch.tensor([[False] * 4 + [True] * 7])
    padded = torch.cat([padding, tokens], dim=1)
    whole = model(tokens).hidden
    hidden = model(padded, attention_mask=mask).hidden[:, 4:]
    torch.testing.assert_close(hidden, whole, rtol=1e-5, atol=1e-5)
    cache = DynamicCache()
    first = model(padded[:, :9], attention_mask=mask[:, :9], cache=cache).hidden[:, 4:]
    rest = [model(padded[:, end - 1 : end], attention_mask=mask[:, :end], cache=cache).hidden for end in (10, 11)]
    torch.testing.assert_close(torch.cat([first, *rest], dim=1), whole, rtol=1e-5, atol=1e-5)


def test_eager_attention_equals_sdpa_and_refuses_documents(model: Generator) -> None:
    tokens, mask = some_tokens(9), torch.tensor([[False] * 2 + [True] * 7])
    plain, masked = model(tokens).hidden, model(tokens, attention_mask=mask).hidden
    model.backbone.set_attn_implementation("eager")
    torch.testing.assert_close(model(tokens).hidden, plain, rtol=1e-5, atol=1e-5)
    got = model(tokens, attention_mask=mask).hidden
    torch.testing.assert_close(got[:, 2:], masked[:, 2:], rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError):
        model(tokens, document_lengths=[4, 5])


def test_bfloat16_stays_close_to_float32(model: Generator) -> None:
    tokens, labels = some_tokens(9), some_labels(9)
    with torch.no_grad():
        hidden = model(tokens).hidden
        exact = sums_of(model, hidden, labels)
        model.to(torch.bfloat16)
        rounded = model(tokens).hidden
        coarse = sums_of(model, rounded, labels)
    assert rounded.dtype == torch.bfloat16
    assert coarse.sums.dtype == torch.float32
    assert float((rounded.float() - hidden).norm() / hidden.norm()) < 0.05
    assert float((rounded.float() - hidden).norm()) > 0
    torch.testing.assert_close(coarse.sums, exact.sums, rtol=0.1, atol=0.1)


def test_gradient_checkpointing_changes_no_gradient(model: Generator) -> None:
    tokens, labels = some_tokens(9), some_labels(9)
    model.train()
    ran: list[int] = []
    for layer in model.backbone.layers:
        layer.get_submodule("mlp").register_forward_pre_hook(lambda *_: ran.append(1))

    def gradients() -> dict[str, Tensor]:
        sums = sums_of(model, model(tokens, document_lengths=[9]).hidden, labels)
        weighted_mean(sums.sums, sums.counts, None).backward()
        return gradients_of(model)

    plain, layers = gradients(), len(ran)
    model.set_gradient_checkpointing(True)
    checkpointed = gradients()
    assert len(ran) == 3 * layers
    model.set_gradient_checkpointing(False)
    again = gradients()
    assert len(ran) == 4 * layers
    close(checkpointed, plain)
    close(again, plain)


def test_depth_blocks_are_checkpointed_too(depth_model: Generator) -> None:
    depth_model.train()
    depth_model.set_gradient_checkpointing(True)
    blocks = [module for module in depth_model.modules() if isinstance(module, DepthBlock)]
    ran: list[int] = []
    blocks[0].register_forward_pre_hook(lambda *_: ran.append(1))
    sums_of(depth_model, depth_model(some_tokens(9)).hidden, some_labels(9)).sums.sum().backward()
    assert len(ran) == 2


def test_embedding_of_the_first_codebooks_is_that_of_the_model_without_the_others(model: Generator) -> None:
    tokens = some_tokens(6)
    other = tokens.clone()
    other[..., 2:] = 3
    assert torch.equal(model.embed(tokens, 1), model.embed(other, 1))
    assert torch.equal(model.embed(tokens, 1), model.embed(tokens[..., :2], 1))
    assert not torch.allclose(model.embed(tokens, 1), model.embed(tokens))
    assert torch.equal(model.embed(tokens, 3), model.embed(tokens))


def walk(model: Generator, hidden: Tensor, ids: Tensor, num_codebooks: int | None = None) -> list[Tensor]:
    """Logits of every channel of a frame that is fed the given ids (rows, channels)."""
    frame = model.begin_frame(hidden, num_codebooks)
    first = 1 if isinstance(model, RealtimeModel) else 0
    logits = []
    for channel in range(first, 1 + (num_codebooks or model.config.num_codebooks)):
        logits.append(frame.logits(channel))
        frame.feed(channel, ids[:, channel])
    return logits


@torch.no_grad()
def test_fusing_changes_no_result_and_copies_nothing(model: Generator) -> None:
    tokens, ids = some_tokens(6), some_labels(6)[0, 2:4]
    hidden = torch.randn(2, 32)
    embedded, fewer = model.embed(tokens), model.embed(tokens, 2)
    logits = walk(model, hidden, ids)
    sizes = {name: value.shape for name, value in model.state_dict().items()}
    model.fuse_()
    addresses = {name: value.data_ptr() for name, value in model.named_parameters()}
    for table in model.tables():
        assert table.stacked is not None
    torch.testing.assert_close(model.embed(tokens), embedded, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.embed(tokens, 2), fewer, rtol=0, atol=1e-6)
    for mine, theirs in zip(walk(model, hidden, ids), logits, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    model.fuse_()
    assert addresses == {name: value.data_ptr() for name, value in model.named_parameters()}
    assert sizes == {name: value.shape for name, value in model.state_dict().items()}


def test_a_fused_model_is_saved_like_any_other(model: Generator, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.fuse_()
    layer_weights(model.backbone)
    shared = Counter(value.untyped_storage().data_ptr() for value in model.state_dict().values())
    assert max(shared.values()) > 1, "nothing is fused"
    card = ModelCard(
        model=model.config,
        text_tokenizer=TextTokenizerConfig(kind=TextTokenizerKind.compact),
        text_fingerprint="abc",
        tokenizer=None,
        tokenizer_config=None,
        step=0,
    )
    save_generator(model, card, tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert stored.keys() == before.keys()
    for name, value in load_generator(tmp_path / "saved")[0].state_dict().items():
        assert torch.equal(stored[name], before[name]), name
        assert torch.equal(value, before[name]), name
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@torch.no_grad()
def test_frames_of_a_fused_model_follow_new_weights(model: Generator) -> None:
    """Loading into a fused model and casting it leave no stale copy behind."""
    tokens, ids, hidden = some_tokens(6), some_labels(6)[0, 2:4], torch.randn(2, 32)
    model.fuse_()
    model.load_state_dict({name: value + 0.1 for name, value in model.state_dict().items()})
    fresh = toy_model(model.config)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.embed(tokens), fresh.embed(tokens), rtol=0, atol=1e-5)
    model.double()
    fresh.double()
    torch.testing.assert_close(model.embed(tokens), fresh.embed(tokens), rtol=0, atol=1e-12)
    for mine, theirs in zip(walk(model, hidden.double(), ids), walk(fresh, hidden.double(), ids), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_frame_gives_the_logits_that_training_sees(model: Generator) -> None:
    labels = some_labels(9)[:, 2:7]
    hidden = torch.randn(1, 5, 32)
    seen = model.supervised(hidden, labels)
    logits = walk(model, hidden[0], labels[0])
    first = model.num_channels - len(logits)
    for channel, got in enumerate(logits, first):
        want = seen.states[:, channel] @ model.head_weight(channel).T
        if channel == 0 and got.shape != want.shape:
            want = want[:, [36, 34]]
        ids = min(got.shape[1], want.shape[1])
        finite = torch.isfinite(got)
        torch.testing.assert_close(got[:, :ids][finite[:, :ids]], want[:, :ids][finite[:, :ids]], rtol=1e-4, atol=1e-5)
        # Only the pad code may be out of reach.
        assert int((~finite[0]).sum()) <= 1
        assert finite[:, :10].all()


@torch.no_grad()
def test_a_frame_of_fewer_codebooks_is_the_beginning_of_a_whole_one(model: Generator) -> None:
    hidden, ids = torch.randn(2, 32), some_labels(6)[0, 2:4]
    whole = walk(model, hidden, ids)
    for mine, theirs in zip(walk(model, hidden, ids, 2), whole[:-1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_two_frames_do_not_disturb_each_other(depth_model: Generator) -> None:
    hidden, ids = torch.randn(2, 32), some_labels(6)[0, 2:4]
    want = walk(depth_model, hidden, ids)[-1]
    first = 1 if isinstance(depth_model, RealtimeModel) else 0
    frame = depth_model.begin_frame(hidden)
    for channel in range(first, 3):
        frame.feed(channel, ids[:, channel])
        walk(depth_model, hidden + 1, ids)
    torch.testing.assert_close(frame.logits(3), want, rtol=1e-6, atol=1e-6)


def test_loss_of_single_frames_averages_to_the_whole(depth_model: Generator) -> None:
    tokens, labels = some_tokens(9), some_labels(9)
    rows = int((labels != IGNORE_LABEL).any(-1).sum())
    whole = sums_of(depth_model, depth_model(tokens).hidden, labels)
    whole.sums.sum().backward()
    want = gradients_of(depth_model)
    shares = []
    for row in range(rows):
        frames = torch.arange(rows) == row
        part = sums_of(depth_model, depth_model(tokens).hidden, labels, frames)
        # The text channel is computed on every row, whatever was chosen.
        torch.testing.assert_close(part.sums[0], whole.sums[0], rtol=1e-5, atol=1e-6)
        assert int(part.counts[1]) <= 1
        (part.sums.sum() / rows).backward()
        shares.append(part.sums.detach())
    torch.testing.assert_close(torch.stack(shares).mean(0), whole.sums.detach(), rtol=1e-5, atol=1e-5)
    close(gradients_of(depth_model), want)


@pytest.mark.parametrize("chosen", [0, 7])
def test_no_frame_and_every_frame(depth_model: Generator, chosen: int) -> None:
    tokens, labels = some_tokens(9), some_labels(9)
    hidden = depth_model(tokens).hidden
    whole = sums_of(depth_model, hidden, labels)
    part = sums_of(depth_model, hidden, labels, torch.arange(7) < chosen)
    assert int((labels != IGNORE_LABEL).any(-1).sum()) == 7
    torch.testing.assert_close(part.sums[0], whole.sums[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(part.sums[1:], whole.sums[1:] * (chosen == 7), rtol=1e-5, atol=1e-6)


def test_rows_without_codes_keep_their_text_label() -> None:
    labels = torch.tensor([[5, 1], [6, 2], [7, IGNORE_LABEL], [8, 3]])
    kept, scales = without_codes_outside(labels, torch.tensor([True, False, True, False]))
    assert kept.tolist() == [[5, 1], [6, IGNORE_LABEL], [7, IGNORE_LABEL], [8, IGNORE_LABEL]]
    assert scales.tolist() == [1.0, 2.0]
    states = rows_together(torch.tensor([True, False]), torch.ones(1, 3, 2), torch.full((1, 1, 2), 4.0))
    assert states.tolist() == [[[1, 1]] * 3, [[4, 4], [0, 0], [0, 0]]]
    with pytest.raises(AssertionError, match="one choice for each row"):
        without_codes_outside(labels, torch.tensor([True]))


def test_a_batch_without_labels_is_no_special_case(model: Generator) -> None:
    labels = torch.full((1, 6, 4), IGNORE_LABEL)
    sums = sums_of(model, model(some_tokens(6)).hidden, labels)
    assert sums.counts.tolist() == [0] * 4
    assert sums.sums.tolist() == [0.0] * 4
    sums.sums.sum().backward()


def test_delay_has_no_frames_to_leave_out() -> None:
    model = toy_model(CONFIGS["delay"])
    assert isinstance(model, DelayModel)
    with pytest.raises(AssertionError, match="no depth network"):
        model.supervised(torch.zeros(1, 6, 32), some_labels(6), torch.ones(4, dtype=torch.bool))
