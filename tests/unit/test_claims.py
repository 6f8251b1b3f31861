"""Shards that several workers of a pool take, one after the other, each once."""

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from spa_recipes.errors import StageError
from spa_recipes.stages.common import Shards, shard_size
from spa_recipes.stages.context import Context
from spa_recipes.state import atomic, claims
from spa_recipes.state.stagedir import StageDir
from tests.kit.stages import context_of
from tests.kit.state import FIELDS

NUMBERS = pa.schema([("n", pa.int64())])


def worker(folder: Path, name: str | None) -> Context:
    context = context_of(folder)
    context.pool = name
    return context


def shards_of(folder: Path, name: str | None) -> Shards:
    return Shards(worker(folder, name), "t", 10, 2, NUMBERS)


def rows(start: int, end: int) -> pa.Table:
    return pa.table({"n": list(range(start, end))})


def take(shards: Shards) -> Iterator[tuple[int, int]]:
    """The shards that a worker takes until none is left, without waiting for those of others."""
    return itertools.chain.from_iterable(itertools.islice(shards.turns(), 1))


def test_each_shard_is_taken_once_and_the_ordinary_process_joins_them(tmp_path: Path) -> None:
    one, two = shards_of(tmp_path, "pool-0"), shards_of(tmp_path, "pool-1")
    taken_by_one, taken_by_two = take(one), take(two)
    assert [next(taken_by_one), next(taken_by_two), next(taken_by_one)] == [(0, 2), (2, 4), (4, 6)]
    one.write((0, 2), rows(0, 2))
    two.write((2, 4), rows(2, 4))
    one.write((4, 6), rows(4, 6))
    assert list(taken_by_two) == [(6, 8), (8, 10)]
    assert list(taken_by_one) == []
    two.write((6, 8), rows(6, 8))
    two.write((8, 10), rows(8, 10))
    assert list(one.turns()) == []  # all is there: no more turns
    assert one.joined() is None
    joiner = shards_of(tmp_path, None)
    assert list(joiner.missing()) == []
    table = joiner.joined()
    assert table is not None
    assert table["n"].to_pylist() == list(range(10))
    assert not [path for path in (tmp_path / "attempts" / "1" / claims.CLAIMS).rglob("*") if path.is_file()]


def test_the_shards_of_a_lost_worker_are_taken_by_a_waiting_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, other = shards_of(tmp_path, "pool-0"), shards_of(tmp_path, "pool-1")
    held = [next(turn) for turn in [take(lost)]]
    assert held == [(0, 2)]
    made = []

    def pause(seconds: float) -> None:
        """What the driver does while the other worker waits."""
        assert claims.free(tmp_path / "attempts" / "1", "pool-0") == 1

    monkeypatch.setattr(time, "sleep", pause)
    for start, end in other.missing():
        other.write((start, end), rows(start, end))
        made.append(start)
    assert made == [2, 4, 6, 8, 0]
    assert other.whole()["n"].to_pylist() == list(range(10))


def test_a_damaged_shard_is_set_aside_by_the_worker_that_takes_it(tmp_path: Path) -> None:
    before = shards_of(tmp_path, "pool-0")
    for start, end in take(before):
        before.write((start, end), rows(start, end))
    shard = tmp_path / "work" / "shards" / "t" / "00000004-00000006.parquet"
    shard.write_bytes(b"PAR1 not really")
    assert list(take(shards_of(tmp_path, "pool-1"))) == [(4, 6)]
    assert (tmp_path / "work" / "damaged" / f"{shard.name}.damaged-1").exists()


def test_claims_of_an_earlier_attempt_hold_nobody_up(tmp_path: Path) -> None:
    assert next(take(shards_of(tmp_path, "pool-0"))) == (0, 2)
    again = worker(tmp_path, "pool-0")
    again.spec = again.spec.__class__(**{**again.spec.__dict__, "attempt": 2})
    assert next(take(Shards(again, "t", 10, 2, NUMBERS))) == (0, 2)


def test_one_process_of_all_does_what_is_done_once(tmp_path: Path) -> None:
    assert worker(tmp_path, "pool-0").takes("choice")
    assert not worker(tmp_path, "pool-1").takes("choice")
    claims.free(tmp_path / "attempts" / "1", "pool-0")
    assert worker(tmp_path, "pool-1").takes("choice")


@pytest.mark.parametrize(("total", "size"), [(10, 64), (2000, 64), (20_000, 512), (4000, 125), (0, 64)])
def test_there_are_shards_for_several_workers_and_none_is_tiny(total: int, size: int) -> None:
    assert shard_size(total, fewest=64, most=512) == size


def test_an_attempt_that_a_newer_one_replaced_commits_nothing(tmp_path: Path) -> None:
    stage = StageDir(tmp_path / "stage")
    for _ in range(2):
        stage.new_attempt()
    for attempt, text in ((1, "old"), (2, "new")):
        stage.draft(attempt).mkdir()
        (stage.draft(attempt) / "rows").write_text(text)
    with pytest.raises(StageError, match="attempt 2 has begun, so attempt 1 commits nothing"):
        stage.commit({**FIELDS, "attempt": 1})
    assert not stage.output.exists()
    stage.commit({**FIELDS, "attempt": 2})
    assert (stage.output / "rows").read_text() == "new"


def test_temporary_names_tell_hosts_apart_and_fit_the_file_system(tmp_path: Path) -> None:
    name = "x" * 250
    temporary = atomic.temporary_name(tmp_path / name)
    assert os.uname().nodename.replace(".", "-")[:32] in temporary.name
    assert atomic.TEMPORARY.fullmatch(temporary.name)
    assert atomic.TEMPORARY.fullmatch(".error.json.4711.tmp")  # of an earlier version
    atomic.write_text(tmp_path / name, "x")
    assert temporary != atomic.temporary_name(tmp_path / name)
