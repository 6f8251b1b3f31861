"""Settings that contradict each other: the line, the key, the fact and the remedy of every rule, and all at once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from spa_recipes.errors import RecipeError
from spa_recipes.judge_job import JudgeRequest, judge_job
from spa_recipes.recipe.jobs import BenchmarkJob, JudgeJob, SampleJob
from spa_recipes.recipe.load import InvalidRecipeError, load_recipe
from spa_recipes.recipe.rules import Conflict, Rules, conflicts_in, conflicts_of
from spa_recipes.recipe.schema import Document, Recipe, Section
from spa_recipes.recipe.shape import child, shape_of, types_of
from spa_recipes.recipe.sweep import Sweep
from spa_recipes.recipe.text import Keys, parse, split_keys
from tests.kit.member_conflicts import OF_MEMBERS
from tests.kit.recipe_texts import BASE
from tests.kit.recipes import mini

ENDPOINT = "endpoint: {base_url: https://h/v1, model: m}"
NO_LABELS = "  seed_labels: 0\n"

# Text that follows BASE, so that it begins in line 6, and the one line that it gets.
CASES = {
    # within a section
    "refine: {per_device_train_batch_size: 5}":
        "6: refine.per_device_train_batch_size: global_batch_size (32) must be a multiple of "
        "per_device_train_batch_size (5)",
    "sft:\n  data: {type: sandbox}\n  global_batch_size: 6\n  per_device_train_batch_size: 4":
        "8: sft.global_batch_size: global_batch_size (6) must be a multiple of per_device_train_batch_size (4)",
    "judge:\n  type: reward_model\n  training:\n    per_device_train_batch_size: 5":
        "9: judge.training.per_device_train_batch_size: global_batch_size (32) must be a multiple of "
        "per_device_train_batch_size (5)",
    "compute:\n  executor:\n    type: slurm\n    nodes: 1\n    gpus_per_node: 1\n    sbatch: {time: 5}":
        "11: compute.executor.sbatch: time is set by compute.executor itself; set it there",
    "noise:\n  threshold:\n    window: 8": "8: noise.threshold.window: min_pairs (32) must not exceed window (8)",
    "noise:\n  threshold:\n    type: percentile\n    window: 8\n    min_pairs: 9":
        "10: noise.threshold.min_pairs: min_pairs (9) must not exceed window (8)",
    "refine:\n  seed_replay: 0.5\n  loss: distill":
        "8: refine.loss: distill learns the judge's margins, and replayed seed pairs have none; remove seed_replay, or "
        "choose another loss",
    "noise: {enabled: false}\nrefine:\n  seed_replay: 0.5\n  loss: sppo":
        "9: refine.loss: sppo learns how often each sampled response wins, and replayed seed pairs are not sampled; "
        "remove seed_replay, or choose another loss",
    "  added:\n    - {source: l.jsonl, after: 1}\nnoise: {enabled: false}\nrefine: {loss: sppo}":
        "7: data.added.0: refine.loss reads answers that were sampled, and those of added labels were not; remove it, "
        "or refine.loss",
    "refine: {loss: sppo}":
        "6: refine.loss: sppo has no pairs whose labels could be doubted; set noise.enabled to false, or choose "
        "another loss",
    "refine:\n  token_credit: {type: tgdpo}":
        "7: refine.token_credit: rewards of single tokens are small differences, of which rounding leaves nothing in "
        "half precision; set model.dtype to float32 (without model.lora.load_in_4bit), or remove it",
    "refine:\n  reference_mix: 0.5":
        "7: refine.reference_mix: a mixed reference has log-probs of answers, but no logits for the de-coupled "
        "detection (lambda > 0); set noise.lambdas to 0 for every iteration, or noise.detector to judge",
    "noise: {detector: judge}\nrefine:\n  seed_replay: 0.5\n  reference_mix: 0.5":
        "9: refine.reference_mix: replayed seed pairs have no log-probs under pi_init; remove it, or remove "
        "refine.seed_replay",
    "noise: {lambdas: [0, 0]}\njudge: {type: random}\nrefine: {reference_mix: 0.5}":
        "8: refine.reference_mix: needs log-probs of the answers under pi_init, which no judge computes but "
        "implicit_reward with reference init and policy previous; choose that judge, or remove it",
    "noise:\n  detector: judge\n  lambdas: [0, 0]":
        "8: noise.lambdas: has no effect with detector judge, which reads no logits; remove it",
    "judge:\n  type: reward_model\n  model_name_or_path: r\n  training: {}":
        "9: judge.training: is for a reward model that the run trains; remove it, or remove model_name_or_path",
    "judge:\n  type: reward_model\n  revision: v1":
        "8: judge.revision: needs model_name_or_path; add it, or remove revision",
    f"judge:\n  type: llm\n  model_name_or_path: l\n  {ENDPOINT}":
        "9: judge.endpoint: endpoint and model_name_or_path name two judges; remove one of them",
    "judge:\n  type: llm\n  samples: 3": (
        "8: judge.samples: has no effect with mode pairs; set mode to single, or remove it"
    ),
    "judge:\n  type: llm\n  revision: v1": "8: judge.revision: needs model_name_or_path; add it, or remove revision",
    "judge:\n  type: llm\n  chat_template: t.jinja":
        "8: judge.chat_template: needs model_name_or_path; add it, or remove chat_template",
    f"judge:\n  type: llm\n  {ENDPOINT}\n  max_length: 9":
        "9: judge.max_length: has no effect on an endpoint, whose server has its own limit; remove it",
    "judge:\n  type: llm\n  endpoint:\n    model: m\n    base_url: https://h/v1/chat/completions":
        "10: judge.endpoint.base_url: must end before /chat/completions; e.g. https://api.openai.com/v1",
    "judge:\n  type: llm\n  endpoint:\n    model: m\n    base_url: http://h/v1":
        "10: judge.endpoint.base_url: would get the key in OPENAI_API_KEY over plain http, where others can read it; "
        "use https, or set api_key_env: null",
    "judge:\n  type: llm\n  endpoint:\n    model: m\n    base_url: https://h/v1\n    api_key_env: HF_TOKEN":
        "11: judge.endpoint.api_key_env: HF_TOKEN is never sent to an endpoint; name the variable of the endpoint's "
        "own key, or set null",
    "evaluation:\n  reward: implicit_reward":
        "7: evaluation.reward: implicit_reward needs reward_policy and reward_reference; add reward_policy and "
        "reward_reference",
    "evaluation:\n  reward_policy: p\n  reward: implicit_reward":
        "8: evaluation.reward: implicit_reward needs reward_policy and reward_reference; add reward_reference",
    "evaluation:\n  reward_reference: r":
        "7: evaluation.reward_reference: needs reward implicit_reward; set it, or remove reward_reference",
    # between sections
    "  prompts:\n    type: sandbox\n    rows: 13057":
        "8: data.prompts.rows: 13057 must not exceed the 13056 prompts of the sandbox world",
    "  added:\n    - {source: l.jsonl, after: 2}":
        "7: data.added.0.after: no iteration comes after iteration 2; add one to data.prompts_per_iteration, or give "
        "the file to another recipe as data.pairs.source",
    "noise:\n  lambdas: [1]":
        "7: noise.lambdas: has 1 entry for 2 iterations (data.prompts_per_iteration); give one per iteration",
    "  prompts_per_iteration: [1]\nnoise: {lambdas: [1, 2]}":
        "7: noise.lambdas: has 2 entries for 1 iteration (data.prompts_per_iteration); give one per iteration",
    "sampling:\n  max_tokens: 1500":
        "7: sampling.max_tokens: model.max_prompt_length (1024) + sampling.max_tokens (1500) must not exceed "
        "model.max_length (2048); set sampling.max_tokens to 1024, or model.max_length to 2524",
    "refine:\n  per_device_train_batch_size: 8\ncompute: {executor: {type: accelerate, num_processes: 8}}":
        "7: refine.per_device_train_batch_size: refine.global_batch_size (32) does not split into 8 processes "
        "(compute.executor.num_processes) x 8 rows; make it a multiple of 64",
    "sampling:\n  backend:\n    type: vllm\n    max_model_len: 1323":
        "9: sampling.backend.max_model_len: sampling.backend.max_model_len (1323) must not be less than "
        "model.max_prompt_length + sampling.max_tokens (1324)",
    "sampling:\n  backend:\n    type: vllm\n    lora: adapter":
        "9: sampling.backend.lora: adapter needs model.lora, without which no stage trains an adapter; add it",
    "sampling:\n  temperature: 0":
        "7: sampling.temperature: 0 gives n equal responses and no pair to judge; set it above 0",
    "judge:\n  type: gold": "7: judge.type: gold needs data.pairs.type sandbox; set it, or choose another judge",
    "evaluation:\n  reward: gold":
        "7: evaluation.reward: gold needs data.pairs.type sandbox; set it, or choose another judge",
    "judge:\n  type: implicit_reward\n  reference: base":
        "8: judge.reference: base needs an sft section, without which the model is pi_init itself; add one, or choose "
        "another reference",
    "judge:\n  recompute_policy_logps: true":
        "7: judge.recompute_policy_logps: true has no effect with model.dtype auto, where log-probs that sampling kept "
        "are never used; remove it",
    "judge:\n  type: llm\n  max_tokens: 2048":
        "8: judge.max_tokens: judge.max_tokens (2048) must be smaller than model.max_length (2048)",
    "judge:\n  type: llm\n  max_length: 512":
        "8: judge.max_length: judge.max_tokens (512) must be smaller than judge.max_length (512)",
    "evaluation:\n  max_judge_decay: 0.1":
        "7: evaluation.max_judge_decay: needs an evaluation on held-out labels; set data.heldout above 0 and "
        "evaluation.enabled true",
    # without seed labels
    f"{NO_LABELS}judge:\n  reference: init":
        "8: judge.reference: with data.seed_labels 0, pi_0 is pi_init, and judge.reference init would compare it with "
        "itself; set judge.reference to base, a folder or a Hub id",
    NO_LABELS:
        "6: data.seed_labels: with data.seed_labels 0, pi_0 is pi_init, and judge.reference init would compare it "
        "with itself; set judge.reference to base, a folder or a Hub id",
    f"{NO_LABELS}judge:\n  type: reward_model":
        "8: judge.type: with data.seed_labels 0, there is nothing to train a reward model on; give one by "
        "judge.model_name_or_path",
    f"{NO_LABELS}judge: {{type: random}}\nrefine:\n  seed_replay: 0.5":
        "9: refine.seed_replay: with data.seed_labels 0, there are no pairs to replay; remove it, or add labels",
    f"{NO_LABELS}  heldout: 5\njudge: {{type: random}}":
        "6: data.seed_labels: with data.seed_labels 0, evaluation.reward seed has no pi_0 to judge by; set "
        "evaluation.reward to none or implicit_reward",
    f"{NO_LABELS}  heldout: 5\njudge: {{type: random}}\nevaluation:\n  reward: seed":
        "10: evaluation.reward: with data.seed_labels 0, evaluation.reward seed has no pi_0 to judge by; set "
        "evaluation.reward to none or implicit_reward",
    "  prompts_per_iteration: []\nrefine:\n  sft_weight: 0.5":
        "8: refine.sft_weight: has no effect without iterations (data.prompts_per_iteration is []); remove it, or add "
        "some",
    "  prompts_per_iteration: []\njudge:\n  policy: seed":
        "8: judge.policy: has no effect without iterations (data.prompts_per_iteration is []); remove it, or add some",
    "  prompts_per_iteration: []\njudge: {keep: 0.5}":
        "7: judge.keep: has no effect without iterations (data.prompts_per_iteration is []); remove it, or add some",
    "  prompts_per_iteration: [9]\njudge:\n  policy: mean":
        "8: judge.policy: mean differs from previous from iteration 2 on only; remove it",
    "  prompts_per_iteration: [9]\njudge:\n  reference: previous":
        "8: judge.reference: previous differs from init from iteration 2 on only; set it to init",
    "judge:\n  policy: seed\n  reference: previous":
        "8: judge.reference: previous is pi_0 in iteration 2, and judge.policy seed would compare pi_0 with itself; "
        "set one of them to its default",
    "judge: {reference: some/model, policy: some/model}":
        "6: judge.policy: is the judge's reference, too: all rewards would be 0; name another model",
    "control: true":
        "6: control: nothing compares the control with SPA: that takes answers to held-out prompts and a judge of "
        "them; set data.heldout and evaluation.reward, or leave control out",
    "  heldout: 5\n  prompts_per_iteration: []\ncontrol: true":
        "8: control: the control is SPA's seed labels without its iterations, and one of the two is not there; give "
        "data.prompts_per_iteration, or leave control out",
    "  heldout: 5\njudge: {policy: seed}\nevaluation:\n  max_judge_decay: 0.1":
        "9: evaluation.max_judge_decay: measures pi_{i-1}, and judge.policy seed judges in its place; remove it, or "
        "set judge.policy to previous",
    "judge: {policy: seed}\nnoise: {detector: judge}\nrefine: {reference_mix: 1.0}":
        "8: refine.reference_mix: needs log-probs of the answers under pi_init, which no judge computes but "
        "implicit_reward with reference init and policy previous; choose that judge, or remove it",
    f"{NO_LABELS}judge:\n  reference: previous":
        "8: judge.reference: with data.seed_labels 0, pi_0 is pi_init, and judge.reference previous would compare it "
        "with itself; set judge.reference to base, a folder or a Hub id",
    f"{NO_LABELS}  prompts_per_iteration: []\nsft: {{data: {{type: sandbox}}}}\nfinal:\n  extrapolate: 1.0":
        "10: final.extrapolate: has no effect: without seed labels and iterations the last policy is pi_init; remove "
        "it",
    f"{NO_LABELS}  prompts_per_iteration: []":
        "6: data.seed_labels: there is nothing to do: no sft section, data.seed_labels is 0 and "
        "data.prompts_per_iteration is []; set one of them",
}  # fmt: skip

# A benchmark that stands in line 9 and the following ones, and the one line that it gets.
BENCHMARKS = {
    "- type: alpaca_eval\n  max_tokens: 2048":
        "10: evaluation.benchmarks.0.max_tokens: max_tokens (2048) must be smaller than model.max_length (2048); "
        "lower it, or raise model.max_length",
    "- type: alpaca_eval\n  max_length: 1024":
        "10: evaluation.benchmarks.0.max_length: max_tokens (1024) must be smaller than max_length (1024)",
    f"- type: mt_bench\n  questions: q\n  {ENDPOINT}":
        "11: evaluation.benchmarks.0.endpoint: endpoint needs judge_prompts; add it: the judge_prompts.jsonl that "
        "FastChat publishes",
    "- type: mt_bench\n  questions: q\n  reference_answers: r":
        "11: evaluation.benchmarks.0.reference_answers: judge_prompts and reference_answers need an endpoint to grade "
        "with; add endpoint, or remove reference_answers",
    "- type: mt_bench\n  questions: q\n- type: mt_bench\n  questions: q\n  judge_prompts: p":
        "13: evaluation.benchmarks.1.judge_prompts: judge_prompts and reference_answers need an endpoint to grade "
        "with; add endpoint, or remove judge_prompts",
    "- type: pairwise":
        "9: evaluation.benchmarks.0.prompts: there are no prompts to answer; set it, or data.heldout above 0",
    "- type: pairwise\n  prompts: {source: p}\n  judge: {type: gold}":
        "11: evaluation.benchmarks.0.judge.type: gold needs the prompts of the sandbox; set data.pairs.type sandbox, "
        "and leave out prompts",
    "- type: pairwise\n  prompts: {source: p}\n  judge:\n    type: llm":
        "12: evaluation.benchmarks.0.judge.type: llm must be another model; give it model_name_or_path or endpoint",
    "- type: pairwise\n  prompts: {source: p}\n  judge:\n    reference: r":
        "12: evaluation.benchmarks.0.judge.reference: policy and reference belong together; give both, or neither",
    "- type: lm_eval\n  tasks: [ifeval, gsm8k, ifeval]":
        "10: evaluation.benchmarks.0.tasks: ifeval is there twice; name each task once",
}  # fmt: skip

# Whole recipes, and the one line that each gets.
WHOLE = {
    "name: x\nmodel:\n  model_name_or_path: m\n  max_length: 100\ndata: {pairs: {type: sandbox}}":
        "r.yaml:4: model.max_length: max_prompt_length (1024) must be smaller than max_length (100); "
        "set max_prompt_length to 50, or raise max_length",
    "name: x\nmodel:\n  model_name_or_path: m\n  max_length: 1\ndata: {pairs: {type: sandbox}}":
        "r.yaml:4: model.max_length: max_prompt_length (1024) must be smaller than max_length (1); "
        "raise max_length to 2 at least",
    "name: x\nmodel:\n  max_prompt_length: 200\n  max_length: 100\n  model_name_or_path: m\n"
    "data: {pairs: {type: sandbox}}":
        "r.yaml:3: model.max_prompt_length: max_prompt_length (200) must be smaller than max_length (100); "
        "set max_prompt_length to 50, or raise max_length",
    "name: x\nmodel:\n  model_name_or_path: m\n  chat_template_kwargs: {tokenize: true}\n"
    "data: {pairs: {type: sandbox}}":
        "r.yaml:4: model.chat_template_kwargs: must not name tokenize; remove it: rendering sets it itself",
    "name: x\nmodel:\n  model_name_or_path: m\n  lora:\n    lora_target_modules: [lm_head]\n"
    "data: {pairs: {type: sandbox}}":
        "r.yaml:5: model.lora.lora_target_modules: must not name lm_head; remove it: log-probs are read from its "
        "weight directly",
    "name: x\nmodel: {model_name_or_path: m, lora: {load_in_4bit: true}}\ndata: {pairs: {type: sandbox}}\n"
    "judge:\n  reference: other":
        "r.yaml:5: judge.reference: the policies are adapters on pi_init in 4 bits, and judge.reference other is "
        "another model; set judge.reference to init, or model.lora.load_in_4bit to false",
    "name: x\nmodel: {model_name_or_path: m, lora: {load_in_4bit: true}}\ndata: {pairs: {type: sandbox}}\n"
    "judge:\n  type: reward_model":
        "r.yaml:5: judge.type: a reward model is not trained in 4 bits; give a finished one by "
        "judge.model_name_or_path, or set model.lora.load_in_4bit to false",
    "name: x\nmodel: {model_name_or_path: m, lora: {load_in_4bit: true}}\ndata: {pairs: {type: sandbox}}\n"
    "compute: {executor: {type: slurm, nodes: 2, gpus_per_node: 8, sharding: zero3}}":
        "r.yaml:2: model.lora.load_in_4bit: zero3 cannot share out weights in 4 bits; set sharding to none: weights in "
        "4 bits are small",
    "name: x\nmodel: {model_name_or_path: m}\ndata: {pairs: {type: sandbox}}\n"
    "compute: {executor: {type: accelerate, num_processes: 1, sharding: fsdp2}}":
        "r.yaml:4: compute.executor.sharding: fsdp2 shares a training out over processes, and there is one; remove "
        "sharding, or set num_processes to the number of GPUs",
    "name: x\nmodel:\n  dtype: float32\n  save_rounding: nearest\n  model_name_or_path: m\n"
    "data: {pairs: {type: sandbox}}":
        "r.yaml:4: model.save_rounding: nearest has no effect with dtype float32, in which trained weights are saved "
        "as they are; remove it, or set dtype to bfloat16 or float16",
    "name: x\nmodel: {model_name_or_path: m, dtype: bfloat16, lora: {}}\ndata: {pairs: {type: sandbox}}\nsampling:\n"
    "  backend: {type: vllm, lora: adapter}":
        "r.yaml:5: sampling.backend.lora: adapter would not sample from the policy, which is the merged model as it is "
        "saved in model.dtype bfloat16; set it to merged, or model.dtype to float32",
    "name: x\nmodel:\n  model_name_or_path: sandbox\ndata: {pairs: {type: sandbox}}":
        "r.yaml:3: model.model_name_or_path: sandbox is a freshly initialised model; add an sft section that trains it",
    "name: x\nmodel: {model_name_or_path: m}\ndata:\n  pairs:\n    type: sandbox\n    rows: 13057":
        "r.yaml:6: data.pairs.rows: 13057 must not exceed the 13056 prompts of the sandbox world",
    f"{BASE}{NO_LABELS}judge: {{type: random}}\nevaluation:\n  benchmarks:\n  - type: pairwise\n"
    "    prompts: {source: p}\n":
        "r.yaml:10: evaluation.benchmarks.0.judge.policy: with data.seed_labels 0, the judge has no pi_0 to judge by; "
        "give it policy and reference",
}  # fmt: skip


def with_benchmarks(text: str) -> str:
    indented = "".join(f"    {line}\n" for line in text.splitlines())
    return f"{BASE}evaluation:\n  enabled: true\n  benchmarks:\n{indented}"


IN_FLOAT32 = BASE.replace("  model_name_or_path: m\n", "  model_name_or_path: m\n  dtype: float32\n")
LINES = {
    **{BASE + text: f"r.yaml:{line}" for text, line in {**CASES, **OF_MEMBERS}.items()},
    **{with_benchmarks(text): f"r.yaml:{line}" for text, line in BENCHMARKS.items()},
    **WHOLE,
    IN_FLOAT32 + "refine:\n  divergence: chi_squared\n  token_credit: {type: tgdpo}\n": (
        "r.yaml:9: refine.token_credit: divergence chi_squared is of whole responses, whose tokens cannot be weighed; "
        "remove one of them"
    ),
}

SWEEP: dict[str, Any] = {
    "name": "s",
    "seeds": [1, 1],
    "variants": [{"name": "a"}, {"name": "a"}],
    "control": "z",
    "halving": [{"seeds": 9, "keep": 9}],
}
"""It breaks every rule of sweeps; their lines are in test_recipe_sweep.py."""


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def problems(text: str, *overrides: str) -> list[str]:
    Path("r.yaml").write_text(text)
    with pytest.raises(InvalidRecipeError) as caught:
        load_recipe(Path("r.yaml"), overrides)
    return [str(error) for error in (caught.value, *caught.value.others)]


@pytest.mark.parametrize(("text", "line"), [*LINES.items()])
def test_a_conflict_has_one_line(text: str, line: str) -> None:
    assert problems(text) == [line]


def test_all_conflicts_are_told_at_once_in_the_order_of_the_file() -> None:
    text = """\
name: x
model:
  model_name_or_path: m
  lora:
    lora_target_modules: [q_proj, lm_head]
data:
  pairs: {type: dataset, source: a.jsonl}
sampling:
  temperature: 0
judge:
  type: gold
refine:
  global_batch_size: 6
  per_device_train_batch_size: 4
noise:
  lambdas: [1]
"""
    assert [line.partition(": ")[0] + ": " + line.split(": ")[1] for line in problems(text)] == [
        "r.yaml:5: model.lora.lora_target_modules",
        "r.yaml:9: sampling.temperature",
        "r.yaml:11: judge.type",
        "r.yaml:13: refine.global_batch_size",
        "r.yaml:16: noise.lambdas",
    ]


def test_an_override_has_its_place() -> None:
    assert problems(BASE, "sampling.temperature=0", "judge={type: gold}") == [
        "--set sampling.temperature: 0 gives n equal responses and no pair to judge; set it above 0",
        "--set judge: judge.type: gold needs data.pairs.type sandbox; set it, or choose another judge",
    ]


def test_a_wrong_shape_is_told_without_conflicts() -> None:
    """Rules read values of the right kind only."""
    lines = problems(f"{BASE}sampling: {{temperature: 0}}\nnoise: {{alpha: 7}}\nseeed: 1\n")
    assert [line.split(": ")[1] for line in lines] == ["noise.alpha", "seeed"]


def test_a_recipe_from_code_is_refused_too() -> None:
    values = mini(sampling={"temperature": 0.0}, noise={"lambdas": [1.0]}, model={"lora": {"lora_target_modules": []}})
    values["model"]["lora"]["lora_target_modules"] = ["lm_head"]
    with pytest.raises(ValidationError, match=r"sampling\.temperature: 0 gives") as caught:
        Recipe.model_validate(values)
    keys = [conflict.keys[0] for conflict in conflicts_in(caught.value)]
    assert sorted(keys) == ["model.lora.lora_target_modules", "noise.lambdas", "sampling.temperature"]
    with pytest.raises(ValidationError, match="freshly initialised"):
        Recipe(**{**Recipe.model_validate(mini()).__dict__, "sft": None})


def test_a_job_of_the_command_line_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").touch()
    request = JudgeRequest(
        "p", "r", str(tmp_path / "pairs.jsonl"), Path("out.jsonl"), max_length=10, max_prompt_length=20
    )
    with pytest.raises(RecipeError) as caught:
        judge_job(request)
    assert str(caught.value) == (
        "--max-prompt-length: model.max_prompt_length: max_prompt_length (20) must be smaller than max_length (10); "
        "set max_prompt_length to 5, or raise max_length"
    )


# --- jobs

JOB: dict[str, Any] = {"name": "j", "model": {"model_name_or_path": "m"}}
PAIR: dict[str, Any] = {
    "type": "pairwise",
    "against": "b",
    "prompts": {"source": "p"},
    "judge": {"policy": "p", "reference": "r"},
}
JOBS: dict[str, dict[str, Any]] = {
    "benchmark.max_tokens": {"type": "alpaca_eval", "max_tokens": 4096},
    "benchmark.against": {**PAIR, "against": "init"},
    "benchmark.prompts": {**PAIR, "prompts": None},
    "benchmark.judge.policy": {**PAIR, "judge": {}},
    "benchmark.judge.type": {**PAIR, "judge": {"type": "llm"}},
}
HARNESS: dict[str, Any] = {**JOB, "benchmark": {"type": "lm_eval", "tasks": ["gsm8k"]}, "backend": {"type": "vllm"}}
WITH_PYTHON: dict[str, Any] = {**JOB, "benchmark": PAIR, "compute": {"vllm_python": "python"}}


@pytest.mark.parametrize(("key", "benchmark"), [*JOBS.items()])
def test_a_benchmark_without_a_run_names_everything_itself(key: str, benchmark: dict[str, Any]) -> None:
    assert BenchmarkJob.model_validate({**JOB, "benchmark": PAIR})
    with pytest.raises(ValidationError) as caught:
        BenchmarkJob.model_validate({**JOB, "benchmark": benchmark})
    assert [conflict.keys[0] for conflict in conflicts_in(caught.value)] == [key]


def test_a_job_that_samples_with_transformers_names_no_python_of_vllm() -> None:
    assert BenchmarkJob.model_validate(WITH_PYTHON | {"backend": {"type": "vllm"}})
    with pytest.raises(ValidationError) as caught:
        BenchmarkJob.model_validate(WITH_PYTHON)
    assert [conflict.keys for conflict in conflicts_in(caught.value)] == [("compute.vllm_python",)]


def test_lm_eval_does_not_sample_with_vllm() -> None:
    assert BenchmarkJob.model_validate({**HARNESS, "backend": {"type": "transformers"}})
    with pytest.raises(ValidationError) as caught:
        BenchmarkJob.model_validate(HARNESS)
    assert [conflict.keys for conflict in conflicts_in(caught.value)] == [("backend.type",)]


ANSWERS: dict[str, Any] = {**JOB, "pairs": {"source": "p"}}
JUDGING: dict[str, dict[str, Any]] = {
    "reference": {"judge": {}},
    "judge.model_name_or_path": {"judge": {"type": "llm"}},
    "judge.max_tokens": {"judge": {"type": "llm", "model_name_or_path": "j", "max_tokens": 2048}},
    "judge.policy": {"reference": "r", "judge": {"policy": "seed"}},
    "judge.peers": {"reference": "r", "judge": {"peers": {}}},
}
TOO_LONG: dict[str, Any] = {**JOB, "prompts": {"source": "p"}, "sampling": {"max_tokens": 4096}}


@pytest.mark.parametrize(("key", "judge"), [*JUDGING.items()])
def test_a_judge_without_a_run_is_named_and_has_room(key: str, judge: dict[str, Any]) -> None:
    assert JudgeJob.model_validate({**ANSWERS, "judge": {"type": "reward_model", "model_name_or_path": "r"}})
    with pytest.raises(ValidationError) as caught:
        JudgeJob.model_validate({**ANSWERS, **judge})
    assert [conflict.keys[0] for conflict in conflicts_in(caught.value)] == [key]


def test_samples_leave_room_for_their_prompt() -> None:
    assert SampleJob.model_validate({**TOO_LONG, "sampling": {"max_tokens": 4095, "n": 1}})
    with pytest.raises(ValidationError, match=r"sampling.max_tokens: sampling.max_tokens \(4096\) must be smaller"):
        SampleJob.model_validate(TOO_LONG)


def test_a_run_samples_pairs() -> None:
    with pytest.raises(ValidationError, match=r"sampling.n: one response makes no pair; set it to 2 or more"):
        Recipe.model_validate(mini(sampling={"n": 1}))


# --- the rules as a whole


@pytest.fixture
def documents(monkeypatch: pytest.MonkeyPatch) -> list[Document]:
    """The recipes and jobs above, which nothing has checked."""
    monkeypatch.setattr(Document, "model_post_init", lambda self, context: None)
    recipes = [Recipe.model_validate(parse(text, lambda _: None).root) for text in LINES]  # type: ignore[arg-type,return-value]
    jobs = [*({**JOB, "benchmark": benchmark} for benchmark in JOBS.values()), WITH_PYTHON, HARNESS]
    judging = [JudgeJob.model_validate({**ANSWERS, **judge}) for judge in JUDGING.values()]
    others = [SampleJob.model_validate(TOO_LONG), Sweep.model_validate(SWEEP)]
    return [*recipes, *map(BenchmarkJob.model_validate, jobs), *judging, *others]


def kinds_of_section(kind: type[Section] = Section) -> Iterator[type[Section]]:
    yield kind
    for below in kind.__subclasses__():
        yield from kinds_of_section(below)


def has_key(document: type[Document], keys: Keys) -> bool:
    """Whether these keys lead to a value of the document, in any type of the sections on the way."""
    nodes = [shape_of(document)]
    for key in keys:
        nodes = [child(member, key) for node in nodes for member in (*types_of(node).values(), node)]
    return any(nodes)


def test_no_key_of_a_conflict_is_missing_from_the_schema(documents: list[Document]) -> None:
    for document in documents:
        found = [*conflicts_of(document)]
        assert found
        for key in (key for conflict in found for key in conflict.keys):
            assert has_key(type(document), split_keys(key)), key
    assert not has_key(Recipe, split_keys("judge.reward_policy"))
    assert not has_key(Recipe, split_keys("evaluation.benchmarks.0.judge.endpoint.url"))


def test_every_rule_has_a_case(documents: list[Document], monkeypatch: pytest.MonkeyPatch) -> None:
    broken: set[str] = set()
    every: set[str] = set()
    for kind in kinds_of_section():
        every |= {rule.__name__ for rule in kind.RULES}
        monkeypatch.setattr(kind, "RULES", _watched(kind.RULES, broken))
    for document in documents:
        list(conflicts_of(document))
    assert broken == every
    assert len(every) > 20


def _watched(rules: Rules, broken: set[str]) -> Rules:
    """The same rules; those that yield something are noted."""

    def watched(rule: Any) -> Any:
        def run(section: Any) -> Iterator[Conflict]:
            for conflict in rule(section):
                broken.add(rule.__name__)
                yield conflict

        run.__name__ = rule.__name__
        return run

    return tuple(watched(rule) for rule in rules)
