"""The parts of the benchmark of judges that are easy to get wrong: pairs that are held out, balanced, or read alike."""

import pytest

from spa_recipes.data.chat import Renderer
from tests.benchmarks.real_judge import balanced, length_ratio, longer_wins, read_alike, rightness, split, usable
from tests.kit.chat_templates import FAMILIES, tokenizer_of


def pair(prompt: str, chosen: int | str, rejected: int | str) -> dict[str, str]:
    """A pair of answers, which may be given by their lengths."""
    chosen, rejected = ("y" * side if isinstance(side, int) else side for side in (chosen, rejected))
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


ROWS = [pair(f"prompt {k % 7}", f"chosen {k}", f"rejected {k}") for k in range(40)]


@pytest.mark.parametrize("seed", range(5))
def test_one_pair_of_each_held_out_prompt_and_none_of_these_prompts_is_learned(seed: int) -> None:
    pool, heldout = split(ROWS, 3, seed)
    prompts = {row["prompt"] for row in heldout}
    assert len(heldout) == len(prompts) == 3
    assert sorted(map(ROWS.index, pool)) == [k for k, row in enumerate(ROWS) if row["prompt"] not in prompts]
    assert all(row in ROWS for row in heldout)


def test_seeds_split_in_their_own_way_and_always_in_the_same() -> None:
    first, again, other = split(ROWS, 3, 1), split(ROWS, 3, 1), split(ROWS, 3, 2)
    assert first == again
    assert first != other


def test_an_answer_to_several_prompts_is_left_out() -> None:
    null = pair("a prompt", "the same to all", "bad"), pair("another", "the same to all", "worse")
    assert usable([*null, *ROWS]) == ROWS


def test_longer_wins() -> None:
    assert [longer_wins(pair("", *lengths)) for lengths in ((9, 3), (3, 9), (5, 5))] == [1.0, 0.0, 0.5]


def test_lengths_alone_are_right_on_half_of_the_balanced_part() -> None:
    lengths = [(100, 10), (20, 10), (10, 20), (11, 10), (10, 90), (30, 10), (10, 10), (10, 10)]
    pairs = [pair("", *sides) for sides in lengths]
    places = balanced(pairs)
    # (10, 90) takes (100, 10), and (10, 20) takes (20, 10); answers of the same length are in no part
    assert places == [0, 1, 2, 4]
    assert sum(longer_wins(pairs[i]) for i in places) == len(places) / 2
    assert sum(length_ratio(pairs[i]) for i in places) == pytest.approx(0, abs=0.2)


def test_the_rarer_kind_may_be_the_longer_one() -> None:
    assert balanced([pair("", *sides) for sides in ((10, 20), (10, 30), (21, 10))]) == [0, 2]


def test_answers_that_end_behind_what_is_read_are_read_alike() -> None:
    renderer = Renderer(tokenizer_of(FAMILIES["yi"]), max_prompt_length=40, max_length=60)
    pairs = [pair("a", 5, 3), pair("b", 50, 500), pair("c", 3, 3), pair("d", 1, 500)]
    assert read_alike(pairs, renderer) == [1, 2]


def test_a_judge_is_right_where_it_prefers_what_the_data_prefers() -> None:
    pairs = [pair("p", "good", "bad"), pair("q", "fine", "poor"), pair("r", "well", "ill")]

    def row(prompt: str, chosen: str, rejected: str, margin: float) -> dict[str, object]:
        texts = {"prompt": ("user", prompt), "chosen": ("assistant", chosen), "rejected": ("assistant", rejected)}
        return {name: [{"role": role, "content": text}] for name, (role, text) in texts.items()} | {"margin": margin}

    labelled = [row("p", "good", "bad", 0.1), row("q", "poor", "fine", 2.0), row("r", "well", "ill", 0.0)]
    assert rightness(pairs, labelled) == [1.0, 0.0, 0.5]
    with pytest.raises(ValueError, match="another pair: 'q'"):
        rightness(pairs, [labelled[1], labelled[0], labelled[2]])
