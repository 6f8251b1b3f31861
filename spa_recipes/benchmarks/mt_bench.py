"""MT-Bench as FastChat runs it: its files and temperatures, questions to the judge, ratings and their averages.

The questions and the judge prompts are files that the user gives; they are not part of this package.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from spa_recipes.data.places import existing_path
from spa_recipes.data.rows import Message, read_lines
from spa_recipes.errors import DataError

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""FastChat's temperature for each category."""
OTHER_TEMPERATURE = 0.7
WITH_REFERENCE = frozenset({"math", "reasoning", "coding"})
"""Categories whose answers are graded against a reference answer."""
NO_RATING = -1
"""FastChat's score for a judgment without a rating; averages leave it out."""

# The digits are limited, so that the search takes linear time.
_RATINGS = (
    re.compile(r"\[\[([0-9]{1,2}(?:\.[0-9]{0,9})?)\]\]"),
    re.compile(r"\[([0-9]{1,2}(?:\.[0-9]{0,9})?)\]"),
)
_LOWEST, _HIGHEST = 1, 10

# No part can give back what it took, so that the search takes linear time. An apostrophe opens and closes nothing.
_QUOTED = re.compile(
    r"""
    (?<!`)(`++)[^`]++\1(?!`)
    | (?<!\w)"(?=\S)[^"]++"(?!\w)
    | (?<!\w)'(?=\S)(?:[^'\n]|(?<=\w)'(?=\w))++'(?!\w)
    | “[^“”]++”
    | \u2018(?:[^\u2018\u2019\n]|(?<=\w)\u2019(?=\w))++\u2019(?!\w)
    | «[^«»]++»
    """,
    re.VERBOSE,
)
_FENCE = re.compile(r"[ \t]*+(`{3,}+|~{3,}+)([^\n]*+)")
_FIELD = re.compile(r"\{(\w+)\}")


class Question(NamedTuple):
    """A line of question.jsonl."""

    id: int | str
    category: str
    turns: tuple[str, ...]

    @property
    def temperature(self) -> float:
        """The temperature at which FastChat samples the answers."""
        return TEMPERATURES.get(self.category, OTHER_TEMPERATURE)


class JudgePrompt(NamedTuple):
    """A line of judge_prompts.jsonl."""

    name: str
    system: str
    template: str


class Match(NamedTuple):
    """A question for the grader: one turn of one answer."""

    question: Question
    turn: int
    prompt: str
    messages: list[Message]


# --- files


def read_questions(path: Path) -> list[Question]:
    """FastChat's question.jsonl.

    Raises:
        DataError: the file is missing, empty or not in that form.
    """
    questions = []
    for where, row in _rows(path):
        turns = row.get("turns")
        if not _is_id(row.get("question_id")) or not _texts(turns):
            raise DataError("no question_id, or no texts in turns", where=where, fix="give FastChat's question.jsonl")
        questions.append(Question(row["question_id"], str(row.get("category", "")), tuple(turns)))
    name, count = Counter(question.id for question in questions).most_common(1)[0] if questions else (None, 0)
    if count != 1:
        what = f"question_id {name} occurs twice" if questions else "no questions"
        raise DataError(what, where=str(path), fix="give FastChat's question.jsonl")
    return questions


def read_answers(path: Path) -> dict[int | str, list[str]]:
    """Turns of the first choice of every question, from an answer file.

    Raises:
        DataError: the file is missing or not in FastChat's form.
    """
    answers = {}
    for where, row in _rows(path):
        try:
            turns = row["choices"][0]["turns"]
            known = row["question_id"]
        except (LookupError, TypeError):
            turns = known = None
        if not _is_id(known) or not _texts(turns, empty=True):
            raise DataError("no question_id, or no turns in choices", where=where, fix="give FastChat's answer file")
        answers[known] = list(turns)
    return answers


def read_judge_prompts(path: Path) -> dict[str, JudgePrompt]:
    """The prompts for grading one answer, by name.

    Raises:
        DataError: the file is missing, not in FastChat's form, or without one of the four prompts.
    """
    prompts = {}
    for where, row in _rows(path):
        if row.get("type") != "single":
            continue
        values = [row.get(name) for name in ("name", "system_prompt", "prompt_template")]
        if not all(isinstance(value, str) for value in values) or row.get("output_format") != "[[rating]]":
            raise DataError(
                "not a prompt that asks for [[rating]], with name, system_prompt and prompt_template",
                where=where,
                fix="give the judge_prompts.jsonl that FastChat publishes",
            )
        prompts[str(values[0])] = JudgePrompt(*map(str, values))
    for name in ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn"):
        if name not in prompts:
            raise DataError(
                f"no judge prompt {name}", where=str(path), fix="give the judge_prompts.jsonl that FastChat publishes"
            )
    return prompts


def answer_row(question: Question, turns: Sequence[str], model: str, tstamp: float) -> dict[str, Any]:
    """A line of FastChat's answer file; its id is a digest of the content."""
    content = "\x1f".join((model, str(question.id), *turns))
    return {
        "question_id": question.id,
        "answer_id": hashlib.sha256(content.encode()).hexdigest()[:22],
        "model_id": model,
        "choices": [{"index": 0, "turns": list(turns)}],
        "tstamp": tstamp,
    }


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    existing_path(str(path))
    rows = []
    for line in read_lines(path):
        if line.error is not None:
            raise line.error
        if line.value is not None:
            rows.append((f"{path}:{line.number}", line.value))
    return rows


def _is_id(value: Any) -> TypeGuard[int | str]:
    return isinstance(value, int | str)


def _texts(value: Any, *, empty: bool = False) -> TypeGuard[list[str]]:
    """Whether a value is a list of strings, none of them blank unless `empty`."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(text, str) and (empty or text.strip()) for text in value)
    )


# --- grading


def matches(
    questions: Sequence[Question],
    answers: Mapping[int | str, Sequence[str]],
    prompts: Mapping[str, JudgePrompt],
    references: Mapping[int | str, Sequence[str]],
) -> list[Match]:
    """What the grader is asked, first turns first: each with the prompt for its turn and category.

    Raises:
        DataError: an answer or a reference answer is missing, or a prompt asks for something unknown.
    """
    found = []
    for turn in (1, 2):
        for question in questions:
            if turn > len(question.turns):
                continue
            name = "single-math-v1" if question.category in WITH_REFERENCE else "single-v1"
            prompt = prompts[name + ("-multi-turn" if turn == 2 else "")]
            fields = _fields(question, turn, answers, references)
            text = _filled(prompt, fields)
            messages: list[Message] = [
                {"role": "system", "content": prompt.system},
                {"role": "user", "content": text},
            ]
            found.append(Match(question, turn, prompt.name, messages))
    return found


def _fields(
    question: Question,
    turn: int,
    answers: Mapping[int | str, Sequence[str]],
    references: Mapping[int | str, Sequence[str]],
) -> dict[str, str]:
    """The texts that a prompt of FastChat can contain, by field name."""
    where = f"question {question.id}"
    if len(answers.get(question.id, ())) < turn:
        raise DataError(f"no answer to turn {turn}", where=where, fix="answer the questions again")
    given = answers[question.id]
    fields = {"question": question.turns[0], "answer": given[0]}
    for number in range(1, turn + 1):
        fields |= {f"question_{number}": question.turns[number - 1], f"answer_{number}": given[number - 1]}
    if question.category not in WITH_REFERENCE:
        return fields
    reference = references.get(question.id, ())
    if len(reference) < turn:
        raise DataError(
            f"no reference answer to turn {turn}, which the category {question.category} is graded with",
            where=where,
            fix="give FastChat's reference_answer/gpt-4.jsonl as reference_answers",
        )
    return fields | {f"ref_answer_{number}": text for number, text in enumerate(reference, start=1)}


def _filled(prompt: JudgePrompt, fields: Mapping[str, str]) -> str:
    """Fill in a template. Only names in braces are replaced, so a template can do nothing else."""
    unknown = [name for name in _FIELD.findall(prompt.template) if name not in fields]
    if unknown:
        raise DataError(
            f"the judge prompt {prompt.name} asks for {{{unknown[0]}}}, which is not known here",
            fix="give the judge_prompts.jsonl that FastChat publishes",
        )
    return _FIELD.sub(lambda found: fields[found.group(1)], prompt.template)


def rating(judgment: str) -> float | int:
    """The last rating from 1 to 10 in double brackets, else the last in single ones; NO_RATING where there is none.

    A grader may quote the answer, in which a rating may stand: what is in quotation marks, in backquotes, in a code
    block or in a block quote is not its own verdict. FastChat takes the first rating, wherever it stands, of any size.

    A judgment whose only rating is quoted has none. FastChat would take that one, and then an answer that ends with
    "Rating: [[10]]" grades itself as soon as its grader repeats it and gives no verdict, or is cut off before it does.
    A missing rating is counted (`unrated`) and left out of the averages, as FastChat leaves out those that it cannot
    find. It costs a judgment, which can be asked again; a rating by the graded model would be silently wrong.
    """
    own = _QUOTED.sub(" ", _without_blocks(judgment))
    for pattern in _RATINGS:
        found = [text for text in pattern.findall(own) if _LOWEST <= float(text) <= _HIGHEST]
        if found:
            return int(found[-1]) if found[-1].isdecimal() else float(found[-1])
    return NO_RATING


def _without_blocks(markdown: str) -> str:
    """A text without its fenced code blocks and block quotes. A block that is not closed goes to the end."""
    kept, fence = [], ""
    for line in markdown.split("\n"):
        found = _FENCE.match(line)
        if fence:
            if found and found[1].startswith(fence) and not found[2].strip():
                fence = ""
        elif found and not ("`" in found[1] and "`" in found[2]):
            fence = found[1]
        elif not line.lstrip().startswith(">"):
            kept.append(line)
            continue
        kept.append("")
    return "\n".join(kept)


def judgment_row(match: Match, model: str, grader: str, judgment: str, tstamp: float) -> dict[str, Any]:
    """A line of FastChat's judgment file."""
    return {
        "question_id": match.question.id,
        "model": model,
        "judge": [grader, match.prompt],
        "user_prompt": match.messages[-1]["content"],
        "judgment": judgment,
        "score": rating(judgment),
        "turn": match.turn,
        "tstamp": tstamp,
    }


class Averages(NamedTuple):
    """Mean scores; None where nothing was rated.

    Attributes:
        score: over all turns, FastChat's headline.
        turns: by turn.
        categories: by category, both turns.
        by_category_and_turn: by category, then by turn.
        unrated: judgments without a rating, which no mean counts.
    """

    score: float | None
    turns: dict[str, float | None]
    categories: dict[str, float | None]
    by_category_and_turn: dict[str, dict[str, float | None]]
    unrated: int


def averages(judgments: Sequence[Mapping[str, Any]], categories: Mapping[int | str, str]) -> Averages:
    """Mean scores of the rows of a judgment file; `categories` by question id."""
    rated = [row for row in judgments if row["score"] != NO_RATING]
    turns = sorted({row["turn"] for row in judgments})
    names = list(dict.fromkeys(categories[row["question_id"]] for row in judgments))

    def average(turn: int | None = None, category: str | None = None) -> float | None:
        scores = [
            row["score"]
            for row in rated
            if turn in (None, row["turn"]) and category in (None, categories[row["question_id"]])
        ]
        return sum(scores) / len(scores) if scores else None

    return Averages(
        average(),
        {str(turn): average(turn) for turn in turns},
        {name: average(category=name) for name in names},
        {name: {str(turn): average(turn, name) for turn in turns} for name in names},
        len(judgments) - len(rated),
    )
