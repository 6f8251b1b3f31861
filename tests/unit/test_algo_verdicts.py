"""Verdicts in words: what is read from a reply, and the rewards and figures that follow, against plain loops."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spa_recipes.algo.verdicts import Comparison, Verdict, figures, parse_verdict, rewards

VERDICTS: tuple[Verdict, ...] = ("first", "second", "tie", "unparsed")
OPPOSITE: dict[Verdict, Verdict] = {"first": "second", "second": "first", "tie": "tie", "unparsed": "unparsed"}


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("[[A]]", "first"),
        ("A is clearer.\n[[B]]", "second"),
        ("Both are fine. [[C]]", "tie"),
        ("I must write [[A]], [[B]] or [[C]]. The second one is wrong, so:\n\n[[A]]", "first"),
        ("[[A]] no, wait: [[B]]. I am sure.", "second"),
        ("**[[C]]**", "tie"),
        ("[[A]][[B]]", "second"),
        ("[[[A]]]", "first"),
        ("A", "first"),
        (" B.\n", "second"),
        ("**C**", "tie"),
        ("(A)", "first"),
        ("[B]", "second"),
        ("", "unparsed"),
        (" \n", "unparsed"),
        ("A or B", "unparsed"),
        ("a", "unparsed"),
        ("[[a]]", "unparsed"),
        ("[[ A ]]", "first"),
        ("I say [[ A ]]", "unparsed"),
        ("[[D]]", "unparsed"),
        ("D", "unparsed"),
        ("AB", "unparsed"),
        ("Answer A", "unparsed"),
        ("A is better", "unparsed"),
        ("_A_", "unparsed"),
        ("The winner is [A]", "unparsed"),
        ("A [[D]]", "unparsed"),
    ],
)
def test_what_is_read_from_a_reply(text: str, verdict: Verdict) -> None:
    assert parse_verdict(text) == verdict


@given(st.text(), st.sampled_from("ABC"), st.text().filter(lambda text: "[[" not in text and "]]" not in text))
def test_the_last_bracketed_letter_counts_whatever_stands_around_it(before: str, letter: str, after: str) -> None:
    if after.startswith("]"):
        after = " " + after
    expected = {"A": "first", "B": "second", "C": "tie"}[letter]
    assert parse_verdict(f"{before} [[{letter}]]{after}") == expected


@given(st.text(alphabet="ABCabc[] .\n*x"))
def test_only_a_bracketed_or_a_lonely_letter_is_a_verdict(text: str) -> None:
    bracketed = [text[i + 2] for i in range(len(text) - 4) if text[i : i + 2] == "[[" and text[i + 3 : i + 5] == "]]"]
    letters = [letter for letter in bracketed if letter in "ABC"]
    words = [character for character in text if character.isalnum()]
    if letters:
        expected = letters[-1]
    elif len(words) == 1 and words[0] in "ABC":
        expected = words[0]
    else:
        expected = ""
    assert parse_verdict(text) == {"A": "first", "B": "second", "C": "tie", "": "unparsed"}[expected]


def comparisons(answers: int) -> st.SearchStrategy[list[Comparison]]:
    """Verdicts on some ordered pairs among so many answers, some of them several times."""
    pairs = list(itertools.permutations(range(answers), 2))
    one = st.builds(
        lambda pair, verdict: Comparison(pair[0], pair[1], verdict), st.sampled_from(pairs), st.sampled_from(VERDICTS)
    )
    return st.lists(one, max_size=30)


MANY = st.integers(2, 5).flatmap(lambda n: st.tuples(st.just(n), comparisons(n)))


@given(MANY)
def test_a_reward_is_the_share_of_comparisons_won(case: tuple[int, list[Comparison]]) -> None:
    answers, made = case
    for k, reward in enumerate(rewards(answers, made)):
        points, count = 0.0, 0
        for first, second, verdict in made:
            if k not in (first, second):
                continue
            count += 1
            if verdict in ("tie", "unparsed"):
                points += 0.5
            elif (verdict == "first") == (k == first):
                points += 1.0
        assert reward == (points / count if count else 0.5)


@given(MANY)
def test_the_place_of_an_answer_is_no_merit(case: tuple[int, list[Comparison]]) -> None:
    """The same judgments, shown the other way round, give the same rewards."""
    answers, made = case
    turned = [Comparison(second, first, OPPOSITE[verdict]) for first, second, verdict in made]
    assert rewards(answers, turned) == rewards(answers, made)


@given(st.integers(2, 6), st.sampled_from(["first", "second"]))
def test_a_judge_that_sees_only_the_place_finds_all_answers_equal(answers: int, place: Verdict) -> None:
    made = [Comparison(k, m, place) for k, m in itertools.permutations(range(answers), 2)]
    assert rewards(answers, made) == [0.5] * answers


@given(st.permutations(range(4)))
def test_a_consistent_judge_ranks(order: list[int]) -> None:
    """Answer `order[0]` beats all, `order[1]` all but that one, ..."""
    rank = {k: place for place, k in enumerate(order)}
    made = [
        Comparison(k, m, "first" if rank[k] < rank[m] else "second") for k, m in itertools.permutations(range(4), 2)
    ]
    assert [rewards(4, made)[k] for k in order] == [1.0, 4 / 6, 2 / 6, 0.0]


PAIRS = st.lists(st.tuples(st.sampled_from(VERDICTS), st.sampled_from(VERDICTS)), min_size=1, max_size=20)


@given(PAIRS)
def test_figures_are_those_of_plain_loops(pairs: list[tuple[Verdict, Verdict]]) -> None:
    readable = disagree = first = second = ties = unparsed = 0
    for one, other in pairs:
        if one != "unparsed" and other != "unparsed":
            readable += 1
            disagree += other != OPPOSITE[one]
        for verdict in (one, other):
            first += verdict == "first"
            second += verdict == "second"
            ties += verdict == "tie"
            unparsed += verdict == "unparsed"
    found = figures(pairs)
    assert found.order_disagreement == (disagree / readable if readable else None)
    assert found.first_place == (first / (first + second) if first + second else None)
    assert found.ties == ties / (2 * len(pairs))
    assert found.unparsed == unparsed / (2 * len(pairs))


def test_figures_of_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        figures([])
