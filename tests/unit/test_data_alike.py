"""Rows that are read together, because they are alike, give what the rules give for each of them alone."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.data import alike, arrow, counts
from spa_recipes.data.rows import Message
from spa_recipes.data.sources import Loaded, read_candidates, read_conversations, read_pairs, read_prompts
from spa_recipes.errors import SpaError
from spa_recipes.recipe.schema import Columns
from tests.kit.data import source
from tests.kit.data_forms import FORMS, Raw, assistant, system, user, write_csv, write_parquet

PLAIN = ["a", "b", "a text", "naïve 猫", "line\u2028line\nline", 'a "quoted" \\ text', "7", "plain text 0"]
ODD = [
    *("", " ", "\u3000", " a", "a\n", "\x1ca", "\ud800", "[", "[1]", "{", "[INST] a [/INST]", "a\nb", "tie"),
    *("Human: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant:", "Human: a"),
    *("USER: a\nASSISTANT: b", "ASSISTANT: a", "### Instruction\na\n### Response\nb"),
    *('[{"role": "user", "content": "a"}]', '["a"]', "['a']"),
]  # fmt: skip
READERS: list[Callable[..., Loaded[Any]]] = [read_pairs, read_prompts, read_conversations, read_candidates]


def two(prompt: list[Message], one: str, other: str) -> Raw:
    return {"prompt": prompt[-1]["content"], "response_a": one, "response_b": other}


def ranked(prompt: list[Message], one: str, other: str) -> Raw:
    answers = [{"answer": one, "rank": len(one)}, {"answer": other, "rank": len(other)}]
    return {"prompt": prompt[-1]["content"], "answers": answers}


def kto(prompt: list[Message], one: str, other: str) -> Raw:
    return {"prompt": prompt[-1]["content"], "completion": one, "label": len(other) > 1}


def arena(prompt: list[Message], one: str, other: str) -> Raw:
    conversations = {"conversation_a": [*prompt, assistant(one)], "conversation_b": [*prompt, assistant(other)]}
    return conversations | {"winner": "model_a" if len(one) > 1 else "model_b"}


MAKERS: list[Callable[[list[Message], str, str], Raw]] = [
    *(make for _, make, _ in FORMS.values()),
    two,
    lambda prompt, one, other: two(prompt, one, other) | {"label": "a" if len(one) > 1 else "tie" if other else "b"},
    ranked,
    lambda prompt, one, other: {"prompt": prompt, "responses": [one, other], "scores": [len(one), 1.5]},
    kto,
    lambda prompt, one, other: {"prompt": prompt[-1]["content"], "completion": one},
    lambda prompt, one, other: {"messages": [*prompt, assistant(one)]},
    arena,
    lambda prompt, one, other: {"prompt": prompt[-1]["content"]},
]  # fmt: skip


BESIDE: dict[str, list[Any]] = {
    "score_chosen": [0.5, 1, -0.0, "1.5", True, float("nan"), 2**60],
    "score_rejected": [2.5, 3, None],
    "system": ["a", "b", "", None, 1],
    "status": ["tie", "done", None],
    "tools": [None, [], "", [{"name": "f"}]],
    "id": ["x", "y", 7, None],
    "other": ["x", {"a": 1}, [1], None],
}
"""Columns beside those of a form, and what may be in them."""


class Odd:
    """Draws rows of one form: most of a few structures and with plain texts, and odd ones among them.

    Args:
        share: of what is odd.
    """

    def __init__(self, seed: int, share: float) -> None:
        self.draw = random.Random(seed)
        self.share = share
        self.make = self.draw.choice(MAKERS)
        self.beside = self.draw.sample(list(BESIDE), k=self.draw.choice([0, 1, 1, 2]))
        self.turns = self.draw.choices([0, 0, 1, 2, 5], k=2)
        self.head = self.draw.choice([0.0, 0.0, 0.5])
        self.spaces = self.draw.choice([[""], ["", " "], [" ", "\n"], [" ", " x"]])

    def text(self) -> str:
        return self.draw.choice(ODD if self.draw.random() < self.share else PLAIN)

    def prompt(self) -> list[Message]:
        head = [system(self.text())] if self.draw.random() < self.head else []
        turns = [[user(self.text()), assistant(self.text())] for _ in range(self.draw.choice(self.turns))]
        return [*head, *(message for turn in turns for message in turn), user(self.text())]

    def row(self) -> Raw:
        row = self.make(self.prompt(), self.text(), self.text())
        if isinstance(row.get("prompt"), str):
            row["prompt"] += self.draw.choice(self.spaces)
        for name in self.beside:
            row[name] = self.draw.choice(BESIDE[name])
            if name.startswith("score") and self.draw.random() > self.share:
                row[name] = self.draw.random()
        if self.draw.random() < self.share / 2:
            name = self.draw.choice([*row, "input", "system_prompt", "messages", "conversations"])
            row[name] = self.draw.choice([self.text(), None, 1, [], {}, [user("a")]])
        if self.draw.random() < self.share / 2:
            del row[self.draw.choice(list(row))]
        if self.draw.random() < self.share / 2:
            row = dict(sorted(row.items()))
        return row


def what(read: Callable[..., Loaded[Any]], path: Path, **settings: Any) -> tuple[Any, ...]:
    """All that reading gives: rows with their order of keys, what is said of them, and counts; or the error."""
    try:
        loaded = read(source(path, **settings))
    except SpaError as error:
        return (str(error),)
    said = loaded.form, loaded.columns, loaded.ignored, loaded.remarks, loaded.line
    return json.dumps(loaded.rows), said, loaded.skipped, counts.table(loaded.skipped)


def both(
    monkeypatch: pytest.MonkeyPatch, read: Callable[..., Loaded[Any]], path: Path, few: int, batch: int, **settings: Any
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What is read row by row, and what is read together."""
    monkeypatch.setattr(arrow, "ROWS_PER_BATCH", batch)
    monkeypatch.setattr(alike, "FEW_ROWS", 10**9)
    alone = what(read, path, **settings)
    monkeypatch.setattr(alike, "FEW_ROWS", few)
    return alone, what(read, path, **settings)


def write(folder: Path, rows: list[Raw], kind: str) -> Path:
    if kind == "csv":
        names = dict.fromkeys(name for row in rows for name in row)
        return write_csv(folder, [{name: row.get(name, "") for name in names} for row in rows])
    if kind == "parquet":
        return write_parquet(folder, rows)
    path = folder / "data.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def check(monkeypatch: pytest.MonkeyPatch, folder: Path, seed: int) -> int:
    """Compare both ways on odd rows, and say how many rows there were in the end."""
    draw = random.Random(seed)
    odd = Odd(seed, draw.choice([0.0, 0.03, 0.3]))
    rows = [odd.row() for _ in range(draw.choice([5, 40, 80]))]
    try:
        path = write(folder, rows, draw.choice(["jsonl", "jsonl", "jsonl", "csv", "parquet"]))
    except (UnicodeEncodeError, ValueError, TypeError):  # no such file can be
        path = write(folder, rows, "jsonl")
    columns = Columns(id="id") if "id" in odd.beside else Columns()
    found = 0
    for read in READERS:
        for bad in ("skip", "error"):
            few, batch = draw.choice([(1, 7), (1, 1000), (4, 30)])
            alone, together = both(monkeypatch, read, path, few, batch, on_bad_row=bad, columns=columns)
            assert together == alone, (seed, read.__name__, bad)
            found += len(json.loads(alone[0])) if len(alone) > 1 else 0
    return found


def test_odd_rows_give_the_same_together_as_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert sum(check(monkeypatch, tmp_path, seed) for seed in range(10)) > 500


@pytest.mark.long
def test_more_odd_rows_give_the_same_together_as_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert sum(check(monkeypatch, tmp_path, seed) for seed in range(30)) > 1500


@pytest.mark.slow
def test_many_odd_rows_give_the_same_together_as_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert sum(check(monkeypatch, tmp_path, seed) for seed in range(1000, 1500)) > 25_000
