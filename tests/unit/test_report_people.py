"""What people said of a run's pairs, in its report."""

from pathlib import Path

from spa_recipes.label.pairs import Judged
from spa_recipes.report.people import agreements
from tests.kit.labelling import session, source_of


def label(path: Path, better: list[int], pick: str) -> None:
    """Label pairs of which the judge always prefers the first answer."""
    with session(path, source_of(len(better), Judged(0, 0.6), pick), by="", seed=1, repeats=0) as one:
        for answer in better:
            number = one.current()
            assert number is not None
            one.choose(number, "left" if one.showings[number].left == answer else "right")


def test_people_agree_with_the_judge_as_often_as_they_do(tmp_path: Path) -> None:
    path = tmp_path / "labels-1.jsonl"
    label(path, [0, 0, 0, 1], "random")
    assert agreements(path) == {
        # Wilson's interval of 3 of 4: (0.75 + 1.96^2/8 +- 1.96*sqrt(0.75*0.25/4 + 1.96^2/64)) / (1 + 1.96^2/4)
        "people agree with the judge on pairs drawn at random": "75.0% (30.1% to 95.4%) of 4 pairs"
    }


def test_pairs_that_it_doubts_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "labels-1.jsonl"
    label(path, [1, 0], "doubted")
    assert [*agreements(path)] == ["people agree with the judge on pairs that it doubts most"]


def test_without_labels_nothing_is_said(tmp_path: Path) -> None:
    assert agreements(tmp_path / "none.jsonl") == {}
    (tmp_path / "other.jsonl").write_text('{"something": "else"}\nno json\n')
    assert agreements(tmp_path / "other.jsonl") == {}
