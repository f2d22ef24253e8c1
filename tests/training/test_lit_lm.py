"""A step's rows add up to the loss over the whole step, however the step is cut."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from moss.config.model import TextTokenizerConfig, TextTokenizerKind
from moss.data.loader import ExampleBuilder, TokenStream
from moss.data.shard import open_datasets
from moss.data.text_tokenizer import build_text_tokenizer
from moss.loss import channel_loss_sums, expand_channel_weights, weighted_mean
from moss.model.build import build_model
from moss.sequence.layout import DelayLayout
from moss.training.lit_lm import LitGenerator, channel_name
from tests.tiny import tiny_config, tiny_shards


@pytest.mark.parametrize("weights", ["null", "[1,6]"])
def test_rows_of_a_step_have_the_gradient_of_the_whole_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    shards = tiny_shards(tmp_path / "shards")
    config = tiny_config(shards, tmp_path, data__micro_batches_per_step=3, loss__channel_weights=weights)
    bpe = build_text_tokenizer(TextTokenizerConfig(kind=TextTokenizerKind.compact))
    layout = DelayLayout(encode=bpe.encode, special=config.model.special_tokens, num_codebooks=4, codebook_size=1024)
    rows = list(islice(TokenStream(open_datasets([shards]), ExampleBuilder(layout), config.data, 0), 3))
    torch.manual_seed(0)
    module = LitGenerator(build_model(config.model), config)
    logged: dict[str, Any] = {}
    monkeypatch.setattr(module, "log", lambda key, value: logged.update({key: value}))

    for index, row in enumerate(rows):
        # Lightning divides each row's loss by the number of accumulated rows.
        (module.training_step(row, index) / 3).backward()
    assert module.cursor == 1
    mine = {name: p.grad.clone() for name, p in module.model.named_parameters() if p.grad is not None}

    module.zero_grad()
    tokens, labels = (torch.cat([getattr(row, name) for row in rows], dim=1) for name in ("tokens", "labels"))
    lengths = [length for row in rows for length in row.document_lengths]
    sums = channel_loss_sums(module.model(tokens, document_lengths=lengths).hidden, labels, module.model.head_weight)
    expanded = expand_channel_weights(config.loss.channel_weights, 4)
    weighted_mean(sums.sums, sums.counts, expanded).backward()
    for name, parameter in module.model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(mine[name], parameter.grad, rtol=1e-4, atol=1e-7)
    assert set(logged) == {"train/loss", *(f"train/loss/{channel_name(channel)}" for channel in range(5))}
    positions, flops = module.work(rows[0])
    assert positions == rows[0].num_positions
    assert flops > 0


def test_channel_names_sort_in_order() -> None:
    assert [channel_name(channel) for channel in (0, 1, 12)] == ["text", "codebook_00", "codebook_11"]
