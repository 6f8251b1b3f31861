"""What the commands answer, above all to mistakes: one line, the documented exit code, nothing half-written."""

import json
from pathlib import Path

import pytest

from tests.kit.cli import Spa
from tests.kit.recipes import mini, write_recipe

JUDGE = ["judge", "--policy", "a", "--reference", "b", "--pairs", "c.jsonl"]


ANSWERS = {"chosen": "b", "rejected": "c"}


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


def test_help_says_of_every_command_what_it_does(spa: Spa) -> None:
    """In a whole sentence, so a description is short enough for a terminal of 80 columns."""
    commands = spa("--help").stdout.partition("Commands:")[2].strip().splitlines()
    assert len(commands) >= 14
    assert [line for line in commands if not line.endswith(".") or line.endswith("...")] == []


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
    rows = [{"prompt": "a", "chosen": "b", "rejected": "b"}, *({"prompt": f"a{i}", **ANSWERS} for i in range(200))]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
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


def test_init_writes_a_recipe_that_validates_once_its_data_are_there(spa: Spa, tmp_path: Path) -> None:
    assert spa("init", "mine.yaml").returncode == 0
    missing = spa("validate", "mine.yaml")
    assert missing.returncode == 3
    assert "data.pairs.source: pairs.jsonl: no such file or folder" in one_line(missing.stderr)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "a", **ANSWERS}) + "\n")
    few = spa("validate", "mine.yaml")
    assert few.returncode == 3
    assert "but data.pairs has 1; lower data.seed_labels" in one_line(few.stderr)
    pairs.write_text("".join(json.dumps({"prompt": f"a{i}", **ANSWERS}) + "\n" for i in range(10_000)))
    assert spa("validate", "mine.yaml").returncode == 0


def test_schema_is_json_schema(spa: Spa) -> None:
    schema = json.loads(spa("schema").stdout)
    assert "model" in schema["anyOf"][0]["required"]  # or it extends another recipe
    assert schema["properties"]["noise"]


def test_plan_says_what_a_stage_needs(spa: Spa, tmp_path: Path) -> None:
    write_recipe(tmp_path / "mini.yaml", mini())
    text = spa("plan", "mini.yaml", "--verbose").stdout
    for expected in ("pi_init, the judge's reference", "reference pi_0", "memory", "disk", "to do", "rows 96"):
        assert expected in text
    assert not (tmp_path / "runs").exists()
    outside = ("--set", "model.model_name_or_path=org/model", "--set", "model.trust_remote_code=true")
    risky = spa("plan", "mini.yaml", *outside).stdout
    assert "trust_remote_code" in risky


def test_doctor_reports(spa: Spa) -> None:
    done = spa("doctor", HF_HUB_OFFLINE="1")
    assert done.returncode == 0
    assert "torch" in done.stdout
    assert "offline: HF_HUB_OFFLINE" in done.stdout
