"""Targets begin after the prompt, pad codes are none, and their number is known without building them."""

import pytest
import torch

from moss.errors import DataError
from moss.sequence.labels import next_position_labels, target_counts
from moss.sequence.layout import DelayLayout
from moss.sequence.prompt import PromptMode, UserPrompt
from moss.spec import IGNORE_LABEL, SpecialTokens

SPECIAL = SpecialTokens(pad=0, im_start=1, im_end=2, audio_start=3, audio_end=4, user_slot=5, gen_slot=6, delay_slot=7)


def letters(text: str) -> list[int]:
    return [100 + ord(letter) for letter in text]


@pytest.mark.parametrize("num_codebooks", [1, 2, 5])
def test_counts_of_built_labels_equal_target_counts(num_codebooks: int) -> None:
    layout = DelayLayout(encode=letters, special=SPECIAL, num_codebooks=num_codebooks, codebook_size=9)
    frames = torch.tensor([1, 2, 9])
    counted = torch.zeros(1 + num_codebooks, dtype=torch.long)
    for length in frames.tolist():
        codes = torch.randint(0, 9, (length, num_codebooks), generator=torch.Generator().manual_seed(length))
        prompt = UserPrompt(text="abc", reference=[codes])
        rows = layout.conversation(prompt, [codes], PromptMode.loss)
        start = len(layout.conversation(prompt))
        inputs, labels = next_position_labels(rows, start, layout.pad_code)
        assert torch.equal(inputs, rows[:-1])
        assert (labels[: start - 1] == IGNORE_LABEL).all()
        assert torch.equal(labels[start - 1 :, 0], rows[start:, 0])
        kept = labels[:, 1:] != IGNORE_LABEL
        assert torch.equal(labels[:, 1:][kept], rows[1:, 1:][kept])
        counted += (labels != IGNORE_LABEL).sum(0)
    assert torch.equal(counted, target_counts(frames, num_codebooks))


def test_labels_do_not_share_memory_with_inputs() -> None:
    rows = torch.arange(12).reshape(4, 3)
    inputs, labels = next_position_labels(rows, 1, 99)
    labels.zero_()
    assert torch.equal(inputs, torch.arange(9).reshape(3, 3))


@pytest.mark.parametrize("num_prompt", [0, 4, 5])
def test_nothing_to_learn_is_an_error(num_prompt: int) -> None:
    with pytest.raises(DataError, match=f"the prompt has {num_prompt} of 4 positions, so there is no target"):
        next_position_labels(torch.zeros(4, 3, dtype=torch.long), num_prompt, 99)


def test_counts_of_kept_codebooks_and_other_ends() -> None:
    counts = target_counts([3, 5], 4, text_targets=1, first_targets=2, kept=[1, 3])
    assert counts.tolist() == [10, 8 + 4, 5, 5, 0]


@pytest.mark.parametrize("kept", [[1], [0, 1], [1, 5]])
def test_kept_must_fit(kept: list[int]) -> None:
    with pytest.raises(DataError, match=r"kept=\[.*\] for 2 answers; give one number of 1\.\.4 codebooks an answer"):
        target_counts([3, 5], 4, kept=kept)
