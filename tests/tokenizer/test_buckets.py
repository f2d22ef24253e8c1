"""Which items share a forward pass."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from moss.tokenizer.buckets import LONGEST_PADDING_FRAC, buckets, padded


@given(frames=st.lists(st.integers(0, 300), max_size=40), most=st.integers(1, 1000))
def test_work_and_padding_are_bounded_and_nothing_is_lost(frames: list[int], most: int) -> None:
    made = buckets(frames, most)
    assert sorted(i for bucket in made for i in bucket) == [i for i, count in enumerate(frames) if count]
    for bucket in made:
        longest = max(frames[i] for i in bucket)
        assert len(bucket) == 1 or longest * len(bucket) <= most
        assert all(longest - frames[i] <= LONGEST_PADDING_FRAC * longest for i in bucket)


def test_similar_lengths_go_together() -> None:
    assert buckets([10, 100, 9, 0, 98, 300], 250) == [[5], [1, 4], [0, 2]]
    assert buckets([100, 100, 100], 250) == [[0, 1], [2]]
    assert buckets([], 10) == []


def test_items_are_filled_up_behind() -> None:
    rows = padded([torch.ones(1, 2, dtype=torch.long), torch.ones(3, 2, dtype=torch.long)], 0, 7)
    assert rows.tolist() == [[[1, 1], [7, 7], [7, 7]], [[1, 1], [1, 1], [1, 1]]]
    assert padded([torch.ones(2, 3), torch.ones(2, 1)], -1, 0)[1].tolist() == [[1, 0, 0], [1, 0, 0]]
    item = torch.ones(4)
    assert padded([item], -1, 0).data_ptr() == item.data_ptr()
