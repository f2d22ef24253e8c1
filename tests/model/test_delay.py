"""MossTTSDelay: packing, caching and padding do not change what a document sees."""

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from moss.config.model import DelayModelConfig
from moss.errors import ConfigError
from moss.model.build import build_model
from moss.model.delay import DelayModel

LENGTHS = [5, 1, 9, 3]
CONFIG = DelayModelConfig(
    num_codebooks=3,
    codebook_size=10,
    vocab_size=40,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=48,
    max_positions=64,
    initializer_range=0.2,
    pad_token_id=30,
    im_start_token_id=31,
    im_end_token_id=32,
    audio_start_token_id=33,
    audio_end_token_id=34,
    audio_user_slot_token_id=35,
    audio_assistant_gen_slot_token_id=36,
    audio_assistant_delay_slot_token_id=37,
)


@pytest.fixture(scope="module")
def model() -> DelayModel:
    torch.manual_seed(0)
    return build_model(CONFIG).eval()


def some_tokens(length: int) -> Tensor:
    random = torch.Generator().manual_seed(length)
    text = torch.randint(0, 30, (1, length, 1), generator=random)
    return torch.cat([text, torch.randint(0, 11, (1, length, 3), generator=random)], dim=2)


def test_packed_documents_equal_each_alone(model: DelayModel) -> None:
    documents = [some_tokens(length) for length in LENGTHS]
    packed = model(torch.cat(documents, dim=1), document_lengths=LENGTHS).hidden
    for document, hidden in zip(documents, packed.split(LENGTHS, dim=1), strict=True):
        torch.testing.assert_close(hidden, model(document).hidden, rtol=1e-5, atol=1e-6)


def test_no_gradient_crosses_a_document(model: DelayModel) -> None:
    embedded: list[Tensor] = []
    documents = torch.cat([some_tokens(length) for length in LENGTHS], dim=1)
    embed = model.embed

    def remembered(tokens: Tensor) -> Tensor:
        embedded.append(embed(tokens).detach().requires_grad_())
        return embedded[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "embed", remembered)
        model(documents, document_lengths=LENGTHS).hidden[:, 6:15].sum().backward()
    moved = embedded[0].grad.abs().sum(-1)[0] > 0  # type: ignore[union-attr]
    assert moved.nonzero().flatten().tolist() == list(range(6, 15))


def test_cached_decode_equals_the_full_pass(model: DelayModel) -> None:
    tokens = some_tokens(12)
    whole = model(tokens).hidden
    cache = DynamicCache()
    parts = [model(part, cache=cache).hidden for part in tokens.split([5, 1, 1, 5], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-6)


def test_left_padding_changes_nothing_with_and_without_cache(model: DelayModel) -> None:
    tokens, padding = some_tokens(7), some_tokens(4)
    mask = torch.tensor([[False] * 4 + [True] * 7])
    padded = torch.cat([padding, tokens], dim=1)
    whole = model(tokens).hidden
    hidden = model(padded, attention_mask=mask).hidden[:, 4:]
    torch.testing.assert_close(hidden, whole, rtol=1e-5, atol=1e-6)
    cache = DynamicCache()
    first = model(padded[:, :9], attention_mask=mask[:, :9], cache=cache).hidden[:, 4:]
    rest = [model(padded[:, end - 1 : end], attention_mask=mask[:, :end], cache=cache).hidden for end in (10, 11)]
    torch.testing.assert_close(torch.cat([first, *rest], dim=1), whole, rtol=1e-5, atol=1e-6)


def test_the_pad_code_is_never_predicted(model: DelayModel) -> None:
    hidden = model(some_tokens(3)).hidden
    assert model.head_weight(0).shape == (40, 32)
    assert model.head_weight(2).shape == (10, 32)
    logits = model.channel_logits(hidden, 2)
    assert torch.isneginf(logits[..., 10]).all()
    torch.testing.assert_close(logits[..., :10], hidden @ model.head_weight(2).T)
    assert torch.isfinite(model.channel_logits(hidden, 0)).all()


def test_embedding_is_the_sum_of_the_channels(model: DelayModel) -> None:
    tokens = torch.tensor([[[3, 1, 2, 10]]])
    tables = [model.language_model.embed_tokens, *model.emb_ext]
    want = sum(table.weight[i] for table, i in zip(tables, [3, 1, 2, 10], strict=True))
    torch.testing.assert_close(model.embed(tokens)[0, 0], want)


def test_an_unknown_architecture_is_an_error() -> None:
    from moss.config.model import ModelConfig

    with pytest.raises(ConfigError, match="model.architecture: 'other' has no implementation"):
        build_model(ModelConfig(architecture="other"))
