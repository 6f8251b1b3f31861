"""The model card and the folder `final`: what they say and keep to themselves, and that they are whole at any time."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from spa_recipes.plan import Plan, compile_plan
from spa_recipes.recipe.load import load_recipe
from spa_recipes.recipe.schema import Recipe
from spa_recipes.report.card import final_texts
from spa_recipes.run import final, gc
from spa_recipes.run.rundir import RunDir
from spa_recipes.state.digests import DigestMemo, file_digest
from spa_recipes.state.stagedir import StageDir
from tests.kit.finished_runs import commit, finish, make_run, manifests, show_final
from tests.kit.models import model_folder
from tests.kit.plans import plan_of, plan_of_recipe
from tests.kit.recipes import mini


def card_of(plan: Plan, tmp_path: Path) -> str:
    """The card of a finished run of a plan."""
    return (make_run(tmp_path / "runs" / plan.recipe.name, plan).final / "README.md").read_text()


def made_by(run: RunDir, plan: Plan, stage: str) -> StageDir:
    return run.stage_dir(plan.stage(stage), plan)


# --- what the card says ---


def test_the_card_has_the_figures_of_the_run(tmp_path: Path) -> None:
    card = card_of(plan_of(description="A small run"), tmp_path)
    for words in (
        "# mini",
        "A small run",
        "This is pi_2, the model that the stage `refine-2`",
        "arXiv 2406.04412",
        "400 rows, read as string prompt, 3 bad rows skipped",
        "seed labels: 60 (15.0% of the pairs)",
        "prompts per iteration: 32, 48",
        "5 (iteration 1: 5)",
        "| pi_init | 0 | 0 |",
        "| pi_0 | 16 | 4 | 61.4% (37.7% to 80.7%) | 60.0% (35.0% to 81.0%) | 2.50 | 30.25 | 78.3% |",
        "| pi_2 | 16 | 10 | 63.4% (39.5% to 82.2%) |",
        "| flagged pairs | 7 | 7 |",
        "judged by the gold reward of the sandbox",
        "The label accuracy fell from 78.3% to 74.3%",
        "One run with one seed (7)",
        "| torch | 2.13.0 |",
        "spa run recipe.yaml",
        "max_new_tokens=32, do_sample=True, temperature=0.7",
    ):
        assert words in card, words
    assert "None" not in card


def test_the_hub_can_read_it(tmp_path: Path) -> None:
    recipe = mini(sft=None, evaluation={"reward": "seed"})
    recipe["model"] |= {"model_name_or_path": "org/base-7b", "revision": "v1.0"}
    recipe["data"]["pairs"] = {"source": "org/pairs", "revision": "abc123"}
    recipe["data"]["prompts"] = {"source": "org/prompts"}
    plan = plan_of_recipe(recipe)
    run = make_run(tmp_path / "mini", plan)
    card = ModelCard.load(run.final / "README.md")
    assert card.data.to_dict() == {
        "base_model": "org/base-7b",
        "datasets": ["org/pairs", "org/prompts"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["spa", "dpo", "preference-alignment", "arxiv:2406.04412"],
    }
    assert "[org/pairs](https://huggingface.co/datasets/org/pairs), revision `abc123`" in card.text
    assert (
        "[org/prompts](https://huggingface.co/datasets/org/prompts), revision `main`, which is not fixed" in card.text
    )
    assert "[org/base-7b](https://huggingface.co/org/base-7b), revision `v1.0`" in card.text
    assert "implicit reward of pi_0 against pi_init" in card.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"judge": {"type": "random"}}, "by a coin"),
        ({"judge": {"type": "gold"}}, "gold reward, which is a control"),
        ({"judge": {"type": "reward_model"}}, "by a reward model"),
        ({"judge": {"reference": "base"}}, "against those of the base model"),
        ({"judge": {"type": "llm", "max_tokens": 16}}, "by asking the model itself in words"),
        ({"judge": {"type": "llm", "max_tokens": 16}}, "| verdicts that are ties | 12.5% | 12.5% |"),
        (
            {"judge": {"type": "llm", "model_name_or_path": "org/judge", "max_tokens": 16}},
            "by asking `org/judge` in words",
        ),
        (
            {"judge": {"type": "llm", "endpoint": {"base_url": "https://gpu-7:80/v1", "model": "big"}}},
            "base_url: http://localhost:8000/v1",
        ),
        ({"evaluation": {"benchmarks": [{"type": "pairwise", "max_tokens": 16}]}}, "Benchmarks of this model:"),
        ({"data": {"prompts_per_iteration": []}}, "no iteration on labels of its own followed"),
        ({"data": {"heldout": 0}}, "Nothing was measured"),
        ({"data": {"prompts_per_iteration": []}, "sampling": {"temperature": 0.0}}, "do_sample=False"),
        ({"model": {"trust_remote_code": True}}, ', dtype="auto", trust_remote_code=True)'),
    ],
    ids=lambda value: "" if isinstance(value, str) else json.dumps(value),
)
def test_other_recipes_have_a_card_too(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in card_of(plan_of(**changes), tmp_path)


def test_a_run_that_its_judge_stopped_says_so(tmp_path: Path) -> None:
    plan = plan_of(evaluation={"max_judge_decay": 0.01})
    run = RunDir(tmp_path / "mini")
    for stage in plan.stages[: plan.stages.index(plan.stage("generate-2"))]:
        commit(run, plan, stage.id)
    card = (finish(run, plan).final / "README.md").read_text()
    assert "This is pi_1" in card
    assert "The run stopped before generate-2" in card


def test_versions_that_differ_are_told_apart(tmp_path: Path) -> None:
    plan = plan_of()
    done = manifests(make_run(tmp_path / "mini", plan), plan)
    done["refine-2"] = replace(done["refine-2"], versions={**done["refine-2"].versions, "torch": "2.14.0"})
    card = final_texts(plan, done)["README.md"]
    assert "2.14.0 (refine-2)" in card
    assert "| transformers | 5.19.0 |" in card


def test_the_same_results_give_the_same_card(tmp_path: Path) -> None:
    """Whenever, wherever and in however many attempts they were made."""
    plan = plan_of()
    one = make_run(tmp_path / "one", plan)
    other = make_run(tmp_path / "other", plan, seconds=99.0, finished_at="2030-01-01T00:00:00+00:00", attempt=4)
    elsewhere = plan_of(compute={"executor": {"type": "local"}, "cpu_threads": 7}, storage={"runs_dir": "/scratch/me"})
    third = make_run(tmp_path / "third", elsewhere, reused_from="one")
    for name in ("README.md", "recipe.yaml"):
        assert (one.final / name).read_bytes() == (other.final / name).read_bytes() == (third.final / name).read_bytes()


def test_the_recipe_beside_the_card_is_the_recipe(tmp_path: Path) -> None:
    """It is read as any other and gives the same stages."""
    plan = plan_of()
    run = make_run(tmp_path / "mini", plan)
    again = compile_plan(load_recipe(run.final / "recipe.yaml", []).recipe, DigestMemo(tmp_path / "memo"))
    assert [(stage.id, stage.key) for stage in again.stages] == [(stage.id, stage.key) for stage in plan.stages]
    assert yaml.safe_load((run.final / "recipe.yaml").read_text()).keys().isdisjoint({"compute", "storage", "tracking"})
    assert (run.final / "recipe.yaml").read_text() in (run.final / "README.md").read_text()


# --- what it keeps to itself ---


def private_recipe(home: Path) -> dict[str, Any]:
    """A recipe full of what belongs to its user's machine."""
    from spa_recipes.data.rows import write_jsonl
    from spa_recipes.sandbox.rows import preference_rows

    home.mkdir(parents=True)
    write_jsonl(home / "my pairs.jsonl", preference_rows(400, seed=0))
    for name in ("base", "judge-policy", "judge-base"):
        model_folder(home / name)
    (home / "chat.jinja").write_text("{{ messages }}")
    recipe = mini(
        sft=None,
        description=f"From {home}/base and ~/notes/todo.txt, with hf_{'a' * 34} at https://me:pw@example.org/x",
        model={"model_name_or_path": f"{home}/base/", "chat_template": str(home / "chat.jinja")},
        evaluation={
            "reward": "implicit_reward",
            "reward_policy": str(home / "judge-policy"),
            "reward_reference": os.path.relpath(home / "judge-base"),
        },
        storage={"runs_dir": str(home / "runs")},
    )
    recipe["data"]["pairs"] = {"source": str(home / "my pairs.jsonl")}
    return recipe


def test_nothing_of_the_machine_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "t" * 34)
    home = tmp_path / "jane-doe" / "projects"
    plan = plan_of_recipe(private_recipe(home))
    run = make_run(tmp_path / "runs" / "mini", plan)
    texts = [(run.final / name).read_text() for name in ("README.md", "recipe.yaml")]
    for text in texts:
        for secret in ("jane-doe", str(tmp_path), "hf_", "pw@", "notes/"):
            assert secret not in text, secret
    card, recipe = texts
    digest = file_digest(home / "my pairs.jsonl")
    assert f"`my pairs.jsonl`, not on the Hub (sha256 `{digest[:16]}…`)" in card
    assert "`base`, not on the Hub" in card
    assert "by these names in the current folder: `my pairs.jsonl`, `base`, `judge-policy`, `judge-base`" in card
    assert "base_model" not in ModelCard.load(run.final / "README.md").data.to_dict()
    shown = yaml.safe_load(recipe)
    assert shown["model"]["model_name_or_path"] == "base"
    assert shown["model"]["chat_template"] == "chat.jinja"
    assert shown["evaluation"]["reward_reference"] == "judge-base"
    assert shown["data"]["pairs"]["source"] == "my pairs.jsonl"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("org/name", "org/name"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("hf-internal-testing/tiny-random-LlamaForCausalLM", "hf-internal-testing/tiny-random-LlamaForCausalLM"),
        ("and/or 3/4 of it", "and/or 3/4 of it"),
        ("read (/home/me/a.txt), then ../b/c and /x", "read (a.txt), then c and /x"),
        ("/home/me/my data/x.jsonl", "x.jsonl"),
        ("~/x.jsonl", "x.jsonl"),
        ("data/x.parquet", "x.parquet"),
        (r"C:\Users\me\x.csv", "x.csv"),
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        ("https://me:secret@api.openai.com/v1", "https://api.openai.com/v1"),
        ("http://10.0.0.7:8000/v1", "http://localhost:8000/v1"),
        ("http://gpu-7:8000/v1", "http://localhost:8000/v1"),
        ("https://judge.corp/v1", "http://localhost:8000/v1"),
        ("sk-" + "a" * 40, "***"),
    ],
)
def test_texts_lose_what_is_private_and_nothing_else(text: str, shown: str) -> None:
    from spa_recipes.report.public import _public

    assert _public({"key": [text]}, set()) == {"key": [shown]}


# --- the folder ---


def test_the_folder_shows_the_model_by_relative_links(tmp_path: Path) -> None:
    plan = plan_of()
    run = make_run(tmp_path / "mini", plan)
    model = made_by(run, plan, "refine-2").output / "model"
    links = {path.name: path.readlink() for path in run.final.iterdir() if path.is_symlink()}
    assert links.keys() == {path.name for path in model.iterdir()}
    assert not any(link.is_absolute() for link in links.values())
    assert final.model_shown(run.final) == model.resolve()
    assert not (run.final / "README.md").is_symlink()
    (tmp_path / "mini").rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "copied", symlinks=True)
    for place in ("moved", "copied"):
        weights = (tmp_path / place / "final" / "model.safetensors").resolve()
        assert weights.is_relative_to(tmp_path / place)
        assert weights.stat().st_size == 5000


def test_a_model_in_folders_is_shown_in_folders(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    (tmp_path / "stages" / "model" / "parts" / "deep").mkdir(parents=True)
    (tmp_path / "stages" / "model" / "parts" / "deep" / "x.bin").write_text("x")
    final.show(run, tmp_path / "stages" / "model", {})
    assert (run.final / "parts" / "deep" / "x.bin").read_text() == "x"
    assert (run.final / "parts" / "deep" / "x.bin").is_symlink()


def test_the_link_of_an_earlier_version_becomes_a_folder(tmp_path: Path) -> None:
    plan = plan_of()
    run = make_run(tmp_path / "mini", plan)
    model = made_by(run, plan, "refine-2").output / "model"
    shutil.rmtree(run.final)
    run.final.symlink_to(model.relative_to(run.path), target_is_directory=True)
    assert final.model_shown(run.final) == model.resolve()
    show_final(run, plan)
    assert not run.final.is_symlink()
    assert (run.final / "README.md").is_file()
    assert sorted(path.name for path in model.iterdir()) == ["config.json", "model.safetensors", "training_log.jsonl"]


class StoppedError(BaseException):
    """The end of the process, in the tests."""


def stop_at(monkeypatch: pytest.MonkeyPatch, nth: int) -> Callable[[], int]:
    """Stop before the nth call that changes the disk; returns how many were made."""
    made = 0

    def wrap(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal made
            made += 1
            if made == nth:
                raise StoppedError
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    for owner, names in (
        (Path, ("rename", "symlink_to", "write_text", "mkdir", "unlink")),
        (shutil, ("rmtree", "copyfile")),
        (os, ("fsync",)),
    ):
        for name in names:
            wrap(owner, name)
    return lambda: made


@pytest.mark.parametrize(
    "before",
    [
        "nothing",
        pytest.param("a link", marks=pytest.mark.long),
        pytest.param("another model", marks=pytest.mark.long),
        "an edited card",
    ],
)
def test_the_folder_is_whole_or_absent_wherever_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """And the next call makes it right, and loses nothing that a person wrote."""
    plan, longer = plan_of(data={"prompts_per_iteration": [32]}), plan_of()
    first = RunDir(tmp_path / "first")
    for stage in longer.stages:
        commit(first, longer, stage.id)
    model = made_by(first, longer, "refine-2").output / "model"
    if before == "a link":
        first.final.symlink_to(made_by(first, longer, "refine-1").output.relative_to(first.path) / "model")
    elif before != "nothing":
        done = {name: manifest for name, manifest in manifests(first, longer).items() if not name.endswith("-2")}
        final.show(first, made_by(first, longer, "refine-1").output / "model", final_texts(plan, done))
    if before == "an edited card":
        (first.final / "README.md").write_text("mine")
    old = {path.name: path.resolve() for path in first.final.iterdir()} if first.final.exists() else {}

    stops = 0
    for nth in range(1, 100):
        run = RunDir(tmp_path / f"run-{nth}")
        shutil.copytree(first.path, run.path, symlinks=True)
        with monkeypatch.context() as patched:
            calls = stop_at(patched, nth)
            try:
                show_final(run, longer)
            except StoppedError:
                stops += 1
            else:
                assert calls() < nth
        if run.final.exists():
            shown = final.model_shown(run.final).relative_to(run.path)
            assert shown in (model.relative_to(first.path), Path(str(shown).replace("refine-2", "refine-1")))
            assert all(path.exists() for path in run.final.iterdir())
            is_new = (run.final / final.RECORD).exists() and "refine-2" in (run.final / final.RECORD).read_text()
            assert is_new or {path.name for path in run.final.iterdir()} == old.keys()
        show_final(run, longer)
        assert "This is pi_2" in (run.final / "README.md").read_text()
        assert final.model_shown(run.final) == (run.path / model.relative_to(first.path)).resolve()
        assert not list(run.path.glob(".final*"))
        if before == "an edited card":
            assert (run.final / "README.md.edited").read_text() == "mine"
        if stops < nth:
            break
        shutil.rmtree(run.path)
    assert stops > 8


def test_an_edited_card_stays_as_long_as_the_results_do(tmp_path: Path) -> None:
    plan = plan_of()
    run = make_run(tmp_path / "mini", plan)
    card = run.final / "README.md"
    generated = card.read_text()
    edited = generated.replace("# license: say", "license: mit\n# say")
    card.write_text(edited)
    (run.final / "LICENSE").write_text("MIT")
    inode = run.final.stat().st_ino
    show_final(run, plan)
    assert card.read_text() == edited
    assert run.final.stat().st_ino == inode  # not even touched
    commit(run, plan, "evaluate-2", metrics={"win_rate_vs_init": 0.99, "mean_tokens": 30.0})
    show_final(run, plan)
    assert "99.0%" in card.read_text()
    assert "license: mit" not in card.read_text()
    assert (run.final / "README.md.edited").read_text() == edited
    assert (run.final / "LICENSE").read_text() == "MIT"
    card.unlink()
    show_final(run, plan)
    assert "99.0%" in card.read_text()


def test_a_missing_link_is_made_again(tmp_path: Path) -> None:
    plan = plan_of()
    run = make_run(tmp_path / "mini", plan)
    (run.final / "config.json").unlink()
    show_final(run, plan)
    assert (run.final / "config.json").is_symlink()


def test_the_card_is_no_part_of_the_model(tmp_path: Path) -> None:
    """A recipe that starts from it is the same one whatever the card says; the weights do count."""
    plan = plan_of()
    run = make_run(tmp_path / "mini", plan)

    def key() -> str:
        recipe = Recipe.model_validate(mini(sft=None, model={"model_name_or_path": str(run.final)}))
        return compile_plan(recipe, DigestMemo(tmp_path / "memo")).stage("seed").key

    first = key()
    (run.final / "README.md").write_text("edited")
    (run.final / "recipe.yaml").unlink()
    assert key() == first
    (run.final / "model.safetensors").resolve().write_bytes(b"other")
    assert key() != first


# --- gc ---


def test_gc_frees_what_an_interruption_left(tmp_path: Path) -> None:
    plan = plan_of()
    run = make_run(tmp_path / "mini", plan)
    shutil.copytree(run.final, run.path / ".final.new", symlinks=True)
    (run.path / ".final.old").symlink_to("stages")
    (swept,) = gc.sweep([run], models=False)
    assert [item.path.name for item, _ in swept.items] == [".final.new", ".final.old"]
    assert not list(run.path.glob(".final*"))
    assert made_by(run, plan, "refine-2").has_all(plan.stage("refine-2").key)
    run.final.rename(run.path / ".final.old")
    (swept,) = gc.sweep([run], models=False)
    assert swept.items == []  # it becomes `final` again, with what was edited in it
    show_final(run, plan)
    assert (run.final / "README.md").is_file()


def test_gc_keeps_the_model_that_a_recipe_names_by_its_final_folder(tmp_path: Path) -> None:
    """The run itself has no use for it any more: its recipe changed, and its `final` shows the new model."""
    plan, changed = plan_of(), plan_of(judge={"type": "implicit_reward", "beta": 0.2})
    run = make_run(tmp_path / "runs" / "mini", plan)
    copy = shutil.copytree(run.final, run.path / "kept", symlinks=True)
    other = make_run(tmp_path / "runs" / "other", plan_of(name="other"))
    for stage in changed.stages:
        if not run.is_done(stage, changed):
            commit(run, changed, stage.id)
    finish(run, changed)
    shown = made_by(run, plan, "refine-2").path
    (found,) = gc.look([run], models=False)
    assert shown in {item.path for item, _ in found.items}
    settings = json.loads((other.path / "resolved.json").read_text())
    settings["model"]["model_name_or_path"] = str(copy)
    (other.path / "resolved.json").write_text(json.dumps(settings))
    (found,) = gc.look([run], models=False)
    assert {item.path: item.why for item in found.kept}[shown] == "the recipe of run other reads it"


def test_a_final_model_without_its_weights_is_made_again(tmp_path: Path) -> None:
    """A longer run freed the weights of what became the last policy again when its recipe was cut."""
    longer, plan = plan_of(), plan_of(data={"prompts_per_iteration": [32]})
    run = make_run(tmp_path / "mini", longer)
    gc.sweep([run], models=True)
    assert made_by(run, longer, "refine-1").manifest().pruned  # type: ignore[union-attr]
    left = {stage.id for stage in plan.stages if not run.is_done(stage, plan)}
    assert {"seed", "refine-1"} <= left
    run.write_recipe("text", plan.recipe, plan)
    assert left == {stage.id for stage in plan.stages} - run.done(run.planned())
