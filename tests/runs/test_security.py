"""What a whole run writes and prints: no file is named after a row, and no secret is shown."""

import json
from pathlib import Path
from typing import Any

from tests.kit.cli import run_spa
from tests.kit.recipes import merged, mini, write_recipe

# ---------------------------------------------------------------------------------------------- data


def test_a_dataset_directs_no_paths(tmp_path: Path, spa_here: Any) -> None:
    """Names and texts in rows are content: no file is named after them."""
    rows = [
        {"prompt_id": "../../escaped", "prompt": f"../../escaped-{i}", "chosen": "$(touch x)", "rejected": "`touch x`"}
        for i in range(8)
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = mini(evaluation={"reward": "none"}, compute={"executor": {"type": "local"}}, noise={"lambdas": [0.0]})
    recipe["data"] = {"pairs": {"source": "d.jsonl"}, "seed_labels": 2, "prompts_per_iteration": [2], "heldout": 2}
    write_recipe(tmp_path / "r.yaml", recipe)
    done = spa_here("run", "r.yaml", "--until", "data")
    assert done.code == 0, done.err
    (output,) = tmp_path.glob("runs/mini/stages/*/output")
    assert sorted(path.name for path in output.iterdir()) == ["heldout.jsonl", "prompts-1.jsonl", "seed.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl", "r.yaml", "runs"]
    ids = [json.loads(line)["prompt_id"] for line in (output / "seed.jsonl").read_text().splitlines()]
    assert all(len(name) == 16 and name.isalnum() for name in ids)


# ---------------------------------------------------------------------------------------------- secrets


def test_no_secret_is_written_or_printed(tmp_path: Path) -> None:
    """In a run that works, in one that fails with a traceback in its log, and in what describes the machine."""
    secret = "hf_ThisIsTheMarker0123456789"
    variables = {"HF_TOKEN": secret, "WANDB_API_KEY": secret, "HF_HOME": str(tmp_path / "hf")}
    changes: dict[str, Any] = {"compute": {"executor": {"type": "local"}}, "tracking": {"report_to": ["wandb"]}}
    write_recipe(tmp_path / "r.yaml", mini(**changes))
    said = [run_spa(tmp_path, "run", "r.yaml", "--until", "data", **variables)]
    assert said[0].returncode == 0, said[0].stderr
    good = "".join(json.dumps({"prompt": f"p{k}", "chosen": "a", "rejected": "b"}) + "\n" for k in range(1000))
    (tmp_path / "bad.jsonl").write_text(good + "{\n")  # which the first stage finds
    broken = merged(mini(**changes, name="broken", evaluation={"reward": "none"}), {})
    broken["data"] = {**broken["data"], "pairs": {"source": "bad.jsonl"}}
    write_recipe(tmp_path / "broken.yaml", broken)
    said.append(run_spa(tmp_path, "run", "broken.yaml", "--until", "data", "--debug", **variables))
    assert said[1].returncode != 0
    said += [run_spa(tmp_path, *command, **variables) for command in (["plan", "r.yaml"], ["status"], ["doctor"])]
    assert not [done.args for done in said if secret in done.stdout + done.stderr]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len([path for path in files if path.name == "worker.log"]) == 2
    assert not [path for path in files if secret.encode() in path.read_bytes()]
