"""The true reward of a reply; no author, labeller or model can see it.

A reply is split into sentences and every sentence is looked up in the grammar. The reward is

    2 * cov + 1.2 * cov * task_fraction + .8 polite - 1 rude + .6 kind - .8 cold
    - .6 off-topic - .35 filler - .7 repeat - .7 malformed + .3 right adjective - .4 wrong adjective
    + .7 right person - .5 wrong person - .35 * |sentences - ideal| - .8 cut off

where `ideal` is the number of body sentences that the style of the prompt asks for, `cov` the number of distinct
things of the topic that are named, at most `ideal`, divided by `ideal`, and `task_fraction` the share of body
sentences that are on the topic and answer the task. A merit counts once, a fault counts each time.
A sentence that repeats an earlier one counts as a repeat only. Politeness counts at the beginning, kindness at the end,
and both are filler elsewhere, so nothing is gained by saying nice things over and over.
"""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from spa_recipes.sandbox.words import ABOUT_PERSON, BODIES, CLOSERS, END_MARKS, FILLERS, OPENERS, PERSONS, TOPICS
from spa_recipes.sandbox.world import Request, read_prompt

_SLOTS = {
    **dict.fromkeys(TOPICS, "{topic}"),
    **dict.fromkeys(PERSONS, "{person}"),
    **{thing: "{thing}" for topic in TOPICS.values() for thing in topic.things},
    **{adjective: "{adjective}" for topic in TOPICS.values() for adjective in topic.adjectives},
}
_MALFORMED = ("malformed", "")


class _Sentence(NamedTuple):
    """A sentence as the grammar sees it: its pattern's kind, its task if it is of the body, and its slot words."""

    kind: str
    task: str
    slots: dict[str, str]


@lru_cache(maxsize=1)
def _patterns() -> dict[str, tuple[str, str]]:
    """From each pattern to its kind and, for a sentence of the body, its task."""
    patterns: dict[str, tuple[str, str]] = dict.fromkeys(FILLERS, ("filler", ""))
    patterns.update(dict.fromkeys(ABOUT_PERSON, ("person", "")))
    for kind, group in OPENERS.items():
        patterns.update(dict.fromkeys(group, (f"{kind} opener", "")))
    for kind, group in CLOSERS.items():
        patterns.update(dict.fromkeys(group, (f"{kind} closer", "")))
    for task, bodies in BODIES.items():
        for pattern in bodies:
            patterns[pattern] = patterns[pattern.replace("{thing}", "{adjective} {thing}")] = ("body", task)
    return patterns


def gold_reward(prompt: str, response: str) -> float:
    """The true reward of `response`, whatever text that is.

    Raises:
        ValueError: the prompt is not one of `all_prompts()`.
    """
    return round(sum(gold_parts(prompt, response).values()), 6)


def gold_parts(prompt: str, response: str) -> dict[str, float]:
    """The terms of the reward by name, in the order of the formula; they sum to `gold_reward`.

    Raises:
        ValueError: the prompt is not one of `all_prompts()`.
    """
    request = read_prompt(prompt)
    found = _count(request, response)
    ideal = request.ideal_sentences
    coverage = min(found["things"], ideal) / ideal
    parts = {
        "coverage": 2.0 * coverage,
        "task": 1.2 * coverage * found["on_task"] / max(found["body"], 1),
        "polite": 0.8 * found["polite"],
        "rude": -1.0 * found["rude"],
        "kind": 0.6 * found["kind"],
        "cold": -0.8 * found["cold"],
        "off_topic": -0.6 * found["off_topic"],
        "filler": -0.35 * found["filler"],
        "repeat": -0.7 * found["repeat"],
        "malformed": -0.7 * found["malformed"],
        "adjective": 0.3 * min(found["right_adjective"], 1) - 0.4 * found["wrong_adjective"],
        "person": 0.7 * min(found["right_person"], 1) - 0.5 * found["wrong_person"],
        "length": -0.35 * abs(found["body"] - ideal),
        "cut": -0.8 * found["cut"],
    }
    return {name: part + 0.0 for name, part in parts.items()}  # adding 0.0 makes 0.0 of -0.0


def _count(request: Request, response: str) -> Counter[str]:
    """Count what the formula needs."""
    found: Counter[str] = Counter()
    sentences = list(_split(response))
    found["cut"] = int(not sentences)
    said: set[tuple[str, ...]] = set()
    things: set[str] = set()
    for place, words in enumerate(sentences):
        if words[-1] not in END_MARKS:
            found["cut"] = 1
            continue
        if words in said:
            found["repeat"] += 1
            continue
        said.add(words)
        sentence = _parse(words)
        if sentence.kind == "body":
            found.update(_judge_body(request, sentence, things))
        else:
            found[_judge_other(request, sentence, first=place == 0, last=place == len(sentences) - 1)] += 1
    found["things"] = len(things)
    return found


def _split(response: str) -> Iterator[tuple[str, ...]]:
    """The sentences of a text, each a tuple of words; the last one may lack its end mark."""
    words: list[str] = []
    for word in response.split():
        words.append(word)
        if word in END_MARKS:
            yield tuple(words)
            words = []
    if words:
        yield tuple(words)


def _parse(words: tuple[str, ...]) -> _Sentence:
    pattern = " ".join(_SLOTS.get(word, word) for word in words)
    slots = {_SLOTS[word]: word for word in words if word in _SLOTS}
    # A text that spells out a slot, as in "take the {thing} .", would look like a pattern that was filled.
    kind, task = _patterns().get(pattern, _MALFORMED) if pattern.count("{") == len(slots) else _MALFORMED
    return _Sentence(kind, task, slots)


def _judge_body(request: Request, sentence: _Sentence, things: set[str]) -> Iterator[str]:
    """The terms that a sentence of the body counts for; a thing of the topic is added to `things`."""
    yield "body"
    topic = TOPICS[request.topic]
    thing, named_topic = sentence.slots["{thing}"], sentence.slots.get("{topic}", request.topic)
    if thing in topic.things and named_topic == request.topic:
        things.add(thing)
        if sentence.task == request.task:
            yield "on_task"
    else:
        yield "off_topic"
    if "{adjective}" in sentence.slots:
        yield "right_adjective" if sentence.slots["{adjective}"] in topic.adjectives else "wrong_adjective"


def _judge_other(request: Request, sentence: _Sentence, *, first: bool, last: bool) -> str:
    """The one term that a sentence outside the body counts for."""
    match sentence.kind:
        case "person":
            return "right_person" if sentence.slots["{person}"] == request.person else "wrong_person"
        case "polite opener":
            return "polite" if first else "filler"
        case "kind closer":
            return "kind" if last else "filler"
        case "rude opener":
            return "rude"
        case "cold closer":
            return "cold"
        case "neutral opener":
            return "neutral" if first else "filler"
        case "neutral closer":
            return "neutral" if last else "filler"
        case kind:
            return kind
