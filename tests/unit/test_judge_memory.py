"""The judge stage holds the texts of a few prompts at a time, not of all."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

from spa_recipes.data.rows import write_jsonl
from spa_recipes.data.tables import CompletionRow, given_answer, write_completions
from spa_recipes.stages import judge
from tests.kit.stages import context_of

PROMPTS, CHARACTERS = 4000, 1000


def text(number: int) -> str:
    return f"{number} ".ljust(CHARACTERS, "x")


def test_texts_of_many_prompts_are_never_whole_in_memory(tmp_path: Path) -> None:
    def answers() -> Iterator[CompletionRow]:
        for i in range(PROMPTS):
            yield from (given_answer(i, f"p{i}", k, text(2 * i + k)) for k in range(2))

    rows = ({"prompt_id": f"p{i}", "prompt": [{"role": "user", "content": text(i)}]} for i in range(PROMPTS))
    write_jsonl(tmp_path / "prompts.jsonl", rows)
    write_completions(tmp_path / "completions.parquet", answers())
    context = context_of(
        tmp_path / "stage",
        "judge",
        settings={"judge": {"type": "random", "keep": 0.9}, "seed": 1, "iteration": 1, "gold_audit": False},
        inputs={"prompts": tmp_path / "prompts.jsonl", "completions": tmp_path / "completions.parquet"},
    )
    tracemalloc.start()
    result = judge.run(context)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.rows == 0.9 * PROMPTS
    assert peak < 1.5 * PROMPTS * CHARACTERS  # of three times as many that are in the files
