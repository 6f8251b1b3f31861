"""The reward model as a judge: its training, its rewards, and a run that labels with it."""

import json
import math
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from spa_recipes.algo.reward import READS_TURNS
from spa_recipes.data.chat import Renderer, load_tokenizer
from spa_recipes.data.rows import write_jsonl
from spa_recipes.errors import DataError, RecipeError, SpaError, StageError
from spa_recipes.generation.rewards import load_reward_model, sequence_rewards
from spa_recipes.recipe.schema import Lora, Model
from spa_recipes.sandbox.model import build_model
from spa_recipes.sandbox.rows import preference_rows
from spa_recipes.stages import reward
from spa_recipes.stages.common import preference_row, write_table
from spa_recipes.stages.generate import COMPLETIONS
from spa_recipes.training.reward import train_reward_model
from tests.kit.cli import run_spa
from tests.kit.recipes import mini, write_recipe
from tests.kit.stages import context_of
from tests.kit.training import (
    END,
    KilledError,
    make_env,
    make_model,
    make_pairs,
    preference,
    same_weights,
    train_rewards,
    weights,
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def trained(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model trained for some steps."""
    folder = tmp_path_factory.mktemp("trained")
    train_rewards(policy, make_pairs(24, reference=False), make_env(policy, folder))
    return folder / "out"


def sandbox_pairs(policy: Path, count: int) -> list[dict[str, Any]]:
    """Labelled pairs of the sandbox, tokenised as the stages do it."""
    renderer = Renderer(load_tokenizer(policy), max_prompt_length=48, max_length=128)
    return [
        preference_row(
            renderer,
            {"prompt": row["chosen"][:1], "chosen": row["chosen"][1:], "rejected": row["rejected"][1:]},
        )
        for row in preference_rows(count, seed=3)
    ]


def untrained(policy: Path, seed: int) -> Any:
    """The policy's body with the `score` that this seed draws."""
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)


def plain_reward(model: Any, ids: list[int]) -> float:
    """The score at the last token of a sequence, in float64 and without padding."""
    with torch.no_grad():
        hidden_TD = model.model(torch.tensor([ids])).last_hidden_state[0]
        return float(hidden_TD[-1] @ model.score.weight[0])


# --- training ---


@pytest.mark.parametrize("micro_batch", [8, 2])
def test_the_loss_is_bradley_terry_in_plain_floats(policy: Path, tmp_path: Path, micro_batch: int) -> None:
    rows = make_pairs(8, reference=False)
    env = make_env(policy, tmp_path)
    result = train_rewards(policy, rows, env, per_device_train_batch_size=micro_batch, logging_steps=1)
    model = untrained(policy, env.seed).double()
    losses = []
    for row in rows:
        chosen, rejected = (
            plain_reward(model, row["prompt_ids"] + row[side]) for side in ("chosen_ids", "rejected_ids")
        )
        losses.append(math.log1p(math.exp(rejected - chosen)))
    assert result.steps == 1
    assert result.history[0]["loss"] == pytest.approx(math.fsum(losses) / len(losses), rel=1e-5)


def test_a_step_is_that_of_trl(policy: Path, tmp_path: Path) -> None:
    """The same loss and the same new weights as TRL's own RewardTrainer."""
    rows = make_pairs(8, reference=False)
    env = make_env(policy, tmp_path)
    ours = train_rewards(policy, rows, env, logging_steps=1, lr_scheduler_type="constant", warmup_ratio=0.0)
    args = RewardConfig(
        output_dir=str(tmp_path / "theirs"), per_device_train_batch_size=8, learning_rate=1e-2, num_train_epochs=1,
        lr_scheduler_type="constant", logging_steps=1, seed=env.seed, use_cpu=True, bf16=False, report_to="none",
        save_strategy="no", disable_tqdm=True, gradient_checkpointing=False,
    )  # fmt: skip
    whole = [{side: row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")} for row in rows]
    model = untrained(policy, env.seed)
    trainer = RewardTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(whole),
        processing_class=env.tokenizer,
        data_collator=DataCollatorForPreference(pad_token_id=0),
    )
    trainer.train()
    assert ours.history[0]["loss"] == pytest.approx(trainer.state.log_history[0]["loss"], rel=1e-5)
    assert ours.history[0]["rewards/margins"] == pytest.approx(trainer.state.log_history[0]["margin"], abs=1e-5)
    for name, value in weights(env.output_dir).items():
        # The first step of Adam is about the learning rate wherever there is a gradient, however small.
        assert (value - model.state_dict()[name]).abs().max() < 1e-3


def test_it_learns_the_labels_of_the_sandbox(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    build_model(policy)
    rows = sandbox_pairs(policy, 300)
    result = train_rewards(
        policy, rows, make_env(policy, tmp_path), learning_rate=2e-3, num_train_epochs=3, global_batch_size=20,
        per_device_train_batch_size=20, logging_steps=15,
    )  # fmt: skip
    assert result.history[0]["loss"] > 0.6
    assert result.history[-1]["loss"] < 0.5
    assert result.metrics["rewards/accuracies"] > 0.7
    model = load_reward_model(Model(model_name_or_path=str(tmp_path / "out")))
    sequences = [row["prompt_ids"] + row[side] for row in rows for side in ("chosen_ids", "rejected_ids")]
    rewards = sequence_rewards(model, sequences, tokens_per_batch=4096)
    right = [chosen > rejected for chosen, rejected in zip(rewards[::2], rewards[1::2], strict=True)]
    assert sum(right) / len(right) > 0.7


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_training_is_the_same_bit_by_bit(policy: Path, tmp_path: Path, lora: bool) -> None:
    fields: dict[str, Any] = {"lora": Lora(lora_r=4, lora_alpha=8, lora_dropout=0.2)} if lora else {}
    settings: dict[str, Any] = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "save_steps": 2}
    rows = make_pairs(20, reference=False)

    def die(done: int, total: int, logs: dict[str, Any]) -> None:
        if done == 5:
            raise KilledError

    straight = train_rewards(policy, rows, make_env(policy, tmp_path / "straight", **fields), **settings)
    with pytest.raises(KilledError):
        train_rewards(policy, rows, make_env(policy, tmp_path / "resumed", die, **fields), **settings)
    resumed = train_rewards(policy, rows, make_env(policy, tmp_path / "resumed", **fields), **settings)
    assert (straight.metrics.pop("resumed_from_step"), resumed.metrics.pop("resumed_from_step")) == (0, 4)
    assert straight == resumed
    first, second = tmp_path / "straight" / "out", tmp_path / "resumed" / "out"
    assert same_weights(first, second)
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_lora_trains_adapters_and_score_and_is_merged(policy: Path, tmp_path: Path) -> None:
    env = make_env(policy, tmp_path, lora=Lora(lora_r=4, lora_alpha=8))
    result = train_rewards(policy, make_pairs(24, reference=False), env, num_train_epochs=8)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    before, after = untrained(policy, env.seed).state_dict(), weights(env.output_dir)
    assert before.keys() == after.keys()
    assert not torch.equal(before["score.weight"], after["score.weight"])
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])


TWO = """
import os, sys, pathlib
rank, policy, folder, port = sys.argv[1:]
os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
from tests.kit.training import train_rewards
from tests.kit.training import make_env, make_pairs
env = make_env(pathlib.Path(policy), pathlib.Path(folder))
train_rewards(pathlib.Path(policy), make_pairs(21, reference=False), env, per_device_train_batch_size=2)
"""


@pytest.mark.slow
def test_two_processes_train_the_same_model(policy: Path, tmp_path: Path) -> None:
    one = train_rewards(policy, make_pairs(21, reference=False), make_env(policy, tmp_path / "one"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(rank), str(policy), str(tmp_path / "two"), port],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for worker in workers:
            _, stderr = worker.communicate(timeout=500)
            assert worker.returncode == 0, stderr
    finally:
        for worker in workers:
            worker.kill()
    assert same_weights(tmp_path / "one" / "out", tmp_path / "two" / "out", tolerance=1e-4)
    log = [json.loads(line) for line in (tmp_path / "two" / "out" / "training_log.jsonl").read_text().splitlines()]
    for ours, theirs in zip(one.history, log, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["rewards/accuracies"] == theirs["rewards/accuracies"]


def test_the_saved_model_is_deterministic_and_says_what_it_is(policy: Path, trained: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)  # the caller's random state has no say
    train_rewards(policy, make_pairs(24, reference=False), make_env(policy, tmp_path))
    assert same_weights(tmp_path / "out", trained)
    config = json.loads((trained / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert (len(config["id2label"]), config["pad_token_id"], config[READS_TURNS]) == (1, 0, True)
    assert {"model.safetensors", "tokenizer.json", "training_log.jsonl"} <= {path.name for path in trained.iterdir()}


def test_padding_is_never_what_ends_a_response(policy: Path, tmp_path: Path) -> None:
    """A tokenizer whose pad token is its end of turn: rewards are still read at the end of the turn."""
    env = make_env(policy, tmp_path)
    env.tokenizer.pad_token = env.tokenizer.eos_token
    rows = [
        {**row, "chosen_ids": [*row["chosen_ids"], END], "rejected_ids": [*row["rejected_ids"], END]}
        for row in make_pairs(8, reference=False)
    ]
    result = train_rewards(policy, rows, env, logging_steps=1)
    before = untrained(policy, env.seed).double()
    rewards = [
        plain_reward(before, row["prompt_ids"] + row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")
    ]
    margins = [chosen - rejected for chosen, rejected in zip(rewards[::2], rewards[1::2], strict=True)]
    assert result.history[0]["rewards/margins"] == pytest.approx(sum(margins) / 8, rel=1e-4)
    saved = AutoTokenizer.from_pretrained(env.output_dir)
    assert saved.pad_token_id == json.loads((env.output_dir / "config.json").read_text())["pad_token_id"] != END


def test_what_cannot_be_trained_is_refused(policy: Path, tmp_path: Path) -> None:
    rows = make_pairs(8, reference=False)
    with pytest.raises(RecipeError, match="4 bits"):
        train_rewards(policy, rows, make_env(policy, tmp_path, lora=Lora(load_in_4bit=True)))
    with pytest.raises(DataError, match="no model can be loaded"):
        train_rewards(tmp_path / "none", rows, make_env(policy, tmp_path))
    with pytest.raises(DataError, match="lack chosen_ids"):
        train_rewards(policy, [{"prompt_ids": [1], "rejected_ids": [1]}], make_env(policy, tmp_path))
    with pytest.raises(DataError, match="no special token to pad with"):
        train_reward_model(policy, rows, preference(), make_env(policy, tmp_path), end_ids=list(range(5)))


def test_a_training_stops_at_nan(policy: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(policy, broken)
    _spoil(broken, "model.norm.weight")
    with pytest.raises(StageError, match="step 1 is not finite"):
        train_rewards(broken, make_pairs(8, reference=False), make_env(broken, tmp_path))


def _spoil(folder: Path, name: str) -> None:
    from safetensors.torch import save_file

    state = weights(folder)
    state[name] = torch.full_like(state[name], math.nan)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


# --- rewards ---


def test_rewards_do_not_depend_on_the_batch(trained: Path) -> None:
    model = load_reward_model(Model(model_name_or_path=str(trained)))
    draw = random.Random(5)
    sequences = [[draw.randrange(5, 400) for _ in range(draw.randint(3, 40))] for _ in range(60)]
    together = sequence_rewards(model, sequences, tokens_per_batch=100_000)
    assert together == pytest.approx(sequence_rewards(model, sequences, tokens_per_batch=1), abs=1e-5)
    assert together == pytest.approx(sequence_rewards(model, sequences[::-1], tokens_per_batch=300)[::-1], abs=1e-5)
    double = AutoModelForSequenceClassification.from_pretrained(trained).double()
    assert together == pytest.approx([plain_reward(double, sequence) for sequence in sequences], abs=1e-5)


def test_a_model_without_pad_token_is_read_at_the_last_token(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    model = load_reward_model(Model(model_name_or_path=str(tmp_path / "model")))
    sequences = [[7, 8, 0], [7, 1], [9, 9, 9, 9, 2]]  # the smallest ids are taken as last tokens
    double = AutoModelForSequenceClassification.from_pretrained(trained).double()
    expected = [plain_reward(double, sequence) for sequence in sequences]
    assert sequence_rewards(model, sequences, tokens_per_batch=1000) == pytest.approx(expected, abs=1e-5)
    assert model.config.pad_token_id is None


def test_half_precision_does_not_tie_rewards(trained: Path) -> None:
    model = load_reward_model(Model(model_name_or_path=str(trained), dtype="bfloat16"))
    rewards = sequence_rewards(model, [[7, 8, token] for token in range(5, 400)], tokens_per_batch=4096)
    assert len(set(rewards)) == 395


PROMPTS = [{"prompt_id": f"p{i}", "prompt": row["chosen"][:1]} for i, row in enumerate(preference_rows(6, seed=1))]
REPLIES = [[row[side][1]["content"] for side in ("chosen", "rejected")] for row in preference_rows(6, seed=1)]


def answered(folder: Path, policy: Path) -> dict[str, Path]:
    """Prompts and completions as the stages before leave them."""
    renderer = Renderer(load_tokenizer(policy), max_prompt_length=48, max_length=128)
    rows = [
        {
            "item": i,
            "prompt_id": f"p{i}",
            "sample": k,
            "prompt_ids": renderer.prompt_ids(PROMPTS[i]["prompt"]),
            "response_ids": renderer.response_ids(PROMPTS[i]["prompt"], text),
            "text": text,
            "logps": None,
            "finish_reason": "stop",
        }
        for i, texts in enumerate(REPLIES)
        for k, text in enumerate(texts)
    ]
    write_jsonl(folder / "prompts.jsonl", PROMPTS)
    write_table(folder / "completions.parquet", pa.Table.from_pylist(rows, schema=COMPLETIONS))
    return {"prompts": folder / "prompts.jsonl", "completions": folder / "completions.parquet"}


def score(folder: Path, model: Path, inputs: dict[str, Path]) -> list[dict[str, Any]]:
    """Run the stage; `inputs` without prompts is a model of the same run."""
    section = {"dtype": "float32", "max_length": 128, "max_prompt_length": 48}
    context = context_of(folder, "reward", settings={"model": section}, inputs={"model": model, **inputs})
    result = reward.run(context)
    rows: list[dict[str, Any]] = pq.read_table(context.draft / "rewards.parquet").to_pylist()
    assert result.rows == len(rows)
    return rows


def test_a_model_from_another_run_reads_what_it_was_trained_on(policy: Path, trained: Path, tmp_path: Path) -> None:
    """Token ids and texts give the same rewards, also where the chat template writes something after a turn."""
    model = tmp_path / "model"
    shutil.copytree(trained, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = tokenizer.chat_template.replace("<end>", "<end><unk>")
    tokenizer.save_pretrained(model)
    inputs = answered(tmp_path, model)
    ours = score(tmp_path / "ours", model, {"completions": inputs["completions"]})
    theirs = score(tmp_path / "theirs", model, inputs)
    assert ours == theirs
    assert [(row["item"], row["sample"]) for row in ours] == [(i, k) for i in range(6) for k in range(2)]
    section = Model(model_name_or_path=str(model), max_length=128, max_prompt_length=48)
    completions = pq.read_table(inputs["completions"]).to_pylist()
    ids, cut = reward.render(section, PROMPTS, completions)
    assert ids == [row["prompt_ids"] + row["response_ids"] for row in completions]
    assert cut == 0


def test_a_foreign_model_reads_the_whole_conversation(policy: Path, trained: Path, tmp_path: Path) -> None:
    """Without our mark in its configuration the chat template writes everything, its tail included."""
    model = _foreign(trained, tmp_path / "model")
    inputs = answered(tmp_path, policy)
    completions = pq.read_table(inputs["completions"]).to_pylist()
    ids, cut = reward.render(Model(model_name_or_path=str(model)), PROMPTS, completions)
    tokenizer = AutoTokenizer.from_pretrained(model)
    row = completions[3]
    text = f"<user>{PROMPTS[1]['prompt'][0]['content']}<end><unk><assistant>{row['text']}<end><unk>"
    assert ids[3] == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert cut == 0
    short, cut = reward.render(
        Model(model_name_or_path=str(model), max_length=5, max_prompt_length=2), PROMPTS, completions
    )
    assert short == [sequence[-5:] for sequence in ids]
    assert cut == len(ids)
    double = AutoModelForSequenceClassification.from_pretrained(model).double()
    assert score(tmp_path / "stage", model, inputs)[3]["reward"] == pytest.approx(
        plain_reward(double, ids[3]), abs=1e-5
    )


def _foreign(trained: Path, folder: Path) -> Path:
    """A reward model that is not marked as ours, with a chat template that writes something after a turn."""
    shutil.copytree(trained, folder)
    config = json.loads((folder / "config.json").read_text())
    del config[READS_TURNS]
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("<end>", "<end><unk>")
    tokenizer.save_pretrained(folder)
    return folder


def test_what_is_no_reward_model_is_refused(policy: Path, trained: Path, tmp_path: Path) -> None:
    inputs = answered(tmp_path, policy)
    error = refused(tmp_path / "a", policy, inputs)
    assert "one output (num_labels 1), not 2" in str(error)
    assert str(policy) in str(error)

    headless = tmp_path / "headless"
    shutil.copytree(policy, headless)
    shutil.copy(trained / "config.json", headless)
    assert "score.weight are missing" in str(refused(tmp_path / "b", headless, inputs))

    missing = tmp_path / "missing" / "model"
    assert str(missing) in str(refused(tmp_path / "c", missing, inputs))

    silent = _foreign(trained, tmp_path / "silent")
    tokenizer = AutoTokenizer.from_pretrained(silent)
    tokenizer.chat_template = None
    (silent / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(silent)
    error = refused(tmp_path / "d", silent, inputs)
    assert "no chat template" in str(error)
    assert "judge.model_name_or_path" in error.fix

    picky = _foreign(trained, tmp_path / "picky")
    tokenizer = AutoTokenizer.from_pretrained(picky)
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    tokenizer.save_pretrained(picky)
    assert "never" in str(refused(tmp_path / "e", picky, inputs))


def refused(folder: Path, model: Path, inputs: dict[str, Path]) -> SpaError:
    with pytest.raises(DataError) as caught:
        score(folder, model, inputs)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_reward_that_is_nan_names_the_prompt(policy: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "model")
    _spoil(tmp_path / "model", "score.weight")
    inputs = answered(tmp_path, policy)
    with pytest.raises(StageError, match="prompt p0: the reward of answer 0 is nan"):
        score(tmp_path / "stage", tmp_path / "model", inputs)


# --- a run ---


RUN = {"data": {"prompts_per_iteration": [32], "heldout": 0}, "evaluation": {"enabled": False, "reward": "none"}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run was judged by a reward model of its own."""
    folder = tmp_path_factory.mktemp("home")
    write_recipe(folder / "own.yaml", mini(**RUN, name="own", judge={"type": "reward_model"}))
    done = run_spa(folder, "run", "own.yaml")
    assert done.returncode == 0, done.stderr + done.stdout
    return folder


def stage(home: Path, run: str, name: str) -> Path:
    (found,) = (home / "runs" / run / "stages").glob(f"[0-9][0-9]-{name}-????????")
    return found


def metrics(home: Path, run: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((stage(home, run, name) / "manifest.json").read_text())["metrics"]
    return found


def test_a_run_is_judged_by_the_reward_model_it_trains(home: Path) -> None:
    assert metrics(home, "own", "reward-model")["train_loss"] > 0
    assert 0 <= metrics(home, "own", "judge-1")["accuracy_vs_gold"] <= 1
    rewards = {
        (row["item"], row["sample"]): row["reward"]
        for row in pq.read_table(stage(home, "own", "reward-1") / "output" / "rewards.parquet").to_pylist()
    }
    lines = (stage(home, "own", "judge-1") / "output" / "judgments.jsonl").read_text().splitlines()
    assert lines
    for judgment in map(json.loads, lines):
        chosen, rejected = (rewards[judgment["item"], judgment[which]] for which in ("chosen", "rejected"))
        assert chosen >= rejected
        assert judgment["p_chosen"] == pytest.approx(1 / (1 + math.exp(rejected - chosen)), abs=1e-9)


def test_a_run_is_judged_by_a_reward_model_from_a_folder(home: Path) -> None:
    """The same model, copied: nothing is trained, and answers get the same rewards from their texts."""
    shutil.copytree(stage(home, "own", "reward-model") / "output" / "model", home / "copied")
    judge = {"type": "reward_model", "model_name_or_path": "copied"}
    write_recipe(home / "given.yaml", mini(**RUN, name="given", judge=judge))
    done = run_spa(home, "run", "given.yaml")
    assert done.returncode == 0, done.stderr + done.stdout
    assert not list((home / "runs" / "given" / "stages").glob("*reward-model*"))
    assert 0 <= metrics(home, "given", "judge-1")["accuracy_vs_gold"] <= 1
    own, given = (
        pq.read_table(stage(home, run, "reward-1") / "output" / "rewards.parquet").to_pylist()
        for run in ("own", "given")
    )
    answers = pq.read_table(stage(home, "own", "generate-1") / "output" / "completions.parquet").to_pylist()
    # A text tells neither where an answer was cut off nor which special tokens stood in it.
    plain = [k for k, answer in enumerate(answers) if answer["response_ids"][-1] == min(answer["response_ids"]) == END]
    assert len(plain) > 10
    assert [own[k]["reward"] for k in plain] == pytest.approx([given[k]["reward"] for k in plain], abs=1e-5)


def test_a_language_model_as_the_judge_is_one_line(home: Path) -> None:
    policy = stage(home, "own", "sft") / "output" / "model"
    judge = {"type": "reward_model", "model_name_or_path": str(policy)}
    write_recipe(home / "wrong.yaml", mini(**RUN, name="wrong", judge=judge))
    done = run_spa(home, "run", "wrong.yaml")
    assert done.returncode == 3
    assert "one output (num_labels 1), not 2" in done.stderr
    assert "Traceback" not in done.stderr
