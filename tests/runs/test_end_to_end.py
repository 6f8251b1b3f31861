"""The main job through the command line, on a miniature sandbox: every stage kind, reuse, changes, labelling."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from spa_recipes.recipe.load import load_recipe
from spa_recipes.run.final import model_shown
from spa_recipes.state.stagedir import StageDir
from tests.kit.cli import run_spa
from tests.kit.recipes import mini, write_recipe
from tests.kit.runs import attempts, output, stage_dir

STAGES = 16


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_summary_says_what_where_and_next(home: Path) -> None:
    text = (home / "first.out").read_text()
    for expected in (
        "win rate against pi_init",
        "judge accuracy",
        "pi_init (reward",
        "pi_2 (reward",
        "model:",
        "pairs:",
        "next:",
    ):
        assert expected in text
    final = home / "runs" / "mini" / "final"
    assert str(final.relative_to(home)) in text
    assert model_shown(final) == output(home, "refine-2", "model").resolve()
    assert sum(attempts(home).values()) == STAGES


def test_the_final_model_has_a_card_and_its_example_runs(
    finished: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    final = home / "runs" / "mini" / "final"
    card = (final / "README.md").read_text()
    evaluation = StageDir(stage_dir(home, "evaluate-2")).manifest()
    assert evaluation is not None
    for figure in ("win_rate_vs_init", "heldout_accuracy"):
        assert f"{evaluation.metrics[figure]:.1%}" in card
    for library, version in evaluation.versions.items():
        assert f"| {library} | {version} |" in card
    assert str(finished) not in card
    (example,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(final)
    exec(example, {})
    assert capsys.readouterr().out.strip()
    assert load_recipe(final / "recipe.yaml", []).recipe.name == "mini"
    before = {path.name: path.lstat().st_mtime_ns for path in (final, *final.iterdir())}
    assert run_spa(home, "resume", "mini").returncode == 0
    assert {path.name: path.lstat().st_mtime_ns for path in (final, *final.iterdir())} == before


def test_the_folder_is_as_documented(home: Path) -> None:
    run = home / "runs" / "mini"
    for name in ("recipe.yaml", "resolved.json", "plan.json", "events.jsonl"):
        assert (run / name).is_file()
    assert (run / "recipe.yaml").read_text() == (home / "mini.yaml").read_text()
    for stage in (run / "stages").iterdir():
        assert {"attempts", "manifest.json", "output"} <= {path.name for path in stage.iterdir()}
        assert not (stage / "output.draft-1").exists()


def test_parts_are_disjoint(home: Path) -> None:
    names = ["seed.jsonl", "prompts-1.jsonl", "prompts-2.jsonl", "heldout.jsonl"]
    parts = [{row["prompt_id"] for row in rows(output(home, "data", name))} for name in names]
    assert [len(part) for part in parts] == [60, 32, 48, 24]
    assert len(set.union(*parts)) == sum(map(len, parts))


@pytest.mark.parametrize("i", [1, 2])
def test_judgments_follow_the_equation(home: Path, i: int) -> None:
    """p(y_w > y_l) from the two tables of log-probs, in plain floats."""
    completions = pq.read_table(output(home, f"generate-{i}", "completions.parquet")).to_pylist()
    reference = pq.read_table(output(home, f"score-{i}-reference", "logps.parquet")).to_pylist()
    reward: dict[tuple[int, int], float] = {}
    for row, scored in zip(completions, reference, strict=True):
        assert (row["item"], row["sample"]) == (scored["item"], scored["sample"])
        reward[row["item"], row["sample"]] = 0.1 * (math.fsum(row["logps"]) - scored["logp"])
    judgments = rows(output(home, f"judge-{i}", "judgments.jsonl"))
    assert judgments
    for judgment in judgments:
        chosen, rejected = (reward[judgment["item"], judgment[which]] for which in ("chosen", "rejected"))
        assert chosen >= rejected
        assert judgment["margin"] == pytest.approx(chosen - rejected, abs=1e-9)
        assert judgment["p_chosen"] == pytest.approx(1 / (1 + math.exp(rejected - chosen)), abs=1e-9)


def test_tokens_are_the_same_when_generated_rendered_and_trained_on(home: Path) -> None:
    from spa_recipes.data.chat import Renderer, load_tokenizer
    from spa_recipes.data.rows import Message

    tokenizer = load_tokenizer(output(home, "sft", "model"))
    renderer = Renderer(tokenizer, max_prompt_length=48, max_length=128)
    prompts = rows(output(home, "data", "prompts-1.jsonl"))
    completions = pq.read_table(output(home, "generate-1", "completions.parquet")).to_pylist()
    special = set(tokenizer.all_special_ids)
    # An untrained model also samples special tokens, which no text can show; the stages keep the ids as they are.
    finished = [
        row for row in completions if row["finish_reason"] == "stop" and not special & set(row["response_ids"][:-1])
    ]
    assert len(finished) > 10
    for row in finished:
        messages = prompts[row["item"]]["prompt"]
        assert row["prompt_ids"] == renderer.prompt_ids(messages)
        assert row["response_ids"][-1] == renderer.end_of_turn_id
        answer: Message = {"role": "assistant", "content": row["text"]}
        ids, mask = renderer.conversation([*messages, answer])
        if row["text"]:
            assert row["response_ids"] == renderer.response_ids(messages, row["text"])
            assert row["prompt_ids"] + row["response_ids"] == ids
            assert sum(mask) == len(row["response_ids"])


def test_pairs_load_with_datasets_in_trls_form(home: Path) -> None:
    import datasets

    pairs = datasets.load_dataset(
        "json", data_files=str(output(home, "judge-2", "pairs.jsonl")), split="train", cache_dir=str(home / "cache")
    )
    expected = {"prompt", "chosen", "rejected", "chosen_score", "rejected_score", "margin", "p_chosen", "prompt_id"}
    assert expected | {"iteration", "source"} == set(pairs.column_names)
    assert pairs[0]["chosen"][0]["role"] == "assistant"
    assert set(pairs["iteration"]) == {2}


def test_pairs_train_with_trl_as_they_are(home: Path, tmp_path: Path) -> None:
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    model = output(home, "sft", "model")
    data = datasets.load_dataset(
        "json", data_files=str(output(home, "judge-1", "pairs.jsonl")), split="train", cache_dir=str(tmp_path)
    )
    arguments = DPOConfig(
        output_dir=str(tmp_path / "out"), max_steps=1, use_cpu=True, bf16=False, report_to=[], save_strategy="no"
    )
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=arguments,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    assert trainer.train().training_loss == pytest.approx(math.log(2), abs=1e-3)  # policy = reference


def test_running_again_does_nothing(home: Path) -> None:
    before = attempts(home)
    for command in (["run", "mini.yaml"], ["resume", "mini"]):
        done = run_spa(home, *command)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("done before") == STAGES + 1  # the heading says it too
    assert attempts(home) == before
    done = run_spa(home, "resume")
    assert done.returncode == 2
    assert "finished" in done.stderr


def test_another_run_takes_over_what_is_the_same(home: Path) -> None:
    write_recipe(home / "alpha0.yaml", mini(name="alpha0", noise={"alpha": 0.0}))
    done = run_spa(home, "run", "alpha0.yaml", "--until", "judge-1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("from run mini") == 7  # judge-1 and what it needs, and no evaluation
    assert "9 stages: evaluate-init, evaluate-0, refine-1, evaluate-1, generate-2" in done.stdout
    assert attempts(home, "alpha0") == {}
    plan = run_spa(home, "plan", "alpha0.yaml", "--json")
    states = {stage["id"]: stage["state"] for stage in json.loads(plan.stdout)}
    assert states["judge-1"] == "done"
    assert states["refine-1"] == "to do"


def test_a_changed_recipe_is_refused_and_accepted(home: Path) -> None:
    write_recipe(home / "changing.yaml", mini(name="changing"))
    assert run_spa(home, "run", "changing.yaml", "--until", "judge-1").returncode == 0
    write_recipe(home / "changing.yaml", mini(name="changing", judge={"type": "implicit_reward", "beta": 0.2}))
    refused = run_spa(home, "run", "changing.yaml", "--until", "judge-1")
    assert refused.returncode == 5
    assert "judge-1: settings.judge.beta: 0.1 -> 0.2" in refused.stderr
    assert "--accept" in refused.stderr
    diff = run_spa(home, "plan", "changing.yaml", "--diff")
    assert "settings.judge.beta: 0.1 -> 0.2" in diff.stdout
    accepted = run_spa(home, "run", "changing.yaml", "--until", "judge-1", "--accept")
    assert accepted.returncode == 0, accepted.stderr
    assert sum(attempts(home, "changing").values()) == 1
    logging = mini(name="changing", judge={"type": "implicit_reward", "beta": 0.2}, refine={"logging_steps": 3})
    write_recipe(home / "changing.yaml", logging)
    assert run_spa(home, "run", "changing.yaml", "--until", "judge-1").returncode == 0


def test_an_altered_stage_is_found_set_aside_and_done_again(home: Path) -> None:
    write_recipe(home / "altered.yaml", mini(name="altered", judge={"type": "implicit_reward", "beta": 0.3}))
    assert run_spa(home, "run", "altered.yaml", "--until", "judge-1").returncode == 0
    pairs = output(home, "judge-1", "pairs.jsonl", "altered")
    good = pairs.read_bytes()
    pairs.write_bytes(good.replace(b"the", b"THE", 1))
    again = run_spa(home, "run", "altered.yaml", "--until", "judge-1")
    assert again.returncode == 0, again.stderr
    assert "was altered" in again.stdout
    assert pairs.read_bytes() == good
    assert list((home / "runs" / "altered" / "stages").glob("*.damaged-1"))


def test_status_lists_runs_and_stages(home: Path) -> None:
    listing = run_spa(home, "status")
    assert listing.returncode == 0
    assert "mini" in listing.stdout
    assert f"{STAGES}/{STAGES}" in listing.stdout
    stages = run_spa(home, "status", "mini")
    assert stages.stdout.count(" done ") == STAGES
    assert "judge accuracy" in stages.stdout
    assert run_spa(home, "status", "nothing").returncode == 2


def test_a_run_that_is_held_is_refused_at_once(home: Path) -> None:
    from spa_recipes.run.rundir import RunDir

    with RunDir(home / "runs" / "mini").locked():
        done = run_spa(home, "resume", "mini")
    assert done.returncode == 4
    assert "pid" in done.stderr


def test_spa_judge_labels_pairs_and_reports_agreement(home: Path) -> None:
    policy, reference = home / "runs" / "mini" / "final", output(home, "sft", "model")
    given = rows(output(home, "data", "heldout.jsonl"))
    with (home / "mine.jsonl").open("w") as handle:
        for row in given:
            text = {name: row[name][0]["content"] for name in ("chosen", "rejected")}
            handle.write(json.dumps({"prompt": row["prompt"][0]["content"], **text}) + "\n")
    arguments = [
        "judge",
        "--policy",
        str(policy),
        "--reference",
        str(reference),
        "--pairs",
        "mine.jsonl",
        "--out",
        "out.jsonl",
    ]
    limits = ["--max-length", "128", "--max-prompt-length", "48"]
    done = run_spa(home, *arguments, *limits)
    assert done.returncode == 0, done.stderr
    assert "24 labels that were there" in done.stdout
    labelled = rows(home / "out.jsonl")
    assert len(labelled) == 24
    agreement = sum(
        row["chosen"][0]["content"] == original["chosen"][0]["content"]
        for row, original in zip(labelled, given, strict=True)
    )
    assert f"{agreement / 24:.1%}" in done.stdout
    # The audit of the last model says the same of the same pairs.
    manifest = json.loads((stage_dir(home, "evaluate-2") / "manifest.json").read_text())
    assert manifest["metrics"]["heldout_accuracy"] == pytest.approx(agreement / 24)
    assert not (home / "out.jsonl.spa").exists()
    assert run_spa(home, *arguments, *limits).returncode == 2
    assert "--overwrite" in run_spa(home, *arguments, *limits).stderr


def test_two_models_can_judge_the_win_rate(home: Path) -> None:
    policy, reference = output(home, "seed", "model"), output(home, "sft", "model")
    evaluation = {"reward": "implicit_reward", "reward_policy": str(policy), "reward_reference": str(reference)}
    write_recipe(home / "judged.yaml", mini(name="judged", evaluation=evaluation))
    done = run_spa(home, "run", "judged.yaml", "--until", "evaluate-0")
    assert done.returncode == 0, done.stderr
    ours = rows(output(home, "evaluate-0", "samples.jsonl", "judged"))
    theirs = rows(output(home, "evaluate-init", "samples.jsonl", "judged"))
    wins = [0.5 if a["reward"] == b["reward"] else a["reward"] > b["reward"] for a, b in zip(ours, theirs, strict=True)]
    manifest = json.loads((stage_dir(home, "evaluate-0", "judged") / "manifest.json").read_text())
    assert manifest["metrics"]["win_rate_vs_init"] == pytest.approx(sum(wins) / len(wins))


@pytest.mark.long  # test_half_precision_run.py has the precision, and the tests of trainings have adapters
def test_lora_and_bfloat16(home: Path) -> None:
    """Adapters are merged: what a stage leaves is a whole model in the precision of the recipe."""
    from safetensors import safe_open

    changes = {"model": {"dtype": "bfloat16", "lora": {"lora_r": 4}}, "evaluation": {"enabled": False}}
    write_recipe(home / "lora.yaml", mini(name="lora", **changes))
    done = run_spa(home, "run", "lora.yaml", "--until", "refine-1")
    assert done.returncode == 0, done.stderr + done.stdout
    models = [output(home, stage, "model/model.safetensors", "lora") for stage in ("seed", "refine-1")]
    before, after = (safe_open(path, "pt") for path in models)
    names = set(before.keys())
    assert names == set(after.keys())
    assert not any("lora" in name for name in names)
    assert {str(after.get_tensor(name).dtype) for name in names} == {"torch.bfloat16"}
    assert any(not before.get_tensor(name).equal(after.get_tensor(name)) for name in names)


def test_spa_judge_takes_several_responses(home: Path) -> None:
    """K answers a prompt: the best and the worst by the implicit reward make the pair; no labels, no agreement."""
    given = rows(output(home, "data", "heldout.jsonl"))[:6]
    with (home / "several.jsonl").open("w") as handle:
        for row in given:
            texts = [row["chosen"][0]["content"], row["rejected"][0]["content"], "no ."]
            handle.write(json.dumps({"prompt": row["prompt"], "responses": texts}) + "\n")
    done = run_spa(
        home, "judge", "--policy", "runs/mini/final", "--reference", str(output(home, "sft", "model")),
        "--pairs", "several.jsonl", "--out", "best.jsonl", "--max-length", "128", "--max-prompt-length", "48",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "agreement" not in done.stdout
    labelled = rows(home / "best.jsonl")
    assert [row["prompt"] for row in labelled] == [row["prompt"] for row in given]
    assert all(row["chosen_score"] >= row["rejected_score"] for row in labelled)


def test_spa_judge_with_a_length_penalty(home: Path) -> None:
    """A penalty beyond every reward leaves nothing but the length."""
    given = rows(output(home, "data", "heldout.jsonl"))
    with (home / "long.jsonl").open("w") as handle:
        for row in given:
            texts = {name: row[name][0]["content"] for name in ("chosen", "rejected")}
            handle.write(json.dumps({"prompt": row["prompt"][0]["content"], **texts}) + "\n")
    arguments = [
        "judge", "--policy", "runs/mini/final", "--reference", str(output(home, "sft", "model")),
        "--pairs", "long.jsonl", "--max-length", "128", "--max-prompt-length", "48",
    ]  # fmt: skip
    done = run_spa(home, *arguments, "--out", "short.jsonl", "--length-penalty", "1000")
    assert done.returncode == 0, done.stderr
    for row in rows(home / "short.jsonl"):
        chosen, rejected = (len(row[name][0]["content"].split()) for name in ("chosen", "rejected"))
        assert chosen <= rejected
    refused = run_spa(home, *arguments, "--out", "none.jsonl", "--length-penalty", "-1")
    assert refused.returncode == 2
    assert "--length-penalty: must be a number of at least 0" in refused.stderr


def test_spa_judge_refuses_models_with_different_tokenizers(home: Path) -> None:
    from transformers import AutoTokenizer

    other = home / "other"
    shutil.copytree(output(home, "sft", "model"), other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(other)
    (home / "one.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    done = run_spa(
        home, "judge", "--policy", home / "runs" / "mini" / "final", "--reference", other, "--pairs", "one.jsonl",
        "--out", "none.jsonl", "--max-length", "128", "--max-prompt-length", "48",
    )  # fmt: skip
    assert done.returncode == 3
    assert "tokenizers" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (home / "none.jsonl").exists()
