"""The sandbox world has the properties that make preference learning in it worth measuring."""

import random
import statistics
from typing import Any

import pytest

from spa_recipes.sandbox.gold import gold_reward
from spa_recipes.sandbox.rows import preference_rows, sft_rows
from spa_recipes.sandbox.words import BODIES, PERSONS, TOPICS
from spa_recipes.sandbox.world import all_prompts, read_prompt, sample_skill, vocabulary, write_reply


class Reply:
    """A reply by a random author, with what is known about it."""

    def __init__(self, prompt: str, rng: random.Random) -> None:
        self.skill = sample_skill(rng)
        self.text = write_reply(prompt, self.skill, rng)
        self.gold = gold_reward(prompt, self.text)
        self.words = len(self.text.split())


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Reply, Reply]]:
    rng = random.Random(7)
    return [(Reply(prompt, rng), Reply(prompt, rng)) for prompt in rng.sample(all_prompts(), 3000)]


@pytest.fixture(scope="module")
def labelled() -> list[dict[str, Any]]:
    return preference_rows(3000, seed=11)


def test_prompts_are_many_and_distinct() -> None:
    prompts = all_prompts()
    assert len(prompts) == len(set(prompts)) == 32 * 4 * 2 * 3 * (len(PERSONS) + 1)
    assert len(prompts) >= 12_000


def test_prompt_is_read_back() -> None:
    request = read_prompt("in detail , what is so special about snow ? it is for my baker .")
    assert request.ideal_sentences == 4
    assert request == ("snow", "why", "detail", "baker")
    assert read_prompt("tell me an old story about tea .") == ("tea", "tell", "plain", None)


def test_lexicon_is_complete_and_unambiguous() -> None:
    assert len(TOPICS) == 32
    assert all(len(topic.things) == 6 and len(set(topic.adjectives)) == 3 for topic in TOPICS.values())
    things = [thing for topic in TOPICS.values() for thing in topic.things]
    adjectives = {adjective for topic in TOPICS.values() for adjective in topic.adjectives}
    slot_words = [*TOPICS, *PERSONS, *things, *adjectives]
    assert len(slot_words) == len(set(slot_words))
    patterns = [pattern for bodies in BODIES.values() for pattern in bodies]
    assert len(patterns) == len(set(patterns))
    assert not {word for pattern in patterns for word in pattern.split()} & set(slot_words)


def test_vocabulary_covers_everything_that_is_said(pairs: list[tuple[Reply, Reply]]) -> None:
    words = vocabulary()
    assert 400 <= len(words) <= 500
    assert words == sorted(set(words))
    said = {word for prompt in all_prompts() for word in prompt.split()}
    said |= {word for pair in pairs for reply in pair for word in reply.text.split()}
    assert said == set(words)


def test_text_is_words_and_single_spaces(pairs: list[tuple[Reply, Reply]]) -> None:
    for text in [*all_prompts(), *(reply.text for pair in pairs for reply in pair)]:
        assert text == " ".join(text.split()) == text.lower() != ""


def test_replies_are_short(pairs: list[tuple[Reply, Reply]]) -> None:
    assert 25 <= statistics.mean(reply.words for pair in pairs for reply in pair) <= 33


def test_longer_is_not_better(pairs: list[tuple[Reply, Reply]]) -> None:
    unequal = [(a, b) for a, b in pairs if a.words != b.words and a.gold != b.gold]
    longer_wins = statistics.mean((a.words > b.words) == (a.gold > b.gold) for a, b in unequal)
    assert 0.45 <= longer_wins <= 0.60


def test_skill_shows(pairs: list[tuple[Reply, Reply]]) -> None:
    replies = [reply for pair in pairs for reply in pair]
    assert statistics.correlation([r.skill for r in replies], [r.gold for r in replies]) > 0.65
    assert all(0 <= reply.skill <= 1 for reply in replies)


def test_most_labels_are_right(labelled: list[dict[str, Any]]) -> None:
    clear = [row for row in labelled if row["gold_chosen"] != row["gold_rejected"]]
    assert len(clear) > 0.97 * len(labelled)
    assert 0.90 <= statistics.mean(row["gold_chosen"] > row["gold_rejected"] for row in clear) <= 0.95


def test_preference_rows_have_the_usual_form(labelled: list[dict[str, Any]]) -> None:
    assert len({row["prompt"] for row in labelled}) == len(labelled)
    for row in labelled:
        assert list(row) == ["prompt", "chosen", "rejected", "gold_chosen", "gold_rejected"]
        for side in ("chosen", "rejected"):
            user, assistant = row[side]
            assert user == {"role": "user", "content": row["prompt"]}
            assert assistant["role"] == "assistant"
            assert row[f"gold_{side}"] == gold_reward(row["prompt"], assistant["content"])
        assert row["chosen"][1]["content"] != row["rejected"][1]["content"]


def test_sft_rows_have_the_usual_form() -> None:
    for row in sft_rows(50, seed=0):
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert read_prompt(user["content"])
        assert gold_reward(user["content"], assistant["content"]) <= 5.6


def test_rows_are_prefixes_and_seeds_differ(labelled: list[dict[str, Any]]) -> None:
    assert preference_rows(20, seed=11) == labelled[:20]
    assert preference_rows(20, seed=12) != labelled[:20]
    assert sft_rows(20, seed=1) == sft_rows(40, seed=1)[:20]
    assert sft_rows(20, seed=1) != sft_rows(20, seed=2)


@pytest.mark.parametrize("n", [-1, len(all_prompts()) + 1])
def test_there_are_only_so_many_preference_rows(n: int) -> None:
    with pytest.raises(ValueError, match="prompts"):
        preference_rows(n, seed=0)


def test_unknown_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="not a prompt of the sandbox world"):
        write_reply("how are you ?", 1.0, random.Random(0))
