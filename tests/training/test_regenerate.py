"""A model that has learned its clips by heart speaks them again; what is missing or too much counts as wrong."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moss.data.loader import TokenStream
from moss.data.shard import open_datasets
from moss.model.build import build_model
from moss.spec import IGNORE_LABEL
from moss.training.regenerate import EXTRA_FRAMES, first_examples, regenerate, right_codes, true_codes
from moss.training.run import build_builder, train
from tests.tiny import CARD, tiny_shards
from tests.training.small import ARCHITECTURES, small_config

TINY_CARD = replace(CARD, num_codebooks=3, codebook_size=16)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards", num_utterances=3, card=TINY_CARD)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_overfitted_model_speaks_its_clips(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, architecture: str
) -> None:
    config = small_config(
        architecture,
        shards,
        tmp_path,
        model__num_codebooks=3,
        model__codebook_size=16,
        data__positions_per_micro_batch=768,
        optim__lr=1e-2,
        optim__warmup_steps=10,
        optim__weight_decay=0.0,
        schedule__max_steps=120,
        schedule__validate_every_steps=1000,
        schedule__regenerate_examples=5,
        checkpoint__every_steps=1000,
        logger__every_steps=50,
    )
    with caplog.at_level(logging.INFO):
        folder = train(config)
    record = json.loads((folder / "regeneration.json").read_text())
    assert record["right_frac"] >= 0.95
    assert sorted(clip["id"] for clip in record["clips"]) == ["u000", "u001", "u002"]
    assert all(clip["total"] == 3 * max(clip["frames"], clip["true_frames"]) for clip in record["clips"])
    # The share is not an accident of the count: the clips end where they should.
    assert [clip["stop_reason"] for clip in record["clips"]] == ["end"] * 3
    lines = [message for message in caplog.messages if message.startswith("regenerated ")]
    assert [line.split()[1] for line in lines] == [*(clip["id"] for clip in record["clips"]), "3"]
    assert lines[-1] == f"regenerated 3 clips: {100 * record['right_frac']:.2f}% of codes right"

    # A finished run is not trained again, but what was not checked yet is.
    written = (folder / "regeneration.json").read_bytes()
    (folder / "regeneration.json").unlink()
    assert train(config) == folder
    assert (folder / "regeneration.json").read_bytes() == written


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_untrained_model_is_wrong(shards: Path, tmp_path: Path, architecture: str) -> None:
    config = small_config(architecture, shards, tmp_path, model__num_codebooks=3, model__codebook_size=16)
    data = replace(config.data, positions_per_micro_batch=768)
    builder, _ = build_builder(config)
    datasets = open_datasets([shards])
    examples = first_examples(TokenStream(datasets, builder, data, config.seed), 2)
    assert len(examples) == 2
    by_id = {entry.id: datasets[0].example(index) for index, entry in enumerate(datasets[0].entries)}
    for example in examples:
        codes = true_codes(example.labels, 16)
        assert codes.tolist() == by_id[example.id].codes.astype("int64").tolist()
    torch.manual_seed(0)
    results = regenerate(build_model(config.model).eval(), builder.layout, examples)
    assert [result.id for result in results] == [example.id for example in examples]
    assert sum(result.right for result in results) < 0.4 * sum(result.total for result in results)
    assert all(result.frames <= result.true_frames + EXTRA_FRAMES for result in results)


def test_missing_and_extra_frames_are_wrong() -> None:
    true = torch.arange(6).view(3, 2)
    assert right_codes(true, true) == (6, 6)
    assert right_codes(true[:2], true) == (4, 6)
    assert right_codes(true[:0], true) == (0, 6)
    assert right_codes(torch.cat([true, true]), true) == (6, 12)
    assert right_codes(true.flip(0), true) == (2, 6)


def test_codes_of_the_first_turn() -> None:
    labels = torch.full((7, 3), IGNORE_LABEL)
    labels[1:3, 1:] = torch.tensor([[3, 4], [5, 6]])
    labels[3, 1] = 12
    labels[5, 1:] = 7
    assert true_codes(labels, 10).tolist() == [[3, 4], [5, 6]]
