"""A branch or tag of the Hub is one commit for a run, in its plan, its keys and what its stages load."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from spa_recipes.data import hub as hub_module
from spa_recipes.data.commits import Commits, commit_of
from spa_recipes.data.hub import ask, cached_commit
from spa_recipes.data.model_files import ModelFiles
from spa_recipes.data.places import is_path
from spa_recipes.errors import DataError, TryAgainError
from spa_recipes.plan import External, Plan, compile_plan
from spa_recipes.recipe.schema import Recipe
from spa_recipes.run.commits import commits_of
from spa_recipes.run.rundir import RunDir
from spa_recipes.run.spec import stage_spec
from spa_recipes.stages.answers import instructions_file
from spa_recipes.stages.context import Context, StageSpec
from spa_recipes.state.digests import DigestMemo
from tests.kit.hub_server import NEWEST, TOKEN, HubServer
from tests.kit.models import recipe_for

TAGGED = "1" * 40
MOVED = "2" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        server.repos = {"me/model": {"main": {}}, "me/pairs": {"main": {}}}
        server.heads = {"me/model": {"v1": TAGGED}}
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        yield server


def planned(run: RunDir, revision: str | None = None, *, ask: bool = True) -> Plan:
    recipe = recipe_for("me/model", model={"revision": revision})
    recipe["data"]["pairs"] = {"source": "me/pairs"}
    recipe["evaluation"] = {"enabled": False}
    return compile_plan(Recipe.model_validate(recipe), DigestMemo(run.path / "memo"), commits_of(run, ask=ask))


def begun(run: RunDir, plan: Plan) -> None:
    run.write_recipe(None, plan.recipe, plan)


def model_of(plan: Plan) -> External:
    policy = plan.stage("seed").inputs["policy"]
    assert isinstance(policy, External)
    return policy


def test_the_commit_is_in_plan_and_key_and_is_what_a_stage_loads(tmp_path: Path, hub: HubServer) -> None:
    run = RunDir(tmp_path / "run")
    plan = planned(run, "v1")
    assert str(model_of(plan)) == f"me/model@{TAGGED}"
    assert plan.stage("seed").material["inputs"]["policy"] == f"hub:me/model@{TAGGED}"
    assert plan.stage("data").material["inputs"]["pairs"] == f"hub:me/pairs@{NEWEST}"
    assert plan.commits == {"models/me/model@v1": TAGGED, "datasets/me/pairs@main": NEWEST}
    begun(run, plan)
    spec: StageSpec = stage_spec(plan, run, plan.stage("data"), 1, None)
    assert spec.revisions == {"policy": TAGGED, "pairs": NEWEST}
    assert planned(run, TAGGED).stage("seed").key == plan.stage("seed").key


def test_the_prompts_of_alpaca_eval_are_of_one_commit(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["tatsu-lab/alpaca_eval"] = {"main": {"alpaca_eval_gpt4_baseline.json": b"[]"}}
    run = RunDir(tmp_path / "run")
    recipe = recipe_for("me/model")
    recipe["data"]["pairs"] = {"source": "me/pairs"}
    recipe["evaluation"] = {"benchmarks": [{"type": "alpaca_eval"}]}
    plan = compile_plan(Recipe.model_validate(recipe), DigestMemo(run.path / "memo"), commits_of(run, ask=True))
    answers = plan.stage("alpaca-eval-answers")
    assert answers.material["inputs"]["instructions"] == f"hub:tatsu-lab/alpaca_eval@{NEWEST}"
    spec = stage_spec(plan, run, answers, 1, None)
    got: list[tuple[str, str, str]] = []

    def download(repo: str, name: str, *, revision: str, repo_type: str) -> str:
        got.append((repo_type, f"{repo}/{name}", revision))
        return "here"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert instructions_file(Context(spec)) == Path("here")
    assert got == [("dataset", "tatsu-lab/alpaca_eval/alpaca_eval_gpt4_baseline.json", NEWEST)]


def test_a_branch_that_moves_changes_nothing_in_a_run_that_began(tmp_path: Path, hub: HubServer) -> None:
    run = RunDir(tmp_path / "run")
    plan = planned(run)
    begun(run, plan)
    hub.heads["me/model"]["main"] = MOVED
    asked = len(hub.asked)
    assert planned(run).stages == plan.stages
    assert len(hub.asked) == asked
    assert model_of(planned(RunDir(tmp_path / "another"))).revision == MOVED


def test_a_run_that_an_earlier_version_began_keeps_its_keys(tmp_path: Path, hub: HubServer) -> None:
    run = RunDir(tmp_path / "run")
    recipe = planned(run).recipe
    assert isinstance(recipe, Recipe)
    before = compile_plan(recipe, DigestMemo(tmp_path / "memo"))
    begun(run, before)
    assert not (run.path / ".commits.json").exists()
    assert [stage.key for stage in planned(run).stages] == [stage.key for stage in before.stages]
    assert model_of(planned(run, "v1")).revision == TAGGED


def test_a_plan_asks_nobody_and_knows_the_commit_by_which_something_was_downloaded(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "run")
    assert model_of(planned(run, ask=False)).revision is None
    assert hub.asked == []
    plan = planned(run)
    monkeypatch.setattr(hub_module, "ask", None)
    assert planned(run, ask=False).stages == plan.stages
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert planned(run).stages == plan.stages


def test_a_revision_that_is_no_name_is_not_looked_for_on_this_disk(tmp_path: Path, hub: HubServer) -> None:
    (tmp_path / "secret").write_text("x")
    assert cached_commit("model", "me/model", "../../../secret") is None


def test_the_files_of_a_model_are_those_of_one_commit(hub: HubServer) -> None:
    assert ModelFiles("me/model", "v1").at_commit() == ModelFiles("me/model", TAGGED)
    asked = len(hub.asked)
    assert ModelFiles("me/model", TAGGED).at_commit().revision == TAGGED
    assert len(hub.asked) == asked


ANSWERS = [
    (500, TryAgainError, "the Hub cannot be reached"),
    (503, TryAgainError, "the Hub cannot be reached"),
    (429, TryAgainError, "the Hub cannot be reached"),
    (401, DataError, "no such model on this disk or on the Hub, or no access to it"),
    (404, DataError, "no such model on this disk or on the Hub, or no access to it"),
]


@pytest.mark.parametrize(("status", "kind", "what"), ANSWERS, ids=str)
def test_what_the_hub_answers(hub: HubServer, status: int, kind: type[Exception], what: str) -> None:
    hub.fail = [(r"GET /api/models/me/model", status)]
    with pytest.raises(kind, match=what) as caught:
        commit_of("model", "me/model", None)
    assert "\n" not in str(caught.value)
    assert len(hub.asked) == 1  # it is asked once


def test_a_gated_model_says_where_to_ask_for_access(hub: HubServer) -> None:
    hub.gated = {"me/model"}
    with pytest.raises(DataError, match=r"the model is gated on the Hub; ask for access at https://hugg"):
        commit_of("model", "me/model", None)


def test_a_branch_that_is_not_there(hub: HubServer) -> None:
    with pytest.raises(DataError, match="no such revision of the model on the Hub; check revision"):
        commit_of("model", "me/model", "v2")


def test_a_hub_that_refuses_connections(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    begin = time.monotonic()
    with pytest.raises(TryAgainError, match=r"me/model: the Hub cannot be reached \(.*check the network") as caught:
        commit_of("model", "me/model", None)
    assert time.monotonic() - begin < hub_module.SECONDS
    assert "HF_HUB_OFFLINE" not in str(caught.value)


def test_a_hub_that_never_answers(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_of("model", "me/model", None)
    assert hub_module.SECONDS < 10
    monkeypatch.setattr(hub_module, "SECONDS", 0.3)
    begin = time.monotonic()
    with pytest.raises(TryAgainError, match=r"the Hub cannot be reached \(no answer within 0.3 seconds\)") as caught:
        ask("model", "me/model", lambda: time.sleep(5))
    assert time.monotonic() - begin < 2
    assert "HF_HUB_OFFLINE=1 takes what is in the cache" in str(caught.value)  # where there is something


@pytest.mark.parametrize("name", ["./model", "../model", "/model", "~/model", "a/b/c", "models/typo"])
def test_a_name_that_looks_like_a_path_is_not_asked_for(
    name: str, tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert is_path(name)
    with pytest.raises(DataError, match="no such model folder; check the path"):
        ModelFiles(name, None).read("config.json")
    recipe = Recipe.model_validate(recipe_for(name))
    compile_plan(recipe, DigestMemo(tmp_path / "memo"), commits_of(RunDir(tmp_path / "run"), ask=True))
    assert [line for line in hub.asked if "models" in line] == []
    assert not is_path("org/model")


def test_commits_that_are_damaged_are_looked_up_again(tmp_path: Path, hub: HubServer) -> None:
    run = RunDir(tmp_path / "run")
    begun(run, planned(run))
    (run.path / ".commits.json").write_text(json.dumps(["x"]))
    assert planned(run).commits == planned(RunDir(tmp_path / "another")).commits


def test_a_commit_needs_no_look() -> None:
    assert Commits().of("model", "me/model", TAGGED) == TAGGED
    assert Commits().of("model", "me/model", None) is None
