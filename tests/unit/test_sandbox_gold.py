"""The true reward of the sandbox world: its formula by hand, its direction, and that no text can break it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spa_recipes.sandbox.gold import gold_parts, gold_reward
from spa_recipes.sandbox.words import CLOSERS, FILLERS, OPENERS
from spa_recipes.sandbox.world import all_prompts, vocabulary, write_reply

# The plain style, so two sentences are ideal.
PROMPT = "please help me choose the right things for tea . it is for my aunt ."
BODY = "i would take the kettle . never save on the lemon ."

# What is said, and its reward worked out from the formula. BODY alone has full coverage on the task: 2 + 1.2.
BY_HAND = [
    (BODY, 3.2),
    ("", -0.35 * 2 - 0.8),
    ("i would take the kettle .", 1.0 + 0.6 - 0.35),
    (f"{BODY} spend your coins on the steam .", 3.2 - 0.35),
    ("i would take the kettle . never save on the kettle .", 1.0 + 0.6),
    ("i would take the kettle . a witch once blessed the lemon .", 2.0 + 1.2 / 2),
    ("a giant once lost the kettle . a witch once blessed the lemon .", 1.0 + 0.0 - 0.35 - 0.7),
    ("i would take the kettle . i would take the anchor .", 1.0 + 1.2 * 0.5 * 0.5 - 0.6),
    ("i would take the kettle . for boats , choose the lemon .", 1.0 + 1.2 * 0.5 * 0.5 - 0.6),
    ("i would take the kettle . for tea , choose the lemon .", 3.2),
    ("i would take the hot kettle . never save on the lemon .", 3.2 + 0.3),
    ("i would take the hot kettle . never save on the fragrant lemon .", 3.2 + 0.3),
    ("i would take the salty kettle . never save on the lemon .", 3.2 - 0.4),
    ("i would take the salty kettle . never save on the wooden lemon .", 3.2 - 0.8),
    ("i would take the hot kettle . never save on the wooden lemon .", 3.2 + 0.3 - 0.4),
    (f"what a lovely question ! {BODY}", 3.2 + 0.8),
    (f"let us see . {BODY}", 3.2),
    (f"what a silly question ! {BODY}", 3.2 - 1.0),
    (f"{BODY} what a lovely question !", 3.2 - 0.35),
    (f"{BODY} let us see .", 3.2 - 0.35),
    (f"{BODY} you will do wonderfully .", 3.2 + 0.6),
    (f"{BODY} that is all .", 3.2),
    (f"{BODY} now go away .", 3.2 - 0.8),
    (f"you will do wonderfully . {BODY}", 3.2 - 0.35),
    (f"{BODY} your aunt will like this .", 3.2 + 0.7),
    (f"{BODY} your aunt will like this . do share this with your aunt .", 3.2 + 0.7),
    (f"{BODY} your uncle will like this .", 3.2 - 0.5),
    (f"{BODY} things are what they are .", 3.2 - 0.35),
    (f"{BODY} never save on the lemon .", 3.2 - 0.7),
    (f"{BODY} the the kettle .", 3.2 - 0.7),
    (f"{BODY} .", 3.2 - 0.7),
    (f"{BODY} for tea ,", 3.2 - 0.8),
    (f"{BODY} you will do wonderfully . for tea ,", 3.2 - 0.35 - 0.8),
    (f"what a lovely question ! {BODY} your aunt will like this . you will do wonderfully .", 3.2 + 0.8 + 0.7 + 0.6),
]
PERFECT = (
    "i am so happy to help . i would take the hot kettle . never save on the lemon . "
    "do share this with your aunt . you will do wonderfully ."
)
BEST_REWARD = 5.6


@pytest.mark.parametrize(("response", "reward"), BY_HAND)
def test_reward_is_what_the_formula_gives_by_hand(response: str, reward: float) -> None:
    assert gold_reward(PROMPT, response) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("prompt", "response", "reward"),
    [
        ("in short , how do i get started with bees ?", "hold the hive close .", 3.2),
        ("in short , how do i get started with bees ?", "hold the hive close . first look after the wax .", 3.2 - 0.35),
        ("in short , how do i get started with bees ?", "hold the hive close . your son can try it too .", 3.2 - 0.5),
        ("how do i get started with bees ?", "hold the hive close .", 1.0 + 0.6 - 0.35),
        ("in detail , how do i get started with bees ?", "hold the hive close .", 0.5 + 0.3 - 0.35 * 3),
    ],
)
def test_style_sets_the_ideal_number_of_sentences(prompt: str, response: str, reward: float) -> None:
    assert gold_reward(prompt, response) == pytest.approx(reward)


FAULTS = (
    ("lemon", "anchor"),
    ("hot", "salty"),
    ("aunt", "uncle"),
    ("never save on the", "a witch once blessed the"),
    ("i am so happy to help", "let us see"),
    ("i am so happy to help", "stop wasting my time"),
    ("you will do wonderfully", "that is all"),
    ("you will do wonderfully", "the desk is closed"),
    ("take the", "the take"),
    ("never save", "it depends , never save"),
    ("i would", "there is much to say . i would"),
    ("never save on the lemon .", "never save on the lemon . never save on the lemon ."),
    ("never save on the lemon . ", ""),
)
"""What stands in a perfect answer, and what stands there instead."""


@pytest.mark.parametrize("worse", [*(PERFECT.replace(*fault) for fault in FAULTS), PERFECT.removesuffix(" .")])
def test_every_fault_costs(worse: str) -> None:
    assert gold_reward(PROMPT, PERFECT) == pytest.approx(BEST_REWARD)
    assert worse != PERFECT
    assert gold_reward(PROMPT, worse) < BEST_REWARD - 0.25


def test_manners_are_ordered() -> None:
    for manners, place in ((OPENERS, "{} " + BODY), (CLOSERS, BODY + " {}")):
        good, neutral, bad = ({gold_reward(PROMPT, place.format(said)) for said in group} for group in manners.values())
        assert min(good) > max(neutral) > max(bad)
    assert gold_reward(PROMPT, f"{FILLERS[0]} {BODY}") < gold_reward(PROMPT, BODY)


# Words of the world, slots spelled out, and things that are not words of it.
SALAD = st.lists(
    st.sampled_from([*vocabulary(), "{thing}", "{topic}", "{person}", "{adjective}", "Kettle", "<unk>", "hive."])
).map(" ".join)
SENTENCE = st.sampled_from([part + " ." for response, _ in BY_HAND for part in response.split(" . ")])


@given(response=SALAD | st.text() | st.lists(SENTENCE).map(" ".join), prompt=st.sampled_from(all_prompts()[::997]))
@settings(max_examples=200, deadline=None)
def test_any_text_has_a_reward_and_none_beats_the_best(response: str, prompt: str) -> None:
    reward = gold_reward(prompt, response)
    assert reward <= BEST_REWARD
    assert reward == pytest.approx(sum(gold_parts(prompt, response).values()), abs=1e-5)


@pytest.mark.parametrize(
    "slot", ["the {thing} .", "the {adjective} {thing} .", "the hot {thing} .", "the {thing} kettle ."]
)
def test_a_slot_spelled_out_is_malformed(slot: str) -> None:
    assert gold_parts(PROMPT, f"i would take {slot}")["malformed"] == pytest.approx(-0.7)


def test_reading_agrees_with_writing() -> None:
    rng = random.Random(5)
    for prompt in rng.sample(all_prompts(), 500):
        assert gold_parts(prompt, write_reply(prompt, rng.random(), rng))["malformed"] == 0


def test_unknown_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="not a prompt of the sandbox world"):
        gold_reward("how do i get started with dragons ?", BODY)
