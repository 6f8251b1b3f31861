"""Every recipe in `recipes/` loads, and says what it claims to say."""

from pathlib import Path

import pytest

from spa_recipes.estimates import needs, processes_of, stated_hardware
from spa_recipes.plan import compile_plan
from spa_recipes.recipe.load import load_recipe, resolved
from spa_recipes.recipe.schema import Recipe, RefineTraining, SeedTraining
from spa_recipes.run.fit import is_tight, misfit
from spa_recipes.state.digests import DigestMemo

RECIPES = Path(__file__).parents[2] / "recipes"
SHIPPED = sorted(RECIPES.glob("*.yaml"))


def shipped(name: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml").recipe


def test_there_are_recipes() -> None:
    assert {path.stem for path in SHIPPED} >= {"quickstart", "ultrafeedback_3p3", "smollm2_local"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_loads_and_is_named_after_its_file(path: Path) -> None:
    loaded = load_recipe(path)
    assert loaded.recipe.name == path.stem
    assert loaded.recipe.description
    assert Recipe.model_validate(resolved(loaded.recipe)) == loaded.recipe


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_begins_with_a_comment_that_shows_the_command(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    assert f"spa run {path.stem}" in text
    assert max(len(line) for line in text.splitlines()) <= 120


def test_ultrafeedback_has_the_settings_of_the_paper() -> None:
    recipe = shipped("ultrafeedback_3p3")
    assert recipe.model.model_name_or_path == "alignment-handbook/zephyr-7b-sft-full"
    assert recipe.sft is None
    assert (recipe.model.max_length, recipe.model.max_prompt_length) == (2048, 1024)
    assert recipe.data.pairs.type == "dataset"
    assert recipe.data.pairs.source == "argilla/ultrafeedback-binarized-preferences-cleaned"
    assert recipe.data.shuffle_seed == 42
    assert recipe.data.seed_labels == 2000
    assert recipe.data.prompts_per_iteration == [8000, 20000]
    for training in (recipe.seed_training, recipe.refine):
        kind = RefineTraining if training is recipe.refine else SeedTraining
        assert training == kind(
            beta=0.1,
            learning_rate=5e-7,
            lr_scheduler_type="cosine",
            warmup_ratio=0.1,
            num_train_epochs=1,
            global_batch_size=32,
            per_device_train_batch_size=1,
            gradient_checkpointing=True,
        )
    sampling = recipe.sampling
    assert (sampling.n, sampling.temperature, sampling.top_p, sampling.max_tokens) == (2, 0.7, 1.0, 300)
    assert sampling.backend.type == "vllm"
    assert recipe.judge.type == "implicit_reward"
    assert (recipe.judge.reference, recipe.judge.beta) == ("init", 0.1)
    assert (recipe.noise.alpha, recipe.noise.warmup_ratio) == (0.1, 0.2)
    assert [recipe.lambda_of(1), recipe.lambda_of(2)] == [0.5, 0.25]
    assert recipe.noise.threshold.type == "percentile"
    assert recipe.noise.threshold.k == 10
    assert recipe.compute.executor.type == "accelerate"
    assert recipe.compute.executor.num_processes == 4


def test_defaults_are_those_of_the_paper() -> None:
    """A short recipe with the paper's model and data means the same as the long one."""
    paper = shipped("ultrafeedback_3p3")
    short = Recipe.model_validate(
        {"name": "short", "model": {"model_name_or_path": "m"}, "data": {"pairs": {"type": "dataset", "source": "d"}}}
    )
    assert short.judge == paper.judge
    assert short.noise == paper.noise.model_copy(update={"lambdas": None})
    assert [short.lambda_of(i) for i in (1, 2)] == [paper.lambda_of(i) for i in (1, 2)]
    assert short.refine == paper.refine.model_copy(update={"gradient_checkpointing": False})
    assert short.seed_training == paper.seed_training.model_copy(update={"gradient_checkpointing": False})
    assert short.sampling == paper.sampling.model_copy(update={"backend": short.sampling.backend})


PAPER = {"0p8": (500, 3), "1p7": (1000, 3), "3p3": (2000, 1), "10": (6000, 1)}
"""Seed labels and epochs of the seed stage by share of the labels."""


@pytest.mark.parametrize("share", PAPER)
def test_shares_differ_in_labels_and_epochs_only(share: str) -> None:
    labels, epochs = PAPER[share]
    whole, spa, dpo = shipped("ultrafeedback_3p3"), shipped(f"ultrafeedback_{share}"), shipped(f"dpo_{share}")
    data = whole.data.model_copy(update={"seed_labels": labels})
    seed = whole.seed_training.model_copy(update={"num_train_epochs": epochs})
    same = {"data": data, "seed_training": seed}
    assert spa == whole.model_copy(update={**same, "name": spa.name, "description": spa.description})
    assert (dpo.iterations, dpo.data.seed_labels, dpo.seed_training) == (0, labels, seed)


@pytest.mark.parametrize("share", PAPER)
def test_spa_after_dpo_redoes_nothing(share: str, tmp_path: Path) -> None:
    memo = DigestMemo(tmp_path / "memo.json")
    spa, dpo = (compile_plan(shipped(f"{method}_{share}"), memo) for method in ("ultrafeedback", "dpo"))
    keys = {stage.id: stage.key for stage in spa.stages}
    assert [stage.id for stage in dpo.stages if keys[stage.id] != stage.key] == ["data"]  # which reads no model


def test_baselines_and_variants() -> None:
    zephyr, sft, zero = (shipped(name) for name in ("zephyr_7b_beta", "sft_ultrachat", "zero_label"))
    assert (zephyr.data.seed_labels, zephyr.iterations) == (1.0, 0)
    assert sft.sft is not None
    assert sft.model.model_name_or_path == "mistralai/Mistral-7B-v0.1"
    assert sft.data.seed_labels == 0
    assert zero.judge.type == "implicit_reward"
    assert (zero.data.seed_labels, zero.judge.reference) == (0, "mistralai/Mistral-7B-v0.1")
    small = shipped("ultrafeedback_3p3_24gb")
    assert small.model.lora is not None
    assert small.model.lora.load_in_4bit
    assert small.compute.executor.type == "local"
    assert shipped("reward_model_3p3").judge.type == "reward_model"
    words = shipped("llm_as_judge_3p3").judge
    assert words.type == "llm"
    assert (words.model_name_or_path, words.endpoint) == (None, None)  # the policy itself


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_recipe_says_its_hardware_and_command(path: Path) -> None:
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"spa run {path.stem}" in header
    assert "GPU" in header or "CPU" in header or "card" in header


@pytest.mark.parametrize("label", ["(!)", "9.03 /  7.68", "15.39 / 21.13", "leaves beta out", "never turns it on"])
def test_ultrafeedback_tells_numbers_and_choices(label: str) -> None:
    assert label in (RECIPES / "ultrafeedback_3p3.yaml").read_text()


def test_commands_in_comments_work() -> None:
    """The changes that comments propose are accepted."""
    load_recipe(RECIPES / "ultrafeedback_3p3.yaml", ["model.lora={}"])
    load_recipe(RECIPES / "ultrafeedback_3p3.yaml", ["noise.lambdas=[0, 0]"])
    third = ["data.prompts_per_iteration=[8000, 20000, 30000]", "noise.lambdas=[0.5, 0.25, 0.125]"]
    assert load_recipe(RECIPES / "ultrafeedback_3p3.yaml", third).recipe.iterations == 3
    for judge in ("gold", "random"):
        load_recipe(RECIPES / "quickstart.yaml", [f"judge={{type: {judge}}}"])


def test_quickstart_is_the_sandbox_and_its_texts_fit() -> None:
    from spa_recipes.sandbox.rows import preference_rows
    from spa_recipes.sandbox.world import all_prompts

    recipe = shipped("quickstart")
    pairs = recipe.data.pairs
    assert recipe.model.model_name_or_path == "sandbox"
    assert pairs.type == "sandbox"
    assert recipe.data.seed_labels == pytest.approx(0.033 * pairs.rows, rel=0.02)
    assert isinstance(recipe.data.seed_labels, int)
    assert pairs.rows <= len(all_prompts())
    assert recipe.data.seed_labels + sum(recipe.data.prompts_per_iteration) + recipe.data.heldout <= pairs.rows
    marks = 4  # <user>, <end>, <assistant>, <end>
    longest_prompt = max(len(prompt.split()) for prompt in all_prompts())
    replies = [row[side][-1]["content"] for row in preference_rows(3000, 0) for side in ("chosen", "rejected")]
    assert longest_prompt + marks <= recipe.model.max_prompt_length
    assert max(len(reply.split()) for reply in replies) < recipe.sampling.max_tokens


def test_local_recipe_needs_a_few_dozen_rows_only() -> None:
    recipe = shipped("smollm2_local")
    assert recipe.data.seed_labels + sum(recipe.data.prompts_per_iteration) + recipe.data.heldout == 36
    overrides = ["model.model_name_or_path=/m", "data.pairs.source=/d.jsonl"]
    moved = load_recipe(RECIPES / "smollm2_local.yaml", overrides).recipe
    assert moved.model.model_name_or_path == "/m"
    assert moved.data.pairs.type == "dataset"
    assert moved.data.pairs.source == "/d.jsonl"


SHARES = ("0p8", "1p7", "3p3", "10")
ITERATION = ["generate-{i}", "score-{i}-reference", "judge-{i}", "refine-{i}", "evaluate-{i}"]
SEED = ["evaluate-init", "seed", "evaluate-0"]
SEED_JUDGES = ["seed", "evaluate-init", "evaluate-0"]
"""With `evaluation.reward: seed` even pi_init's answers are judged by pi_0."""
PLANS = {
    "quickstart": ["data", "base", "sft", *SEED],
    "smollm2_local": ["data", *SEED_JUDGES],
    **{f"{method}_{share}": ["data", *SEED_JUDGES] for method in ("ultrafeedback", "dpo") for share in SHARES},
    "zephyr_7b_beta": ["data", "seed"],
    "sft_ultrachat": ["data", "sft", "evaluate-init"],
    "zero_label": ["data", "evaluate-init"],
    "reward_model_3p3": ["data", *SEED_JUDGES, "reward-model"],
    **{
        name: ["data", *SEED_JUDGES]
        for name in ("llm_as_judge_3p3", "dice", "self_rewarding", "sppo", "cream", "spa_plus")
    },
    **{name: ["data", *SEED_JUDGES] for name in ("llama3_8b_3p3", "smollm2_135m")},
    **{f"ultrafeedback_3p3_{size}": ["data", *SEED_JUDGES] for size in ("1gpu", "8gpu", "24gb", "slurm")},
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_plans(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.jsonl").write_text("{}\n")
    (tmp_path / "recipes").symlink_to(RECIPES)
    recipe = load_recipe(path).recipe
    implicit = "score-{i}-reference" if recipe.model.dtype == "float32" else "log-ratios-{i}"
    instead = {"reward_model": "reward-{i}", "llm": "llm-judge-{i}"}.get(recipe.judge.type, implicit)
    steps = [step.replace("score-{i}-reference", instead) for step in ITERATION]
    if not recipe.noise.enabled and recipe.model.dtype != "float32":  # refine reads kept log-probs in float32 only
        steps.insert(steps.index("judge-{i}") + 1, "score-{i}-policy")
    rounds = [step.format(i=i) for i in range(1, recipe.iterations + 1) for step in steps]
    if path.stem == "cream":  # which reads the rankings of the judge before, from the second iteration on
        rounds.insert(rounds.index("log-ratios-2") + 1, "log-ratios-2-earlier")
    if path.stem == "quickstart":  # whose judge stays pi_0, while pi_1 answers
        rounds.insert(rounds.index("score-2-reference") + 1, "score-2-judging")
    plan = compile_plan(recipe, DigestMemo(tmp_path / "memo.json"))
    assert [stage.id for stage in plan.stages] == PLANS[path.stem] + rounds
    for stage in plan.stages:
        needs(stage, plan)


HARDWARE = {
    **dict.fromkeys(("quickstart", "smollm2_local"), None),
    "smollm2_135m": (1, 8),
    "ultrafeedback_3p3_24gb": (1, 24),
    "ultrafeedback_3p3_1gpu": (1, 80),
    **dict.fromkeys(("ultrafeedback_3p3_8gpu", "llama3_8b_3p3"), (8, 80)),
    "ultrafeedback_3p3_slurm": (16, 80),
}
"""GPUs and GB that recipes are written for; all others for four with 80 GB."""
HOST_OF_A_GPU = 64 * 10**9
"""Memory of a machine for each of its GPUs, as clouds give it and more."""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_fits_the_hardware_that_it_states(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.jsonl").write_text("{}\n")
    (tmp_path / "recipes").symlink_to(RECIPES)
    recipe = load_recipe(path).recipe
    stated = stated_hardware(recipe.hardware)
    assert (None if stated is None else (stated.gpus, stated.memory // 2**30)) == HARDWARE.get(path.stem, (4, 80))
    host = 8 * 10**9 if stated is None else stated.gpus * HOST_OF_A_GPU
    assert processes_of(recipe) <= (1 if stated is None else stated.gpus)
    backend = recipe.sampling.backend
    if backend.type == "vllm":
        assert stated is not None
        assert backend.data_parallel_size in ("auto", stated.gpus // backend.tensor_parallel_size)
    plan = compile_plan(recipe, DigestMemo(tmp_path / "memo.json"))
    for stage in plan.stages:
        assert misfit(stage, plan, stated, host) is None, stage.id
        assert not is_tight(stage, plan, stated), stage.id
