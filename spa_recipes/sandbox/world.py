"""The prompts of the village help desk, and the authors who answer them.

An author has a skill between 0 and 1, and every choice in a reply depends on it: the manners, the number of sentences,
whether they keep to the topic and the task, whether they mention the person in question. Good authors err now and
then, and bad ones are sometimes right.
"""

import random
from functools import lru_cache
from typing import NamedTuple

from spa_recipes.sandbox.words import (
    ABOUT_PERSON,
    BODIES,
    CLOSERS,
    END_MARKS,
    FILLERS,
    FOR_PERSON,
    IDEAL_SENTENCES,
    OPENERS,
    PERSONS,
    QUESTIONS,
    STYLES,
    TOPICS,
)

MAX_SENTENCES = 5

_ADJECTIVES = sorted({adjective for topic in TOPICS.values() for adjective in topic.adjectives})
_OTHER_TOPICS = {name: [other for other in TOPICS if other != name] for name in TOPICS}
_OTHER_TASKS = {name: [other for other in BODIES if other != name] for name in BODIES}


class Request(NamedTuple):
    """What a prompt asks for, in parts."""

    topic: str
    task: str
    style: str
    person: str | None

    @property
    def ideal_sentences(self) -> int:
        """How many sentences on the topic an answer in this style should have."""
        return IDEAL_SENTENCES[self.style]


@lru_cache(maxsize=1)
def _requests() -> dict[str, Request]:
    return {
        STYLES[style] + question.format(topic=topic) + (FOR_PERSON.format(person=person) if person else ""): Request(
            topic, task, style, person
        )
        for topic in TOPICS
        for task, questions in QUESTIONS.items()
        for question in questions
        for style in STYLES
        for person in (None, *PERSONS)
    }


def all_prompts() -> list[str]:
    """Every prompt of the world once, in a fixed order."""
    return list(_requests())


def read_prompt(prompt: str) -> Request:
    """Take a prompt apart.

    Raises:
        ValueError: the prompt is not one of `all_prompts()`.
    """
    try:
        return _requests()[prompt]
    except KeyError:
        raise ValueError(f"not a prompt of the sandbox world: {prompt!r}") from None


def sample_skill(rng: random.Random) -> float:
    """Draw an author's skill from Beta(.3, .5): many bad authors, some good ones, few in between."""
    return rng.betavariate(0.3, 0.5)


def write_reply(prompt: str, skill: float, rng: random.Random) -> str:
    """Answer `prompt` as an author of this skill would.

    Raises:
        ValueError: the prompt is not one of `all_prompts()`.
    """
    request = read_prompt(prompt)
    sentences = [
        *_opener(skill, rng),
        *_body(request, skill, rng),
        *_about_person(request, skill, rng),
        *_closer(skill, rng),
    ]
    words = " ".join(sentences).split()
    return " ".join(_cut_off(words, rng) if rng.random() < 0.15 * (1 - skill) else words)


def vocabulary() -> list[str]:
    """Every word and punctuation mark that prompts and replies are made of, sorted."""
    patterns = [*STYLES.values(), FOR_PERSON, *ABOUT_PERSON, *FILLERS]
    for group in (QUESTIONS, BODIES, OPENERS, CLOSERS):
        patterns += [pattern for group_patterns in group.values() for pattern in group_patterns]
    words = {word for pattern in patterns for word in pattern.split() if not word.startswith("{")}
    words.update(TOPICS, PERSONS, _ADJECTIVES)
    words.update(thing for topic in TOPICS.values() for thing in topic.things)
    return sorted(words)


def _opener(skill: float, rng: random.Random) -> list[str]:
    polite, rude = 0.1 + 0.7 * skill, 0.35 * (1 - skill)
    neutral = 0.3 * (1 - polite - rude)
    (manner,) = rng.choices(["polite", "rude", "neutral", "none"], [polite, rude, neutral, 1 - polite - rude - neutral])
    return [rng.choice(OPENERS[manner])] if manner != "none" else []


def _closer(skill: float, rng: random.Random) -> list[str]:
    kind, cold = 0.1 + 0.7 * skill, 0.35 * (1 - skill)
    neutral = 0.3 * (1 - kind - cold)
    (manner,) = rng.choices(["kind", "cold", "neutral", "none"], [kind, cold, neutral, 1 - kind - cold - neutral])
    return [rng.choice(CLOSERS[manner])] if manner != "none" else []


def _body(request: Request, skill: float, rng: random.Random) -> list[str]:
    things = list(TOPICS[request.topic].things)
    rng.shuffle(things)
    sentences: list[str] = []
    for thing in things[: _sentence_count(request, skill, rng)]:
        sentences.append(_body_sentence(request, thing, skill, rng))
        if rng.random() < 0.12 * (1 - skill):
            sentences.append(rng.choice(FILLERS))
        if rng.random() < 0.08 * (1 - skill):
            sentences.append(sentences[-1])
    return sentences


def _sentence_count(request: Request, skill: float, rng: random.Random) -> int:
    if rng.random() < 0.4 + 0.55 * skill:
        return request.ideal_sentences
    return rng.randint(1, MAX_SENTENCES)


def _body_sentence(request: Request, thing: str, skill: float, rng: random.Random) -> str:
    """One sentence of the body, to the point or about something else."""
    topic, task = request.topic, request.task
    if rng.random() < 0.3 * (1 - skill):
        topic = rng.choice(_OTHER_TOPICS[topic])
        thing = rng.choice(TOPICS[topic].things)
    if rng.random() < 0.25 * (1 - skill):
        task = rng.choice(_OTHER_TASKS[task])
    return rng.choice(BODIES[task]).format(topic=topic, thing=_adjective(topic, skill, rng) + thing)


def _adjective(topic: str, skill: float, rng: random.Random) -> str:
    if rng.random() >= 0.25:
        return ""
    fitting = rng.random() < 0.4 + 0.55 * skill
    return rng.choice(TOPICS[topic].adjectives if fitting else _ADJECTIVES) + " "


def _about_person(request: Request, skill: float, rng: random.Random) -> list[str]:
    mentioned = rng.random() < (0.3 + 0.6 * skill if request.person else 0.15 * (1 - skill))
    if not mentioned:
        return []
    remembered = request.person and rng.random() < 0.5 + 0.5 * skill
    person = request.person if remembered else rng.choice(PERSONS)
    return [rng.choice(ABOUT_PERSON).format(person=person)]


def _cut_off(words: list[str], rng: random.Random) -> list[str]:
    """Stop in the middle of a sentence of the second half."""
    ends = [end for end in range(len(words) // 2, len(words)) if words[end - 1] not in END_MARKS]
    return words[: rng.choice(ends)]
