"""What the tests of benchmarks run on: tiny models, and prompts in the forms of the benchmarks."""

import json
from pathlib import Path
from typing import Any

from tests.kit.benchmarks import write_lines


def make_world(folder: Path) -> Path:
    """Untrained models, a reward model, and prompts of the sandbox in the forms of the benchmarks."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from spa_recipes.sandbox.model import build_model
    from spa_recipes.sandbox.rows import preference_rows

    for seed, name in enumerate(("one", "two", "three", "four")):
        build_model(folder / name, hidden_size=32, intermediate_size=64, seed=seed)
    rewarder = AutoModelForSequenceClassification.from_pretrained(folder / "two", num_labels=1)
    rewarder.save_pretrained(folder / "rewarder")
    AutoTokenizer.from_pretrained(folder / "two").save_pretrained(folder / "rewarder")
    texts = list(dict.fromkeys(str(row["prompt"]) for row in preference_rows(12, seed=0)))
    rows = [{"dataset": "made", "instruction": text, "output": "a b", "generator": "base"} for text in texts]
    (folder / "alpaca.json").write_text(json.dumps(rows))
    write_lines(folder / "prompts.jsonl", [{"prompt": text} for text in texts])
    return folder


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text())


def lines_of(path: Path) -> list[dict[str, Any]]:
    """A JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def sets(*keys: str) -> list[str]:
    """`--set` for each of some `key=value` texts."""
    return [part for key in keys for part in ("--set", key)]
