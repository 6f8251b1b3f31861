"""Folders that look like models: their small files, and weights that nobody opens."""

import json
from pathlib import Path
from typing import Any

from tests.kit.recipes import merged, mini

CONFIG = {"model_type": "llama", "max_position_embeddings": 2048}
TOKENIZER = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<end>"}]}


def model_folder(folder: Path, config: dict[str, Any] | None = None, **files: str | None) -> Path:
    """The small files of a model and weights that nobody opens; None leaves a file out, `__` stands for a dot."""
    content: dict[str, str | None] = {
        "config.json": json.dumps({**CONFIG, **(config or {})}),
        "model.safetensors": "weights",
        "tokenizer.json": json.dumps(TOKENIZER),
        "tokenizer_config.json": json.dumps({"chat_template": "{{ messages }}"}),
        **{name.replace("__", "."): text for name, text in files.items()},
    }
    folder.mkdir(parents=True)
    for name, text in content.items():
        if text is not None:
            (folder / name).write_text(text)
    return folder


def recipe_for(model: Path | str, /, **changes: Any) -> dict[str, Any]:
    recipe = mini(sft=None, evaluation={"reward": "none"})
    recipe["model"] = {"model_name_or_path": str(model), "max_length": 2048, "max_prompt_length": 1024}
    return merged(recipe, changes)


REMOTE = {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.OwnModel"}}


def judge_inputs(folder: Path, pairs: int) -> None:
    """Two models of the sandbox, `policy` and `reference`, and `pairs.jsonl`, as `spa judge` reads them."""
    from spa_recipes.data.rows import write_jsonl
    from spa_recipes.sandbox.model import build_model
    from spa_recipes.sandbox.rows import preference_rows

    for seed, name in enumerate(("policy", "reference")):
        build_model(folder / name, seed=seed)
    write_jsonl(folder / "pairs.jsonl", preference_rows(pairs, seed=0))
