"""Finished runs without having run anything: plans with made-up files and figures, for the card and `spa push`."""

import json
import os
from pathlib import Path
from typing import Any

from spa_recipes.plan import KINDS, MODEL, Plan
from spa_recipes.report.card import final_texts
from spa_recipes.run import final
from spa_recipes.run.rundir import RunDir
from spa_recipes.state import marker
from spa_recipes.state.stagedir import Manifest, StageDir
from tests.kit.state import FIELDS

VERSIONS = {"spa-recipes": "0.1.0", "torch": "2.13.0", "transformers": "5.19.0"}


def metrics_of(kind: str, number: int) -> dict[str, Any]:
    """Figures such as a stage leaves; `number` is that of its iteration."""
    metrics: dict[str, dict[str, Any]] = {
        "data": {
            "form": "string prompt",
            "pairs": 400,
            "skipped": 3,
            "skipped_prompts": 0,
            "seed": 60,
            "prompts": [32, 48],
            "heldout": 24,
            "dropped": {"seed": 0, "iteration 1": 5, "iteration 2": 0, "heldout": 0},
            "dropped_rows": 5,
        },
        "verdicts": {"questions": 64, "verdict_ties": 0.125},
        "win_rate": {
            **{f"pairwise_{name}": 0.5 for name in ("win_rate", "low", "high", "length_controlled")},
            **dict.fromkeys(("wins", "losses", "draws", "order_decides"), 8),
        },
        "dpo": {"steps": 4, "resumed_from_step": 2.0},
        "judge": {"mean_margin": 0.0625, "ties": 0, "chosen_tokens": 34.9, "rejected_tokens": 30.5},
        "refine": {"steps": 3, "flagged_pairs": 7, "flagged_of_all": 0.21875, "replayed_pairs": 0},
        "evaluate": {
            "mean_tokens": 30.25,
            "mean_reward": 2.5,
            "win_rate_vs_init": 0.614 + 0.01 * number,
            "length_controlled_win_rate_vs_init": 0.6,
            "length_controlled_win_rate_vs_init_low": 0.35,
            "length_controlled_win_rate_vs_init_high": 0.81,
            "heldout_accuracy": 0.783 - 0.02 * number,
        },
    }
    return metrics.get(kind, {})


def commit(run: RunDir, plan: Plan, stage_id: str, **fields: Any) -> StageDir:
    """Finish a stage; those that make policies leave a model of their own."""
    stage = plan.stage(stage_id)
    folder = run.stage_dir(stage, plan)
    attempt = int(fields.get("attempt", folder.new_attempt().name))
    model = folder.draft(attempt) / MODEL
    model.mkdir(parents=True)
    if MODEL in KINDS[stage.kind].writes:
        (model / "model.safetensors").write_bytes(os.urandom(5000))
        (model / "config.json").write_text('{"model_type": "llama"}\n')
        (model / "training_log.jsonl").write_text(json.dumps({"stage": stage_id}) + "\n")
    tail = stage.id.rpartition("-")[2]
    metrics = metrics_of(stage.kind, int(tail) if tail.isdigit() else 0)
    if stage.id == "evaluate-init":
        metrics = {"mean_tokens": 29.75, "mean_reward": 2.25}
    identity = {
        "id": stage.id, "kind": stage.kind, "key": stage.key, "material": stage.material, "attempt": attempt
    }  # fmt: skip
    folder.commit({**FIELDS, "rows": 16, "versions": VERSIONS, **identity, "metrics": metrics, **fields})
    return folder


def manifests(run: RunDir, plan: Plan) -> dict[str, Manifest]:
    """Manifests of the finished stages."""
    found = {stage.id: run.stage_dir(stage, plan).manifest() for stage in plan.stages}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def finish(run: RunDir, plan: Plan) -> RunDir:
    """Do what `spa run` does at the end: write the recipe and the plan, and show the final model."""
    run.write_recipe("name: mini\n", plan.recipe, plan)
    run.log_event("run finished")
    show_final(run, plan)
    return run


def show_final(run: RunDir, plan: Plan) -> None:
    """The last lines of a run."""
    done = manifests(run, plan)
    made = plan.newest_model(done)
    assert made is not None
    final.show(run, run.stage_dir(made, plan).output / MODEL, final_texts(plan, done))


def make_run(folder: Path, plan: Plan, **fields: Any) -> RunDir:
    """A finished run; `fields` are the same in all manifests."""
    run = RunDir(folder)
    marker.claim(run.path, run.kind)
    for stage in plan.stages:
        commit(run, plan, stage.id, **fields)
    return finish(run, plan)
