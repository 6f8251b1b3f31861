"""A session of `spa label`: order and sides, second looks, undo, going on, and what stands in the file."""

import json
from pathlib import Path

import pytest

from spa_recipes.label.file import Choice
from spa_recipes.label.pairs import Judged, comparable
from spa_recipes.label.session import Session, StaleError, schedule
from spa_recipes.label.tally import between_people, counts, with_itself, with_judge
from spa_recipes.label.words import summary
from tests.kit.labelling import pairs_of, session, source_of


def answer(one: Session, *choices: str) -> None:
    """Say these one after another."""
    for choice in choices:
        number = one.current()
        assert number is not None
        one.choose(number, choice)  # type: ignore[arg-type]


def prefer(one: Session, better: int) -> None:
    """Choose the answer of this index, wherever it stands, until there is nothing left."""
    while (number := one.current()) is not None:
        one.choose(number, "left" if one.showings[number].left == better else "right")


def test_each_pair_comes_once_and_a_tenth_of_them_again_with_its_sides_changed() -> None:
    pairs = source_of(100).pairs
    showings = schedule(pairs, 42, 0.1)
    first = {showing.pair: (place, showing) for place, showing in enumerate(showings) if not showing.repeat}
    again = [(place, showing) for place, showing in enumerate(showings) if showing.repeat]
    assert [*first] == list(range(100))
    assert len(again) == 10
    for place, showing in again:
        before, shown = first[showing.pair]
        assert showing.left == 1 - shown.left
        assert place - before > 5  # not from memory


def test_the_sides_are_a_coin_that_falls_the_same_way_again() -> None:
    pairs = source_of(400).pairs
    left = [showing.left for showing in schedule(pairs, 1, 0.0)]
    assert left == [showing.left for showing in schedule(pairs, 1, 0.0)]
    assert left != [showing.left for showing in schedule(pairs, 2, 0.0)]
    assert 160 < sum(left) < 240


def test_the_chosen_answer_is_the_one_that_stood_on_the_chosen_side(tmp_path: Path) -> None:
    with session(tmp_path / "l.jsonl", source_of(40), repeats=0.0) as one:
        for number, showing in enumerate(one.showings):
            side: Choice = "left" if number % 2 else "right"
            one.choose(number, side)
            row, pair = one.file.rows[-1], one.source.pairs[showing.pair]
            better = showing.left if side == "left" else 1 - showing.left
            assert row["better"] == better
            assert row["chosen"][0]["content"] == pair.answers[better]
            assert row["rejected"][0]["content"] == pair.answers[1 - better]


def test_undo_takes_the_last_choice_back_from_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    with session(path, source_of(5)) as one:
        answer(one, "left", "tie", "skip")
        before = path.read_text().splitlines()
        one.undo()
        assert path.read_text().splitlines() == before[:-1]
        assert one.current() == 2
        one.undo()
        one.undo()
        assert path.read_bytes() == b""
        with pytest.raises(StaleError):
            one.undo()


def test_a_session_goes_on_where_the_file_ends(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    with session(path, source_of(30)) as one:
        answer(one, *["left"] * 12)
        at = one.current()
    with session(path, source_of(30)) as again:
        assert again.current() == at == 12
        assert again.progress == (12, 33)


def test_a_pair_is_answered_once_even_by_two_windows(tmp_path: Path) -> None:
    with session(tmp_path / "l.jsonl", source_of(5)) as one:
        answer(one, "left")
        with pytest.raises(StaleError):
            one.choose(0, "right")
        assert [row["choice"] for row in one.rows] == ["left"]


def test_it_knows_whether_prompts_without_a_label_are_left(tmp_path: Path) -> None:
    source = source_of(6)
    with session(tmp_path / "l.jsonl", source, repeats=0.0) as one:
        answer(one, "left", "tie", "skip", "left")
        assert one.without_label == 4
    with session(tmp_path / "l.jsonl", source._replace(pairs=source.pairs[:5], dropped=2), repeats=0.0) as one:
        prefer(one, 0)
        assert one.without_label == 5  # two dropped; one tied, one skipped, one not shown
    with session(tmp_path / "m.jsonl", source) as one:
        prefer(one, 1)
        assert one.without_label == 0


def test_a_skipped_pair_does_not_come_again(tmp_path: Path) -> None:
    with session(tmp_path / "l.jsonl", source_of(10)) as one:
        answer(one, *["skip"] * 10)
        assert one.current() is None
        assert one.progress == (11, 11)


def test_the_agreement_of_second_looks(tmp_path: Path) -> None:
    with session(tmp_path / "l.jsonl", source_of(100)) as one:
        prefer(one, better=1)
        same = with_itself(one.rows)
        assert same is not None
        assert (same.same, same.n, same.kappa) == (10, 10, None)  # by chance, too, the same label would come
        assert counts(one.rows) == (100, 0, 0, 10)
    with session(tmp_path / "left.jsonl", source_of(100)) as always_left:
        answer(always_left, *["left"] * 110)
        position = with_itself(always_left.rows)
        assert position is not None
        assert position.same == 0  # who always says left contradicts himself
        assert position.kappa is not None
        assert position.kappa < 0


def test_two_people_share_a_file_and_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    with session(path, source_of(20), by="ada") as ada:
        prefer(ada, better=0)
    with session(path, source_of(20), by="bob") as bob:
        assert bob.current() == 0
        assert not bob.can_undo  # ada's choices are hers
        answer(bob, *["tie"] * 5)
        prefer(bob, better=0)
        agreed = between_people(bob.file.rows)["ada", "bob"]
        assert (agreed.same, agreed.n) == (15, 20)
        assert any("ada and bob say the same of 75.0%" in line for line in summary(bob))


def test_how_often_the_judge_is_right(tmp_path: Path) -> None:
    with session(tmp_path / "l.jsonl", source_of(50, Judged(0, 0.6)), repeats=0.0) as one:
        answer(one, *["tie"] * 10)
        for _ in range(30):
            number = one.current()
            assert number is not None
            one.choose(number, "left" if one.showings[number].left == 0 else "right")
        prefer(one, better=1)
        agreed = with_judge(one.rows)
        assert agreed is not None
        assert (agreed.same, agreed.n) == (30, 40)  # ties are not counted
        assert agreed.low < 0.75 < agreed.high
        assert summary(one)[-1] == (
            "you and the judge of iteration 1 of mini agree on 75.0% [59.8%, 85.8%] of 40 pairs, "
            "drawn at random from all"
        )


def test_agreement_on_doubted_pairs_is_not_told_as_that_of_all(tmp_path: Path) -> None:
    with session(tmp_path / "l.jsonl", source_of(4, Judged(0, 0.5), pick="doubted")) as one:
        prefer(one, better=0)
        assert "those that it doubts most of 4" in summary(one)[-2]
        assert "of its other pairs this says nothing" in summary(one)[-1]


def test_pairs_that_nobody_can_compare_are_left_out() -> None:
    texts = [("q", "a", "a"), ("q", " ", "b"), ("q", "a", "b"), ("q", "a", "b"), ("q2", "a", "b")]
    assert [pair.prompt[0]["content"] for pair in comparable(pairs_of(texts))] == ["q", "q2"]


def test_the_judge_is_nowhere_in_what_the_person_chooses_from() -> None:
    hidden = source_of(1, Judged(1, 0.9)).pairs[0]
    assert hidden.id == source_of(1, Judged(0, 0.6)).pairs[0].id


def test_a_row_is_on_the_disk_before_the_next_pair(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    with session(path, source_of(3)) as one:
        answer(one, "left")
        (line,) = path.read_text().splitlines()
        assert json.loads(line)["status"] == "preferred"
