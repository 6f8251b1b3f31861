"""Recipe -> plan: the stages of a run, in order.

The two references of the method are wired here and in `judges.py`, and nowhere else: `score-i-reference`, or
`log-ratios-i` in half precision, reads pi_init at every iteration (the judge); `refine-i` reads pi_{i-1} (the training
reference).
"""

from typing import Any

from spa_recipes.data.commits import Commits
from spa_recipes.data.places import count_rows
from spa_recipes.plan.adapters import sampled_with, stack, trained_on
from spa_recipes.plan.added import add_labels, added_before, heldout_of
from spa_recipes.plan.benchmarks import add_benchmarks
from spa_recipes.plan.chains import Chain, chains_of, peers_of
from spa_recipes.plan.control import CONTROL, add_control
from spa_recipes.plan.gates import with_gates
from spa_recipes.plan.judges import FRAGMENTS, Iteration, Judging, Label
from spa_recipes.plan.kinds import MODEL
from spa_recipes.plan.log_ratios import of_both_models
from spa_recipes.plan.members import add_members, add_reliability, seed_inputs, seed_settings
from spa_recipes.plan.models import Models, Named
from spa_recipes.plan.stages import Builder, Input, Plan, StageOutput
from spa_recipes.recipe.schema import Model, Recipe, SandboxSource, Source, SupervisedTraining, TokenCredit
from spa_recipes.state.digests import DigestMemo


def compile_plan(recipe: Recipe, memo: DigestMemo, commits: Commits | None = None) -> Plan:
    """Lay out the stages of a recipe.

    Args:
        commits: what is read of the Hub.

    Raises:
        RecipeError: a chat template file or a setting does not fit.
        DataError: a local data file is missing, or the Hub was asked and does not give something.
        TryAgainError: the Hub was asked and cannot be reached.
    """
    build = Builder(memo, commits)
    settings = build.model_settings(recipe.model.model_copy(update={"save_rounding": None}))
    training = build.model_settings(_saved(recipe.model))
    # Rows come first: what is wrong with them is found before any model is loaded.
    _add_data(recipe, build)
    base = _base_model(recipe, build)
    models = Models(settings, training, base, _initial_policy(recipe, build, training, base))

    by_seed = recipe.evaluation.reward == "seed" and bool(recipe.data.seed_labels)
    if not by_seed:
        _add_evaluation("init", "pi_init", models.init, recipe, build, models)
    policy = models.init
    if recipe.data.seed_labels:
        policy = _add_seed(recipe, build, models)
        if by_seed:  # pi_0 is its judge
            _add_evaluation("init", "pi_init", models.init, recipe, build, models)
        _add_evaluation("0", "pi_0", policy, recipe, build, models)
    add_members(recipe, build, models)
    if recipe.iterations:
        label = FRAGMENTS[recipe.judge.type](recipe, build, models)
    chain, other = chains_of(recipe, policy, models)
    for i in range(1, recipe.iterations + 1):
        made = _add_iteration(i, chain, other, label, recipe, build, models)
        if other is not None and i < recipe.iterations:  # nobody reads what the peer would learn in the last one
            other = other.after(_add_iteration(i, other, chain, label, recipe, build, models))
        chain, policy = chain.after(made), made.model
        _add_evaluation(str(i), f"pi_{i}", policy, recipe, build, models)
    if recipe.final.extrapolate:
        policy = _add_extrapolation(policy, recipe, build, models)
        _add_evaluation("extrapolated", f"pi_{recipe.iterations}, extrapolated,", policy, recipe, build, models)
    if recipe.control:
        last = "extrapolated" if recipe.final.extrapolate else str(recipe.iterations)
        its_policy = add_control(recipe, build, models)
        _add_evaluation(CONTROL, "the control", its_policy, recipe, build, models, beside=f"evaluate-{last}")
    add_benchmarks(recipe, build, models, policy)
    memo.save()
    return Plan(recipe, with_gates(recipe, build.stages), build.commits.kept)


def _saved(model: Model) -> Model:
    """The model section of a stage that trains: it says how weights are rounded, wherever they may be.

    Stages that save no model read a section without `save_rounding`, so that it moves no key of theirs.
    """
    if model.dtype == "float32" or model.save_rounding is not None:
        return model
    return model.model_copy(update={"save_rounding": "stochastic"})


def _add_data(recipe: Recipe, build: Builder) -> None:
    inputs: dict[str, Input] = {"pairs": build.source(recipe.data.pairs, "data.pairs")}
    if recipe.data.prompts is not None:
        inputs["prompts"] = build.source(recipe.data.prompts, "data.prompts")
    settings: dict[str, Any] = {"data": recipe.data}
    if not recipe.model.is_sandbox:  # whose template refuses nothing
        named = ("model_name_or_path", "revision", "trust_remote_code", "chat_template", "chat_template_kwargs")
        texts = {name: getattr(recipe.model, name) for name in named}
        settings |= build.model_settings(Model.model_validate(texts))
        inputs["policy"] = _base_model(recipe, build)
    build.add("data", "data", "share out the rows", settings=settings, inputs=inputs)
    add_labels(recipe, build)


def _base_model(recipe: Recipe, build: Builder) -> Input:
    """The model named by the recipe; the sandbox's is made by a stage of its own."""
    if not recipe.model.is_sandbox:
        return build.model(recipe.model.model_name_or_path, recipe.model.revision, "model.model_name_or_path")
    build.add(
        "base", "init_model", "the sandbox's tiny Llama, random weights", settings={"seed": recipe.seed}, inputs={}
    )
    return StageOutput("base", MODEL)


def _initial_policy(recipe: Recipe, build: Builder, model: dict[str, Any], base: Input) -> Input:
    """pi_init: the recipe's model, after supervised fine-tuning if the recipe asks for it."""
    if recipe.sft is None:
        return base
    build.add(
        "sft",
        "sft",
        "pi_init: supervised fine-tuning of the base model",
        settings={
            **model,
            "training": SupervisedTraining.model_construct(
                **{name: getattr(recipe.sft, name) for name in SupervisedTraining.model_fields}
            ),
            "source": _limited(recipe.sft.data, recipe.data.max_skipped),
            "seed": recipe.seed,
        },
        inputs={
            "policy": base,
            **trained_on(recipe, build, base, base),
            "source": build.source(recipe.sft.data, "sft.data"),
        },
        rows=recipe.sft.data.rows if recipe.sft.data.type == "sandbox" else recipe.sft.data.max_rows,
    )
    return StageOutput("sft", MODEL)


def _limited(source: Source, max_skipped: float) -> Source:
    """A source with the recipe's limit on rows that give nothing, where it has none of its own."""
    if isinstance(source, SandboxSource) or source.max_skipped is not None:
        return source
    return source.model_copy(update={"max_skipped": max_skipped})


def _add_seed(recipe: Recipe, build: Builder, models: Models) -> Input:
    """DPO on the seed labels; returns pi_0."""
    build.add(
        "seed",
        "dpo",
        "pi_0: DPO on the seed labels, from pi_init, reference pi_init",
        settings=seed_settings(recipe, models),
        inputs=seed_inputs(recipe, build, models),
        rows=_seed_rows(recipe),
    )
    return StageOutput("seed", MODEL)


def _seed_rows(recipe: Recipe) -> int | None:
    """Seed labels as a count; None for a share of a dataset whose size is not known without loading it."""
    labels = recipe.data.seed_labels
    if isinstance(labels, int):
        return labels
    rows = count_rows(recipe.data.pairs)
    return None if rows is None else round(labels * rows)


def _add_iteration(
    i: int, chain: Chain, other: Chain | None, label: Label, recipe: Recipe, build: Builder, models: Models
) -> Named:
    """Generate, judge and refine of iteration i of a chain, whose pairs the other one chooses; returns pi_i."""
    prompts = StageOutput("data", f"prompts-{i}.jsonl")
    count, n = recipe.data.prompts_per_iteration[i - 1], recipe.sampling.n
    policy = chain.policy.model
    generate = build.add(
        f"generate-{i}{chain.mark}",
        "generate",
        f"{n} answers per fresh prompt, sampled from {chain.policy.name}",
        settings={**models.settings, "sampling": recipe.sampling, "seed": recipe.seed, "iteration": i},
        inputs={"policy": policy, **sampled_with(recipe, build, policy), "prompts": prompts},
        rows=count * n,
    )
    completions = StageOutput(generate, "completions.parquet")
    peer = None if other is None else other.policy
    answers = (prompts, completions, count * n)
    iteration = Iteration(i, chain.mark, chain.policy.name, policy, chain.earlier, peer, *answers)
    judging = label(iteration)
    kept = max(1, round(_share_kept(i, recipe) * count))
    _add_judge(iteration, judging, recipe, build, rows=kept)
    if judging.members:
        count = recipe.seed_training.members.count
        add_reliability(i, count, judging.members, iteration.completions, build, rows=kept)
    return _add_refine(iteration, chain, judging, recipe, build, models, rows=kept)


def _share_kept(i: int, recipe: Recipe) -> float:
    """The share of the labelled pairs of iteration i that the judge stage keeps."""
    if (peers := peers_of(recipe)) is not None:
        return 1.0 - peers.forget_rate_in(i)
    return recipe.judge.keep if recipe.judge.type == "implicit_reward" else 1.0


def _add_judge(iteration: Iteration, judging: Judging, recipe: Recipe, build: Builder, *, rows: int) -> None:
    """The labels of an iteration, by the judge of the recipe."""
    peers = peers_of(recipe)
    build.add(
        f"judge-{iteration.number}{iteration.chain}",
        "judge",
        judging.role,
        settings={
            "judge": judging.settings,
            "seed": recipe.seed,
            "iteration": iteration.number,
            "gold_audit": recipe.data.pairs.type == "sandbox",
            **({"labels_by": judging.labels_by} if judging.labels_by else {}),
            **({"forget_rate": peers.forget_rate_in(iteration.number)} if peers is not None else {}),
        },
        inputs={"completions": iteration.completions, "prompts": iteration.prompts, **judging.inputs},
        rows=rows,
    )


def _reference_logps(iteration: Iteration, recipe: Recipe, build: Builder, models: Models) -> dict[str, Input]:
    """The log-probs of the answers under pi_{i-1} that a training without a live reference (lambda = 0) reads.

    In float32 those that the sampling kept, which come with the judgments. In half precision the sampler's differ from
    the trainer's by as much as a margin, so they are scored. With QLoRA the training gives them: the policy without its
    new adapter.
    """
    i, before = iteration.number, iteration.before
    if recipe.lambda_of(i) or recipe.model.dtype == "float32" or recipe.model.in_4bit:
        return {}
    stage = build.add(
        f"score-{i}-policy{iteration.chain}",
        "score",
        f"log-probs of the answers under {before}, the reference of refine-{i}{iteration.chain}",
        settings=models.settings,
        inputs={"model": iteration.policy, "completions": iteration.completions},
        rows=iteration.rows,
    )
    return {"reference_logps": StageOutput(stage, "logps.parquet")}


def _add_refine(
    iteration: Iteration, chain: Chain, judging: Judging, recipe: Recipe, build: Builder, models: Models, *, rows: int
) -> Named:
    """Training on the labels of an iteration; returns pi_i."""
    i, before, policy = iteration.number, iteration.before, iteration.policy
    logps = _reference_logps(iteration, recipe, build, models)
    live = bool(recipe.lambda_of(i)) or recipe.model.in_4bit
    source = "" if live else f" (its log-probs: {'scored' if logps else 'kept'})"
    noise = {name: value for name, value in judging.inputs.items() if name == "log_ratios"}
    replay: dict[str, Input] = {"seed_pairs": StageOutput("data", "seed.jsonl")} if recipe.refine.seed_replay else {}
    if (added := added_before(i, recipe)) is not None:
        replay["added_pairs"] = added
    credit = {"token_logps": judging.inputs["reference_logps"]} if recipe.refine.token_credit else {}
    made = chain.symbol.format(i)
    stage = build.add(
        f"refine-{i}{chain.mark}",
        chain.kind,
        f"{made}: refined DPO on the judged pairs, from {before}, reference {before}{source}{_variants(recipe, i)}",
        settings={
            **models.training,
            "training": recipe.refine,
            "noise": recipe.noise.model_copy(update={"lambdas": None}),
            "lambda": recipe.lambda_of(i),
            **_detection(recipe),
            **_win_shares(recipe),
            "seed": recipe.seed,
            "iteration": i,
        },
        inputs={
            "policy": policy,
            "reference": policy,
            **trained_on(recipe, build, policy, models.init),
            "judgments": StageOutput(f"judge-{i}{chain.mark}", "judgments.jsonl"),
            "completions": iteration.completions,
            **logps,
            **noise,
            **replay,
            **credit,
        },
        rows=rows,
    )
    return Named(StageOutput(stage, MODEL), made)


def _add_extrapolation(policy: Input, recipe: Recipe, build: Builder, models: Models) -> Input:
    """The last policy's weights, moved further away from those of pi_init."""
    factor, last = recipe.final.extrapolate, f"pi_{recipe.iterations}"
    build.add(
        "extrapolate",
        "extrapolate",
        f"{last} + {factor:g}*({last} - pi_init), in the weights",
        settings={**models.training, "factor": factor},
        inputs={"policy": policy, "init": models.init},
    )
    return StageOutput("extrapolate", MODEL)


def _detection(recipe: Recipe) -> dict[str, str]:
    """How p~ is computed, where that is another way than in float32 (or with weights in 4 bits): a part of the key."""
    noise, model = recipe.noise, recipe.model
    if model.dtype == "float32" or model.in_4bit or not noise.enabled or noise.detector == "judge":
        return {}
    return {"p_detect": "derivative half-way"}


def _win_shares(recipe: Recipe) -> dict[str, bool]:
    """For loss sppo, whether the judge's rewards are the shares of comparisons that an answer won: P_k themselves."""
    judge = recipe.judge
    if recipe.refine.loss == "sppo" and judge.type == "llm" and judge.mode == "pairs":
        return {"win_shares": True}
    return {}


def _variants(recipe: Recipe, iteration: int) -> str:
    """What the recipe minimises in place of the method's loss, in words."""
    refine = recipe.refine
    weighed = recipe.judge.type == "implicit_reward" and recipe.judge.consistency and iteration > 1
    said = [
        *([f"loss {refine.loss}" + _answers(recipe)] if refine.loss != "sigmoid" else []),
        *([f"divergence {refine.divergence}"] if refine.divergence != "reverse_kl" else []),
        *([f"reference mixed with pi_init ({refine.reference_mix:g})"] if refine.reference_mix else []),
        *([f"tokens weighed by {_credit(refine.token_credit)}"] if refine.token_credit else []),
        *([f"sft_weight {refine.sft_weight:g}"] if refine.sft_weight else []),
        *(["labels weighed by their consistency"] if weighed else []),
    ]
    return "".join(f", {words}" for words in said)


def _credit(credit: TokenCredit) -> str:
    return f"{credit.type} (a = {credit.a:g}, normalise {credit.normalise})"


def _answers(recipe: Recipe) -> str:
    return f" on all {recipe.sampling.n} answers" if recipe.refine.loss == "sppo" else ""


def _add_evaluation(
    name: str,
    symbol: str,
    policy: Input,
    recipe: Recipe,
    build: Builder,
    models: Models,
    *,
    beside: str | None = None,
) -> None:
    """The evaluation of one policy, where the recipe has something to measure.

    Args:
        beside: the evaluation of SPA's last policy, which a control is compared with.
    """
    evaluation = recipe.evaluation
    if not (evaluation.enabled and recipe.data.heldout):
        return
    inputs: dict[str, Input] = {
        "policy": policy,
        **sampled_with(recipe, build, policy),
        "heldout": heldout_of(recipe),
    }
    settings: dict[str, Any] = {
        **models.settings,
        # How many answers the iterations sample is nothing to the evaluation: its own number is in `evaluation`.
        "sampling": recipe.sampling.model_copy(update={"n": 2}),
        "evaluation": evaluation,
        "seed": recipe.seed,
    }
    if evaluation.reward == "seed":
        seed = StageOutput("seed", MODEL)
        inputs |= {"reward_policy": seed, "reward_reference": models.init}
        inputs |= stack("reward_stack", recipe, build, seed, models.init)
    for role in ("reward_policy", "reward_reference"):
        if (location := getattr(evaluation, role)) is not None:
            inputs[role] = build.model(location, None, f"evaluation.{role}")
    method = recipe.judge.method if recipe.judge.type == "implicit_reward" else "auto"
    together = of_both_models(recipe.model, method)
    if together:
        settings["method"] = method
    if name != "init":
        settings["beta"] = recipe.seed_training.beta
        inputs["init_samples"] = StageOutput("evaluate-init", "samples.jsonl")
        if together:
            inputs |= {"init": models.init, **stack("stack", recipe, build, policy, models.init)}
        else:
            inputs["init_logps"] = StageOutput("evaluate-init", "heldout.jsonl")
    if beside is not None:
        inputs["spa_samples"] = StageOutput(beside, "samples.jsonl")
    build.add(
        f"evaluate-{name}",
        "evaluate",
        f"{symbol} on held-out prompts and pairs",
        settings=settings,
        inputs=inputs,
        rows=min(evaluation.max_prompts, recipe.data.heldout) * evaluation.responses_per_prompt,
    )
