"""What the commands answer, above all to mistakes: one line, the documented exit code, nothing half-written."""

import json
from pathlib import Path

import pytest

from spa_recipes.estimates import human_bytes, human_count, human_seconds, needs, parameters_of
from spa_recipes.plan import compile_plan
from spa_recipes.recipe.schema import Recipe
from spa_recipes.state.digests import DigestMemo
from tests.kit.cli import Spa
from tests.kit.recipes import merged, mini, write_recipe

JUDGE = ["judge", "--policy", "a", "--reference", "b", "--pairs", "c.jsonl"]


def one_line(text: str) -> str:
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


def test_help_has_examples(spa: Spa) -> None:
    for command in ("run", "resume", "judge", "validate", "plan", "status", "gc", "schema", "init", "doctor"):
        done = spa(command, "--help")
        assert done.returncode == 0
        assert "Example" in done.stdout, command


def test_version_and_no_arguments(spa: Spa) -> None:
    assert spa("--version").stdout.startswith("spa-recipes ")
    assert "quickstart" in spa().stdout


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["run", "missing.yaml"], 2, "missing.yaml"),
        (["run", "."], 2, "folder"),
        (["plan", "mini.yaml", "--set", "noise.alfa=0.2"], 2, "alpha"),
        (["run", "mini.yaml", "--until", "judge"], 2, "judge-1"),
        (["resume"], 2, "spa run RECIPE"),
        (["resume", "nope"], 2, "nope"),
        (["status", "../../etc"], 2, "etc"),
        (["init", "mini.yaml"], 2, "there already"),
        (["init", "no/such/folder.yaml"], 2, "no such folder"),
        ([*JUDGE, "--out", "no/out.jsonl"], 2, "no such folder"),
        ([*JUDGE, "--out", "mini.yaml"], 2, "--overwrite"),
        ([*JUDGE, "--out", "o", "--dtype", "int3"], 2, "dtype"),
        ([*JUDGE, "--out", "o"], 3, "c.jsonl"),
    ],
)
def test_mistakes_get_one_line(spa: Spa, tmp_path: Path, arguments: list[str], code: int, expected: str) -> None:
    write_recipe(tmp_path / "mini.yaml", mini())
    before = sorted(path.name for path in tmp_path.iterdir())
    done = spa(*arguments)
    assert done.returncode == code, done.stderr
    line = one_line(done.stderr)
    assert line.startswith("error: ")
    assert expected in line
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_usage_errors_exit_with_2(spa: Spa) -> None:
    assert spa("run").returncode == 2
    assert spa("run", "x.yaml", "--no-such-option").returncode == 2
    assert spa("nonsense").returncode == 2


def test_debug_shows_the_traceback(spa: Spa) -> None:
    assert "Traceback" in spa("run", "missing.yaml", "--debug").stderr


def test_validate_names_every_problem(spa: Spa, tmp_path: Path) -> None:
    write_recipe(tmp_path / "good.yaml", mini())
    write_recipe(tmp_path / "bad.yaml", mini(seed="x", refine={"learning_rat": 1.0}))
    done = spa("validate", "good.yaml", "bad.yaml")
    assert done.returncode == 2
    assert "good.yaml: ok" in done.stdout
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: bad.yaml:") for line in lines)
    assert any("learning_rate" in line for line in lines)


def test_bad_data_is_found_before_any_model_is_loaded(spa: Spa, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    recipe = mini(data={"pairs": {"type": "dataset", "source": "pairs.jsonl"}}, evaluation={"reward": "none"})
    recipe["data"]["pairs"] = {"type": "dataset", "source": "pairs.jsonl"}
    write_recipe(tmp_path / "r.yaml", recipe)
    done = spa("run", "r.yaml", "--set", "compute.executor.type=local")
    assert done.returncode == 3
    line = one_line(done.stderr)
    assert "pairs.jsonl, row 1" in line or "pairs.jsonl:1" in line
    status = spa("status", "mini")
    assert "failed" in status.stdout
    assert "worker.log" in status.stdout


def test_a_missing_model_is_a_data_error(spa: Spa, tmp_path: Path) -> None:
    recipe = mini(model={"model_name_or_path": "./no/such/model"}, sft=None)
    write_recipe(tmp_path / "r.yaml", recipe)
    done = spa("run", "r.yaml")
    assert done.returncode == 3, done.stderr
    assert "no/such/model" in one_line(done.stderr)


def test_init_writes_a_recipe_that_validates(spa: Spa) -> None:
    assert spa("init", "mine.yaml").returncode == 0
    assert spa("validate", "mine.yaml").returncode == 0


def test_schema_is_json_schema(spa: Spa) -> None:
    schema = json.loads(spa("schema").stdout)
    assert "model" in schema["anyOf"][0]["required"]  # or it extends another recipe
    assert schema["properties"]["noise"]


def test_plan_says_what_a_stage_needs(spa: Spa, tmp_path: Path) -> None:
    write_recipe(tmp_path / "mini.yaml", mini())
    text = spa("plan", "mini.yaml").stdout
    for expected in ("pi_init, the judge's reference", "reference pi_0", "memory", "disk", "to do", "rows 96"):
        assert expected in text
    assert not (tmp_path / "runs").exists()
    risky = spa("plan", "mini.yaml", "--set", "model.trust_remote_code=true").stdout
    assert "trust_remote_code" in risky


def test_doctor_reports(spa: Spa) -> None:
    done = spa("doctor", HF_HUB_OFFLINE="1")
    assert done.returncode == 0
    assert "torch" in done.stdout
    assert "offline: HF_HUB_OFFLINE" in done.stdout


def test_estimates_count_the_parameters_of_a_model_on_disk(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "model")
    recipe = Recipe.model_validate(mini(model={"model_name_or_path": str(tmp_path / "model")}, sft=None))
    assert parameters_of(recipe) == model.num_parameters()
    plan = compile_plan(recipe, DigestMemo(tmp_path / "memo"))
    need = needs(plan.stage("refine-1"), plan)
    assert need.memory == model.num_parameters() * (16 + 4)  # AdamW in float32, and a live reference for lambda > 0
    assert need.tokens == 32 * 2 * 128
    # Two steps, one checkpoint between them; a longer training has the two that stay and the next one being written.
    for save_steps, kept, most in ((1, 2, 1), (2, 2, 0)):
        storage = {"checkpoints_while_training": kept}
        assert scratch_of(recipe, 32, save_steps, storage, tmp_path) == most * model.num_parameters() * 12
    for kept in (1, 2):
        storage = {"checkpoints_while_training": kept}
        assert scratch_of(recipe, 320, 1, storage, tmp_path) == (kept + 1) * model.num_parameters() * 12


def scratch_of(recipe: Recipe, prompts: int, save_steps: int, storage: dict[str, int], folder: Path) -> int | None:
    """Room for checkpoints of refine-1, in batches of 16."""
    changes = {
        "data": {"prompts_per_iteration": [prompts], "pairs": {"rows": 1000}},
        "refine": {"save_steps": save_steps},
        "storage": storage,
    }
    changed = Recipe.model_validate(merged(recipe.model_dump(mode="json"), changes))
    plan = compile_plan(changed, DigestMemo(folder / "memo"))
    return needs(plan.stage("refine-1"), plan).scratch


def test_sandbox_size_is_the_real_one(tmp_path: Path) -> None:
    from safetensors import safe_open

    from spa_recipes.sandbox.model import build_model

    build_model(tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as weights:
        size = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
    assert parameters_of(Recipe.model_validate(mini())) == size


def test_figures_for_people() -> None:
    assert human_bytes(14_500_000_000) == "14.5 GB"
    assert human_count(61_440_000) == "61.4M"
    assert [human_seconds(s) for s in (4.24, 42, 200, 18600)] == ["4.2 s", "42 s", "3 min 20 s", "5 h 10 min"]
    assert human_bytes(None) == human_count(None) == "-"
