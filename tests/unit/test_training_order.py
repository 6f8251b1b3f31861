"""The order of rows: complete, and the same for every way to cut a global batch."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spa_recipes.errors import RecipeError
from spa_recipes.training.common import accumulation_steps
from spa_recipes.training.order import PADDING_ROW, EpochOrder, TokenRows, as_dataset, rows_in_step, steps_per_epoch
from tests.kit.training import make_pairs, preference


def order(lengths: list[int], size: int, parallel: int, epoch: int = 0, *, group: bool = False) -> list[int]:
    return list(EpochOrder(lengths, size, parallel, seed=3, group_by_length=group, epoch=lambda: epoch))


CUTS = st.sampled_from([(8, 1), (8, 2), (8, 4), (8, 8), (6, 3), (1, 1)])


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=70), cut=CUTS, group=st.booleans())
def test_every_row_once_in_the_same_global_batch(lengths: list[int], cut: tuple[int, int], group: bool) -> None:
    size, parallel = cut
    count = len(lengths)
    whole = order(lengths, size, 1, group=group)
    assert sorted(whole) == list(range(count))
    assert order(lengths, size, parallel, group=group)[:count] == whole
    padded = order(lengths, size, parallel, group=group)
    assert padded[count:] == [count] * (-count % parallel)
    assert len(EpochOrder(lengths, size, parallel, 3, group_by_length=group, epoch=lambda: 0)) == len(padded)
    steps = [rows_in_step(step, count, size) for step in range(steps_per_epoch(count, size))]
    assert sum(steps) == count
    assert all(step == size for step in steps[:-1])
    assert rows_in_step(len(steps), count, size) == steps[0]


def test_epochs_and_seeds_differ() -> None:
    lengths = [1] * 100
    assert order(lengths, 8, 1, epoch=0) != order(lengths, 8, 1, epoch=1)
    assert order(lengths, 8, 1, epoch=1) == order(lengths, 8, 1, epoch=1)


def test_grouping_puts_like_lengths_together() -> None:
    lengths = [(7 * index) % 40 + 1 for index in range(400)]
    grouped = order(lengths, 8, 1, group=True)
    spreads = [
        max(lengths[i] for i in grouped[start : start + 8]) - min(lengths[i] for i in grouped[start : start + 8])
        for start in range(0, 400, 8)
    ]
    assert sum(spreads) / len(spreads) < 2


def test_rows_are_read_in_batches_and_padding_is_marked() -> None:
    given_rows: list[dict[str, Any]] = make_pairs(5)
    rows = TokenRows(as_dataset(given_rows), [9, 8, 3, 7, 6])
    batch = rows.__getitems__([4, 0, 5])
    assert [row["row"] for row in batch] == [4, 0, PADDING_ROW]
    assert batch[0]["chosen_ids"] == given_rows[4]["chosen_ids"]
    assert batch[2]["chosen_ids"] == given_rows[2]["chosen_ids"]
    assert rows[1]["prompt_ids"] == given_rows[1]["prompt_ids"]
    assert len(rows) == 5


def test_accumulation_follows_from_the_global_batch() -> None:
    settings_ = preference(global_batch_size=8, per_device_train_batch_size=2)
    assert accumulation_steps(settings_, 1) == 4
    assert accumulation_steps(settings_, 4) == 1
    with pytest.raises(RecipeError, match=r"global_batch_size 8 .* 3 processes .*per_device_train_batch_size 2"):
        accumulation_steps(settings_, 3)
