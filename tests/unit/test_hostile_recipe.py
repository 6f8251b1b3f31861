"""A recipe that runs programs, or sends keys where they do not belong: only with the user's own word."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from spa_recipes.benchmark_job import run_benchmark
from spa_recipes.cli.progress import PlainReporter
from spa_recipes.errors import RecipeError
from spa_recipes.plan import Plan, compile_plan
from spa_recipes.plan.powers import powers_of
from spa_recipes.recipe.job import load_job
from spa_recipes.recipe.load import load_recipe
from spa_recipes.recipe.schema import Recipe
from spa_recipes.run import consent
from spa_recipes.run.rundir import RunDir
from spa_recipes.state.digests import DigestMemo
from tests.kit.cli import one_error
from tests.kit.models import model_folder
from tests.kit.recipes import mini, write_recipe

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
OPENAI = "https://api.openai.com/v1"


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("MY_KEY", "sk-my-very-own-key")


def asks(base_url: str, variable: str | None) -> dict[str, Any]:
    """Changes of the miniature that ask a judge at a server."""
    endpoint = {"base_url": base_url, "model": "m", "api_key_env": variable}
    return {"judge": {"type": "llm", "endpoint": endpoint}}


def plan_of(tmp_path: Path, **changes: Any) -> Plan:
    return compile_plan(Recipe.model_validate(recipe_with(**changes)), DigestMemo(tmp_path / "memo"))


TRAININGS, HALF_A_BATCH = ("sft", "seed_training", "refine"), {"per_device_train_batch_size": 8}


def recipe_with(**changes: Any) -> dict[str, Any]:
    """The miniature; with a Python for vLLM it samples with that."""
    recipe = mini(**changes)
    if "vllm_python" in recipe["compute"]:
        recipe["sampling"]["backend"] = {"type": "vllm"}
        recipe["compute"]["executor"] = {"type": "local"}
    return recipe


def program(tmp_path: Path) -> tuple[Path, Path]:
    """A program, and the file that it leaves when it runs."""
    trace, path = tmp_path / "it-ran", tmp_path / "python"
    path.write_text(f"#!/bin/sh\ntouch {trace}\n")
    path.chmod(0o755)
    return path, trace


def with_program(path: Path) -> dict[str, Any]:
    return {"compute": {"vllm_python": str(path)}}


# --- nobody's day changes


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_shipped_recipe_asks_anything(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.jsonl").write_text("{}\n")
    (tmp_path / "recipes").symlink_to(path.parent)
    plan = compile_plan(load_recipe(path).recipe, DigestMemo(tmp_path / "memo"))
    assert powers_of(plan, tmp_path / "run").asked == []
    consent.require(plan, RunDir(tmp_path / "run"))


@pytest.mark.parametrize(
    "changes",
    [
        asks(OPENAI, "OPENAI_API_KEY"),
        asks("http://127.0.0.1:8000/v1", None),
        asks("http://judge.example/v1", None),
        {"tracking": {"report_to": ["wandb", "tensorboard"]}},
        {"model": {"attn_implementation": "flash_attention_2"}},
        {"compute": {"executor": {"type": "accelerate", "num_processes": 2}}, **dict.fromkeys(TRAININGS, HALF_A_BATCH)},
    ],
    ids=["a key to its own service", "no key", "no key over http", "trackers", "flash attention", "accelerate"],
)
def test_what_everybody_expects_is_not_asked(changes: dict[str, Any], tmp_path: Path) -> None:
    consent.require(plan_of(tmp_path, **changes), RunDir(tmp_path / "run"))


# --- what is asked

ASKED: dict[str, tuple[dict[str, Any], str]] = {
    "a program": (with_program(Path("/evil/python")), "the program /evil/python (compute.vllm_python)"),
    "a kernel": ({"model": {"attn_implementation": "evil/kernel"}}, "evil/kernel on the Hub (model.attn_implem"),
    "a kernel of a version": ({"model": {"attn_implementation": "evil/kernel@v1:f"}}, "evil/kernel@v1:f on the Hub"),
    "an accelerate config": (
        {"compute": {"executor": {"type": "accelerate", "num_processes": 1, "config_file": "a.yaml"}}},
        "a.yaml tells accelerate to start",
    ),
    "a key of the user's": (asks("https://evil.example/v1", "MY_KEY"), "https://evil.example/v1, with MY_KEY"),
    "OpenAI's key elsewhere": (asks("https://evil.example/v1", "OPENAI_API_KEY"), "with OPENAI_API_KEY (judge.end"),
    "a host that looks like its own": (asks("https://api.openai.com.evil/v1", "OPENAI_API_KEY"), "openai.com.evil"),
    "a key to this machine": (asks("http://localhost:1/v1", "OPENAI_API_KEY"), "http://localhost:1/v1, with OPENAI"),
}


@pytest.mark.parametrize("case", ASKED)
def test_it_needs_trust(case: str, tmp_path: Path) -> None:
    changes, named = ASKED[case]
    plan, run = plan_of(tmp_path, **changes), RunDir(tmp_path / "run")
    with pytest.raises(RecipeError, match=r"needs your trust.*add --trust once") as caught:
        consent.require(plan, run)
    assert named in str(caught.value)
    consent.remember(powers_of(plan, run.path))
    consent.require(plan, run)
    consent.require(plan_of(tmp_path, seed=7, **changes), RunDir(tmp_path / "another"))


def test_the_code_of_a_model_needs_trust_again_when_it_changes(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    changes = {"sft": None, "model": {"model_name_or_path": str(model), "trust_remote_code": True}}
    digests = []
    for code in ("print(1)", "print(2)"):
        (model / "own.py").write_text(code)
        powers = powers_of(plan_of(tmp_path, **changes), tmp_path / "run")
        assert f"the Python code that comes with {model} (model.trust_remote_code)" in map(str, powers.asked)
        digests.append(powers.digest)
    assert digests[0] != digests[1]


def test_an_accelerate_config_needs_trust_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = ASKED["an accelerate config"][0]
    Path("a.yaml").write_text("{}")
    before = powers_of(plan_of(tmp_path, **changes), tmp_path).digest
    Path("a.yaml").write_text("{a: b}")
    assert powers_of(plan_of(tmp_path, **changes), tmp_path).digest != before


def test_a_folder_that_says_where_wandb_sends_to_needs_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    Path("wandb").mkdir()
    Path("wandb", "settings").write_text("[default]\nbase_url = http://evil.example\n")
    with pytest.raises(RecipeError, match=r"where /.*/wandb/settings says, with WANDB_API_KEY"):
        consent.require(plan_of(tmp_path, tracking={"report_to": ["wandb"]}), RunDir(tmp_path / "run"))


def test_a_model_whose_config_names_a_kernel_is_refused() -> None:
    from spa_recipes.data.model_files import ModelFiles
    from spa_recipes.run.model_preflight import refuse_kernels

    files = ModelFiles("org/model", None)
    for config in ({"attn_implementation": "evil/kernel"}, {"text_config": {"_attn_implementation": "evil/kernel"}}):
        with pytest.raises(RecipeError, match=r"compiled code on the Hub .*evil/kernel"):
            refuse_kernels(files, config)
    refuse_kernels(files, {"attn_implementation": "sdpa", "name_or_path": "org/model"})


# --- how the user agrees


def test_spa_run_starts_no_program_without_trust(tmp_path: Path, spa_here: Any) -> None:
    path, trace = program(tmp_path)
    write_recipe(tmp_path / "r.yaml", recipe_with(**with_program(path)))
    line = one_error(spa_here("run", "r.yaml"), 2)
    assert f"needs your trust, which a recipe cannot give itself, for the program {path}" in line
    assert not trace.exists()
    assert "asks for your trust first" in spa_here("plan", "r.yaml").out
    assert spa_here("run", "r.yaml", "--trust").code == 2  # it is no Python
    assert trace.exists()
    trace.unlink()
    spa_here("run", "r.yaml")  # it is remembered
    assert trace.exists()
    assert "you trust it" in spa_here("plan", "r.yaml").out


def test_spa_resume_starts_no_program_of_a_run_folder_without_trust(tmp_path: Path, spa_here: Any) -> None:
    path, trace = program(tmp_path)
    plan = plan_of(tmp_path, **with_program(path))
    RunDir(tmp_path / "runs" / "mini").write_recipe("", plan.recipe, plan)
    for arguments in (["resume"], ["resume", "mini"]):
        assert "needs your trust" in one_error(spa_here(*arguments), 2)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("answer", "agrees"), [("y\n", True), ("YES\n", True), ("\n", False), ("n\n", False), ("", False)]
)
def test_on_a_terminal_it_is_asked_once(
    answer: str, agrees: bool, tmp_path: Path, spa_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, trace = program(tmp_path)
    write_recipe(tmp_path / "r.yaml", recipe_with(**with_program(path)))
    terminal = io.StringIO(answer)
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    said = spa_here("run", "r.yaml")
    assert f"the program {path} (compute.vllm_python)" in said.err
    assert "Do you trust it? [y/N]" in said.err
    assert trace.exists() == agrees
    assert agrees or "you did not agree; nothing was started" in said.err
    assert not agrees or "Do you trust it" not in spa_here("run", "r.yaml").err


TYPED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a program": (ASKED["a program"][0], ["compute.vllm_python"]),
    "a section": (ASKED["a program"][0], ["seed", "compute"]),
    "a kernel": (ASKED["a kernel"][0], ["model.attn_implementation"]),
    "an accelerate config": (ASKED["an accelerate config"][0], ["compute.executor.config_file"]),
    "a key and its server": (
        ASKED["a key of the user's"][0],
        ["judge.endpoint.base_url", "judge.endpoint.api_key_env"],
    ),
}


@pytest.mark.parametrize("case", TYPED)
def test_what_the_user_types_is_not_asked(case: str, tmp_path: Path) -> None:
    changes, typed = TYPED[case]
    powers = powers_of(plan_of(tmp_path, **changes), tmp_path / "run")
    assert consent.still_asked(powers, typed) == []
    for less in ([], typed[1:-1] + typed[:-1], [f"{key}x" for key in typed], ["name"]):
        assert consent.still_asked(powers, less) == powers.asked


@pytest.mark.parametrize("typed", ["judge.endpoint.base_url", "judge.endpoint.api_key_env", "judge.endpoint.model"])
def test_who_types_the_server_or_the_key_only_is_asked(typed: str, tmp_path: Path) -> None:
    """The recipe would choose which secret goes there, or where the secret goes."""
    powers = powers_of(plan_of(tmp_path, **ASKED["a key of the user's"][0]), tmp_path / "run")
    assert len(consent.still_asked(powers, [typed])) == 1


def test_a_setting_on_the_command_line_is_trust_also_for_resume(tmp_path: Path, spa_here: Any) -> None:
    path, trace = program(tmp_path)
    write_recipe(tmp_path / "r.yaml", recipe_with(**with_program(path)))
    typed = ("r.yaml", "--set", f"compute.vllm_python={path}")
    assert "asks for your trust first" in spa_here("plan", "r.yaml").out
    assert "asks for your trust" not in spa_here("plan", *typed).out
    assert "needs your trust" in spa_here("run", "r.yaml", "--set", "seed=7").err
    assert not trace.exists()
    assert "needs your trust" not in spa_here("run", *typed).err
    assert trace.exists()
    assert "needs your trust" not in spa_here("run", "r.yaml").err


def test_a_job_file_needs_trust_and_the_command_line_is_the_users_own_word(tmp_path: Path, spa_here: Any) -> None:
    path, trace = program(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "job.yaml").write_text(
        json.dumps(
            {
                "model": {"model_name_or_path": "org/name"},
                "benchmark": {"type": "alpaca_eval", "prompts": "p.jsonl"},
                "backend": {"type": "vllm"},
                "compute": {"vllm_python": str(path)},
            }
        )
    )
    assert "needs your trust" in one_error(spa_here("evaluate", "job.yaml"), 2)
    with pytest.raises(RecipeError, match="needs your trust"):
        run_benchmark(load_job(str(tmp_path / "job.yaml")), PlainReporter())
    assert not trace.exists()
    options = ("--benchmark", "alpaca_eval", "--prompts", "p.jsonl", "--backend", "vllm")
    model_folder(tmp_path / "m")
    spa_here("evaluate", "m", *options, "--set", f"compute.vllm_python={path}")
    assert trace.exists()


# --- keys that are never sent


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "hf_token", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"]
)
def test_a_secret_of_another_service_is_refused_with_its_line(name: str, tmp_path: Path, spa_here: Any) -> None:
    write_recipe(tmp_path / "r.yaml", mini(**asks("https://evil.example/v1", name)))
    line = one_error(spa_here("run", "r.yaml", "--trust"), 2)
    assert line.startswith("r.yaml:")
    assert f"judge.endpoint.api_key_env: {name} is never sent to an endpoint" in line


@pytest.mark.parametrize(
    "host", ["evil.example", "10.0.0.1:8000", "api.openai.com", "localhost.evil.example", "127.0.0.1.nip.io"]
)
def test_a_key_over_plain_http_is_refused(host: str) -> None:
    with pytest.raises(ValidationError, match="over plain http"):
        Recipe.model_validate(mini(**asks(f"http://{host}/v1", "OPENAI_API_KEY")))


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1:1", "127.8.9.1", "[::1]:1"])
def test_on_this_machine_http_will_do(host: str) -> None:
    Recipe.model_validate(mini(**asks(f"http://{host}/v1", "MY_KEY")))
