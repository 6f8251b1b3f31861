"""Who may import whom, and what stays out of the light commands."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from spa_recipes import api
from tests.kit.cli import HEAVY
from tests.kit.recipes import mini, write_recipe

PACKAGE = Path(__file__).parents[2] / "spa_recipes"
ALLOWED: dict[str, set[str]] = {
    "redaction": set(),
    "errors": {"redaction"},
    "units": set(),
    "encoding": set(),
    "state": {"encoding", "errors"},
    "recipe": {"encoding", "errors"},
    "algo": set(),
    "sandbox": set(),
    "data": {"encoding", "errors", "units", "recipe", "algo", "sandbox", "state"},
    "benchmarks": {"errors", "recipe", "data"},
    "plan": {"errors", "recipe", "data", "state"},
    "models": {"errors", "recipe", "algo", "data", "state"},
    "estimates": {"plan", "recipe", "models"},
    "generation": {"errors", "redaction", "recipe", "algo", "data", "models"},
    "training": {"errors", "recipe", "algo", "data", "state", "models"},
    "stages": {
        "errors",
        "redaction",
        "units",
        "recipe",
        "plan",
        "state",
        "data",
        "algo",
        "models",
        "generation",
        "training",
        "sandbox",
        "benchmarks",
    },
    "run": {
        "errors",
        "redaction",
        "units",
        "recipe",
        "plan",
        "estimates",
        "state",
        "data",
        "stages",
        "models",
        "generation",
        "training",
        "benchmarks",
    },
    "label": {"errors", "units", "state", "data", "algo"},
    "chat": {"recipe", "data", "models", "run"},
    "export": {"errors", "state", "data", "models", "run"},
    "api": {"errors", "recipe", "data", "plan", "state", "run", "report"},
    "job_output": {"errors", "recipe", "plan", "state", "run", "api"},
    "report": {"errors", "units", "recipe", "plan", "state", "data", "run", "algo", "label"},
    "publish": {"errors", "plan", "state", "data", "run"},
    "benchmark_job": {"errors", "recipe", "plan", "state", "run", "api", "job_output", "benchmarks"},
    "judge_job": {"errors", "recipe", "data", "plan", "state", "run", "job_output"},
    "sample_job": {"errors", "recipe", "plan", "state", "data", "run", "api", "job_output"},
    "sweep": {"errors", "recipe", "plan", "state", "run", "api", "report"},
    "label_job": {"errors", "recipe", "data", "run", "job_output", "sample_job", "label"},
    "cli": {
        "errors",
        "redaction",
        "units",
        "recipe",
        "plan",
        "state",
        "data",
        "run",
        "api",
        "estimates",
        "report",
        "publish",
        "benchmark_job",
        "judge_job",
        "sample_job",
        "sweep",
        "label_job",
        "label",
        "export",
        "chat",
    },
}
"""A part of the package and the parts that it may import."""


def imports(path: Path) -> set[str]:
    """Parts of the package that a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            package = node.module == "spa_recipes"
            names = [f"spa_recipes.{alias.name}" for alias in node.names] if package else [node.module]
        found |= {name.split(".")[1] for name in names if name.startswith("spa_recipes.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_dependencies_go_one_way(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part == "__init__":
        return
    assert imports(path) - {part} <= ALLOWED[part]


def test_algo_stands_alone() -> None:
    for path in (PACKAGE / "algo").glob("*.py"):
        assert imports(path) <= {"algo"}


def test_only_the_worker_and_the_fork_server_import_stages_at_work() -> None:
    for path in (PACKAGE / "run").glob("*.py"):
        if path.stem not in ("worker", "forkserver"):
            source = path.read_text()
            assert "spa_recipes.stages" not in source.replace("spa_recipes.stages.context", "")


SLOW_TO_START = (*HEAVY, "numpy", "pandas", "pyarrow", "asyncio", "httpx", "huggingface_hub", "jinja2", "rich", "email")
"""What no light command imports."""

NO_PLAN = ("spa_recipes.run", "spa_recipes.plan")
NO_RECIPE = (*NO_PLAN, "spa_recipes.recipe", "yaml")


@pytest.mark.parametrize(
    ("arguments", "avoided"),
    [
        (["--help"], (*NO_RECIPE, "pydantic.main")),
        (["run", "--help"], NO_RECIPE),
        (["evaluate", "--help"], NO_RECIPE),
        (["sweep", "--help"], NO_RECIPE),
        (["sweep", "S", "--plan"], ("spa_recipes.run.preflight",)),
        (["validate", "R"], NO_PLAN),
        (["schema"], NO_PLAN),
        (["plan", "R"], ("spa_recipes.run.preflight",)),
        (["status", "--runs-dir", "."], ("spa_recipes.plan", "spa_recipes.recipe", "yaml")),
        (["status"], ()),
        (["status", "mini"], ("spa_recipes.run.preflight",)),
        (["gc", "--models", "--yes"], ()),
        (["init", "new.yaml"], NO_PLAN),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_light_commands_import_only_what_they_need(
    tmp_path: Path, arguments: list[str], avoided: tuple[str, ...]
) -> None:
    recipe = write_recipe(tmp_path / "mini.yaml", mini())
    plan, run, text, _ = api.prepare(recipe, run_dir=tmp_path / "runs" / "mini")
    run.write_recipe(text, plan.recipe, plan)  # so that there is something to show
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("{name: s, recipe: mini.yaml, seeds: [1], variants: [{name: a}], control: a}")
    named = {"R": str(recipe), "S": str(sweep)}
    arguments = [named.get(argument, argument) for argument in arguments]
    code = f"""
import atexit, sys
avoided = {(*SLOW_TO_START, *avoided)!r}
atexit.register(lambda: print("IMPORTED", [module for module in avoided if module in sys.modules]))
sys.argv = ["spa", *{arguments!r}]
from spa_recipes.cli.app import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "IMPORTED []"
