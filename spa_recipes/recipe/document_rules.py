"""The rules on settings of several sections: those of a whole recipe, and those of a job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spa_recipes.recipe.rules import SANDBOX_PROMPTS, Conflict, Conflicts

if TYPE_CHECKING:
    from spa_recipes.recipe import jobs, schema


def sandbox_has_the_prompts(recipe: schema.Recipe) -> Conflicts:
    for key, source in (("data.pairs", recipe.data.pairs), ("data.prompts", recipe.data.prompts)):
        if source is not None and source.type == "sandbox" and source.rows > SANDBOX_PROMPTS:
            yield Conflict(
                (f"{key}.rows",), f"{source.rows} must not exceed the {SANDBOX_PROMPTS} prompts of the sandbox world"
            )


def sandbox_model_is_fine_tuned(recipe: schema.Recipe) -> Conflicts:
    if recipe.model.is_sandbox and recipe.sft is None:
        yield Conflict(
            ("model.model_name_or_path",), "sandbox is a freshly initialised model", "add an sft section that trains it"
        )


def one_lambda_per_iteration(recipe: schema.Recipe) -> Conflicts:
    lambdas = recipe.noise.lambdas
    if lambdas is not None and len(lambdas) != recipe.iterations:
        entries = "1 entry" if len(lambdas) == 1 else f"{len(lambdas)} entries"
        iterations = "1 iteration" if recipe.iterations == 1 else f"{recipe.iterations} iterations"
        yield Conflict(
            ("noise.lambdas",),
            f"has {entries} for {iterations} (data.prompts_per_iteration)",
            "give one per iteration",
        )


def prompt_and_response_fit(recipe: schema.Recipe) -> Conflicts:
    model, sampling = recipe.model, recipe.sampling
    if model.max_prompt_length >= model.max_length:
        return  # the prompt alone does not fit: `prompt_fits` says so
    if model.max_prompt_length + sampling.max_tokens > model.max_length:
        yield Conflict(
            ("model.max_prompt_length", "sampling.max_tokens", "model.max_length"),
            f"model.max_prompt_length ({model.max_prompt_length}) + sampling.max_tokens ({sampling.max_tokens}) must "
            f"not exceed model.max_length ({model.max_length})",
            f"set sampling.max_tokens to {model.max_length - model.max_prompt_length}, or model.max_length to "
            f"{model.max_prompt_length + sampling.max_tokens}",
        )


def batches_split_over_processes(recipe: schema.Recipe) -> Conflicts:
    executor = recipe.compute.executor
    processes = executor.training_processes
    clustered = executor.type in ("slurm", "ray")
    key = "compute.executor.nodes" if clustered else "compute.executor.num_processes"
    named = "compute.executor.nodes x gpus_per_node" if clustered else key
    used = {
        "sft": recipe.sft,
        "seed_training": recipe.seed_training if recipe.data.seed_labels else None,
        "refine": recipe.refine if recipe.iterations else None,
        "judge.training": recipe.judge.training if recipe.judge.type == "reward_model" else None,
    }
    for section, training in used.items():
        if training is None or training.global_batch_size % training.per_device_train_batch_size:
            continue  # `batch_splits` says so
        at_once = processes * training.per_device_train_batch_size
        if training.global_batch_size % at_once:
            keys = ("global_batch_size", "per_device_train_batch_size")
            yield Conflict(
                (*(f"{section}.{name}" for name in keys), key),
                f"{section}.global_batch_size ({training.global_batch_size}) does not split into {processes} processes "
                f"({named}) x {training.per_device_train_batch_size} rows",
                f"make it a multiple of {at_once}",
            )


def four_bits_stay_whole(recipe: schema.Recipe) -> Conflicts:
    executor, lora = recipe.compute.executor, recipe.model.lora
    if executor.type == "local" or executor.type == "fork" or lora is None or not lora.load_in_4bit:
        return
    if executor.sharding == "zero3":
        yield Conflict(
            ("model.lora.load_in_4bit", "compute.executor.sharding"),
            "zero3 cannot share out weights in 4 bits",
            "set sharding to none: weights in 4 bits are small",
        )


def vllm_can_sample(recipe: schema.Recipe) -> Conflicts:
    backend = recipe.sampling.backend
    if backend.type != "vllm":
        return
    needed = recipe.model.max_prompt_length + recipe.sampling.max_tokens
    if backend.max_model_len is not None and backend.max_model_len < needed:
        yield Conflict(
            ("sampling.backend.max_model_len",),
            f"sampling.backend.max_model_len ({backend.max_model_len}) must not be less than model.max_prompt_length + "
            f"sampling.max_tokens ({needed})",
        )
    if backend.lora == "adapter" and recipe.model.lora is None:
        yield Conflict(
            ("sampling.backend.lora",), "adapter needs model.lora, without which no stage trains an adapter", "add it"
        )
    elif backend.lora == "adapter" and recipe.model.dtype != "float32":
        yield Conflict(
            ("sampling.backend.lora",),
            f"adapter would not sample from the policy, which is the merged model as it is saved in model.dtype "
            f"{recipe.model.dtype}",
            "set it to merged, or model.dtype to float32",
        )


def sampling_gives_pairs(recipe: schema.Recipe) -> Conflicts:
    if recipe.sampling.n < 2:
        yield Conflict(("sampling.n",), "one response makes no pair", "set it to 2 or more")
    if recipe.sampling.temperature == 0 and recipe.iterations:
        yield Conflict(("sampling.temperature",), "0 gives n equal responses and no pair to judge", "set it above 0")


def gold_needs_the_sandbox(recipe: schema.Recipe) -> Conflicts:
    if recipe.data.pairs.type == "sandbox":
        return
    for key, judge in (("judge.type", recipe.judge.type), ("evaluation.reward", recipe.evaluation.reward)):
        if judge == "gold":
            yield Conflict((key,), "gold needs data.pairs.type sandbox", "set it, or choose another judge")


def judge_has_a_reference(recipe: schema.Recipe) -> Conflicts:
    judge = recipe.judge
    if judge.type != "implicit_reward":
        return
    is_a_policy_of_the_run = judge.policy in ("previous", "seed", "mean", "members")
    at_start = is_a_policy_of_the_run and judge.reference in ("init", "previous")
    if at_start and recipe.data.seed_labels == 0 and recipe.iterations:
        yield Conflict(
            ("judge.reference", "data.seed_labels"),
            f"with data.seed_labels 0, pi_0 is pi_init, and judge.reference {judge.reference} would compare it with "
            "itself",
            "set judge.reference to base, a folder or a Hub id",
        )
    if judge.reference == "base" and recipe.sft is None:
        yield Conflict(
            ("judge.reference",),
            "base needs an sft section, without which the model is pi_init itself",
            "add one, or choose another reference",
        )


def judge_is_another_one(recipe: schema.Recipe) -> Conflicts:
    """`judge.policy` and `judge.reference: previous` name other models than the method's, and two different ones."""
    judge = recipe.judge
    if judge.type != "implicit_reward":
        return
    policy, reference = judge.policy, judge.reference
    if recipe.iterations < 2 and reference == "previous":
        yield Conflict(("judge.reference",), "previous differs from init from iteration 2 on only", "set it to init")
    if recipe.iterations == 1 and policy in ("seed", "mean"):
        yield Conflict(("judge.policy",), f"{policy} differs from previous from iteration 2 on only", "remove it")
    elif policy in ("seed", "mean") and reference == "previous":
        yield Conflict(
            ("judge.reference", "judge.policy"),
            f"previous is pi_0 in iteration 2, and judge.policy {policy} would compare pi_0 with itself",
            "set one of them to its default",
        )
    if policy == reference and policy != "previous":
        yield Conflict(("judge.policy",), "is the judge's reference, too: all rewards would be 0", "name another model")
    if policy in ("previous", "mean"):
        return
    if judge.recompute_policy_logps:
        yield Conflict(
            ("judge.recompute_policy_logps",),
            f"is for a judge that reads log-probs of sampling, and judge.policy {policy} is scored anyway",
            "remove it",
        )
    if recipe.evaluation.max_judge_decay is not None:
        yield Conflict(
            ("evaluation.max_judge_decay",),
            f"measures pi_{{i-1}}, and judge.policy {policy} judges in its place",
            "remove it, or set judge.policy to previous",
        )


def qlora_is_possible(recipe: schema.Recipe) -> Conflicts:
    judge = recipe.judge
    if not recipe.model.in_4bit:
        return
    if recipe.refine.reference_mix:
        yield Conflict(
            ("refine.reference_mix", "model.lora.load_in_4bit"),
            "a mixed reference has log-probs that are given, and that of QLoRA is the policy without its new adapter",
            "remove it, or set model.lora.load_in_4bit to false",
        )
    if judge.type == "implicit_reward" and judge.reference != "init":
        yield Conflict(
            ("judge.reference", "model.lora.load_in_4bit"),
            f"the policies are adapters on pi_init in 4 bits, and judge.reference {judge.reference} is another model",
            "set judge.reference to init, or model.lora.load_in_4bit to false",
        )
    if judge.type == "reward_model" and judge.model_name_or_path is None and recipe.iterations:
        yield Conflict(
            ("judge.type", "model.lora.load_in_4bit"),
            "a reward model is not trained in 4 bits",
            "give a finished one by judge.model_name_or_path, or set model.lora.load_in_4bit to false",
        )


def recomputing_has_an_effect(recipe: schema.Recipe) -> Conflicts:
    judge = recipe.judge
    if judge.type != "implicit_reward" or not judge.recompute_policy_logps:
        return
    if recipe.model.dtype != "float32":
        why = f"with model.dtype {recipe.model.dtype}, where log-probs that sampling kept are never used"
    elif judge.method == "tangent":
        why = "with judge.method tangent, which reads no log-probs"
    elif judge.min_margin_in_noise is not None:
        why = "with judge.min_margin_in_noise, where log-probs that sampling kept are never used"
    else:
        return
    yield Conflict(("judge.recompute_policy_logps",), f"true has no effect {why}", "remove it")


VARIANTS = (
    "judge.keep",
    "judge.peers",
    "judge.policy",
    "refine.loss",
    "refine.divergence",
    "refine.reference_mix",
    "refine.sft_weight",
    "refine.token_credit",
)
"""Settings beyond the paper that nothing but an iteration reads."""


def refinement_takes_place(recipe: schema.Recipe) -> Conflicts:
    """A variant of the iterations is refused where there are none."""
    if recipe.iterations:
        return
    for key in VARIANTS:
        section, name = key.split(".")
        part = getattr(recipe, section)
        if hasattr(part, name) and getattr(part, name) != type(part).model_fields[name].default:
            yield Conflict(
                (key,), "has no effect without iterations (data.prompts_per_iteration is [])", "remove it, or add some"
            )


def extrapolation_has_a_way(recipe: schema.Recipe) -> Conflicts:
    if recipe.final.extrapolate and not recipe.iterations and not recipe.data.seed_labels:
        yield Conflict(
            ("final.extrapolate",),
            "has no effect: without seed labels and iterations the last policy is pi_init",
            "remove it",
        )


def mixed_reference_is_known(recipe: schema.Recipe) -> Conflicts:
    """pi_init is mixed in by log-probs that the judge has computed anyway: of whole answers, and of no others."""
    if not recipe.refine.reference_mix or not recipe.iterations:
        return
    judge, key = recipe.judge, ("refine.reference_mix",)
    if judge.type != "implicit_reward" or judge.policy != "previous" or judge.reference != "init":
        yield Conflict(
            key,
            "needs log-probs of the answers under pi_init, which no judge computes but implicit_reward with reference "
            "init and policy previous",
            "choose that judge, or remove it",
        )
    if recipe.refine.seed_replay:
        yield Conflict(
            key, "replayed seed pairs have no log-probs under pi_init", "remove it, or remove refine.seed_replay"
        )
    if any(recipe.lambda_of(i) for i in range(1, recipe.iterations + 1)):
        yield Conflict(
            key,
            "a mixed reference has log-probs of answers, but no logits for the de-coupled detection (lambda > 0)",
            "set noise.lambdas to 0 for every iteration, or noise.detector to judge",
        )


def seed_labels_are_there(recipe: schema.Recipe) -> Conflicts:
    """Nothing asks for seed labels, or for the pi_0 that learns from them, in a recipe without any."""
    if recipe.data.seed_labels != 0:
        return
    if recipe.judge.type == "reward_model" and recipe.judge.model_name_or_path is None:
        yield Conflict(
            ("judge.type",),
            "with data.seed_labels 0, there is nothing to train a reward model on",
            "give one by judge.model_name_or_path",
        )
    if recipe.refine.seed_replay:
        yield Conflict(
            ("refine.seed_replay",), "with data.seed_labels 0, there are no pairs to replay", "remove it, or add labels"
        )
    if recipe.evaluation.reward == "seed" and _is_evaluated(recipe):
        yield Conflict(
            ("evaluation.reward", "data.seed_labels"),
            "with data.seed_labels 0, evaluation.reward seed has no pi_0 to judge by",
            "set evaluation.reward to none or implicit_reward",
        )


def added_labels_have_an_effect(recipe: schema.Recipe) -> Conflicts:
    """Labels that are added find an iteration, or an evaluation, that reads them."""
    for i, labels in enumerate(recipe.data.added):
        key = f"data.added.{i}"
        if labels.join == "heldout":
            if not _is_evaluated(recipe):
                yield Conflict((f"{key}.join",), "nothing is evaluated that could read them", "raise data.heldout")
            continue
        if labels.after >= recipe.iterations:
            yield Conflict(
                (f"{key}.after",),
                f"no iteration comes after iteration {labels.after}",
                "add one to data.prompts_per_iteration, or give the file to another recipe as data.pairs.source",
            )
        if recipe.refine.loss == "distill":
            yield Conflict(
                (key, "refine.loss"),
                "distill learns the judge's margins, and labels of people have none",
                "choose another loss",
            )
        if recipe.refine.reference_mix:
            yield Conflict(
                (key, "refine.reference_mix"), "labels that are added have no log-probs under pi_init", "remove it"
            )


def there_is_something_to_do(recipe: schema.Recipe) -> Conflicts:
    if recipe.data.seed_labels == 0 and not recipe.iterations and recipe.sft is None:
        yield Conflict(
            ("data.seed_labels",),
            "there is nothing to do: no sft section, data.seed_labels is 0 and data.prompts_per_iteration is []",
            "set one of them",
        )


def verdict_leaves_room(recipe: schema.Recipe | jobs.JudgeJob) -> Conflicts:
    judge = recipe.judge
    if judge.type != "llm" or judge.endpoint is not None:
        return
    key, limit = ("judge", judge.max_length) if judge.max_length else ("model", recipe.model.max_length)
    if judge.max_tokens >= limit:
        yield Conflict(
            ("judge.max_tokens", f"{key}.max_length"),
            f"judge.max_tokens ({judge.max_tokens}) must be smaller than {key}.max_length ({limit})",
        )


def decay_is_measured(recipe: schema.Recipe) -> Conflicts:
    if recipe.evaluation.max_judge_decay is not None and not _is_evaluated(recipe):
        yield Conflict(
            ("evaluation.max_judge_decay",),
            "needs an evaluation on held-out labels",
            "set data.heldout above 0 and evaluation.enabled true",
        )


def control_can_be_compared(recipe: schema.Recipe) -> Conflicts:
    evaluation = recipe.evaluation
    if not recipe.control:
        return
    if not recipe.iterations or not recipe.data.seed_labels:
        missing = "data.seed_labels" if recipe.iterations else "data.prompts_per_iteration"
        yield Conflict(
            ("control", missing),
            "the control is SPA's seed labels without its iterations, and one of the two is not there",
            f"give {missing}, or leave control out",
        )
    if not evaluation.enabled or not recipe.data.heldout or evaluation.reward == "none":
        yield Conflict(
            ("control", "evaluation.reward", "data.heldout"),
            "nothing compares the control with SPA: that takes answers to held-out prompts and a judge of them",
            "set data.heldout and evaluation.reward, or leave control out",
        )


def benchmarks_fit_the_run(recipe: schema.Recipe) -> Conflicts:
    for i, benchmark in enumerate(recipe.evaluation.benchmarks):
        found = () if benchmark.type == "lm_eval" else answer_fits_the_model(benchmark, recipe.model)
        for conflict in (*found, *(_pairwise(benchmark, recipe) if benchmark.type == "pairwise" else ())):
            yield conflict.below(f"evaluation.benchmarks.{i}")


def answer_fits_the_model(benchmark: schema.Answering, model: schema.Model | jobs.BenchmarkedModel) -> Conflicts:
    """The answers of a benchmark without its own max_length leave room for a prompt within the model's."""
    if benchmark.max_length is None and benchmark.max_tokens >= model.max_length:
        yield Conflict(
            ("max_tokens",),
            f"max_tokens ({benchmark.max_tokens}) must be smaller than model.max_length ({model.max_length})",
            "lower it, or raise model.max_length",
        )


def _pairwise(benchmark: schema.Pairwise, recipe: schema.Recipe) -> Conflicts:
    judge = benchmark.judge
    if benchmark.prompts is None and not recipe.data.heldout:
        yield Conflict(("prompts",), "there are no prompts to answer", "set it, or data.heldout above 0")
    if judge.type == "gold" and (recipe.data.pairs.type != "sandbox" or benchmark.prompts is not None):
        yield Conflict(
            ("judge.type",),
            "gold needs the prompts of the sandbox",
            "set data.pairs.type sandbox, and leave out prompts",
        )
    if judge.type == "implicit_reward" and judge.policy is None and recipe.data.seed_labels == 0:
        yield Conflict(
            ("judge.policy",),
            "with data.seed_labels 0, the judge has no pi_0 to judge by",
            "give it policy and reference",
        )


def _is_evaluated(recipe: schema.Recipe) -> bool:
    return recipe.evaluation.enabled and recipe.data.heldout > 0


# --- rules between sections of a job


def benchmark_stands_alone(job: jobs.BenchmarkJob) -> Conflicts:
    """A benchmark without a run names all models and prompts itself."""
    found = () if job.benchmark.type == "lm_eval" else answer_fits_the_model(job.benchmark, job.model)
    for conflict in (*found, *(_without_run(job.benchmark) if job.benchmark.type == "pairwise" else ())):
        yield conflict.below("benchmark")


def vllm_has_an_effect(job: jobs.BenchmarkJob) -> Conflicts:
    if job.benchmark.type == "lm_eval" and job.backend.type == "vllm":
        yield Conflict(("backend.type",), "vllm has no effect with benchmark.type lm_eval", "set it to transformers")


def vllm_python_has_an_effect(job: jobs.BenchmarkJob | jobs.JudgeJob | jobs.SampleJob) -> Conflicts:
    if job.compute.vllm_python is not None and job.backend.type != "vllm":
        key = f"{'sampling.' if hasattr(job, 'sampling') else ''}backend.type"
        yield Conflict(("compute.vllm_python",), f"has no effect with {key} {job.backend.type}", f"set {key} to vllm")


def samples_fit_the_model(job: jobs.SampleJob) -> Conflicts:
    if job.sampling.max_tokens >= job.model.max_length:
        yield Conflict(
            ("sampling.max_tokens", "model.max_length"),
            f"sampling.max_tokens ({job.sampling.max_tokens}) must be smaller than model.max_length "
            f"({job.model.max_length})",
        )


def judge_of_pairs_is_given(job: jobs.JudgeJob) -> Conflicts:
    """Nothing is trained and no run's policy is there: another judge than the implicit reward is named."""
    judge = job.judge
    if judge.type == "implicit_reward":
        if job.reference is None:
            yield Conflict(("reference",), "the implicit reward needs it", "name the model the policy was trained from")
    elif judge.model_name_or_path is None and not (judge.type == "llm" and judge.endpoint is not None):
        also = ", or judge.endpoint.base_url and judge.endpoint.model" if judge.type == "llm" else ""
        yield Conflict(
            ("judge.model_name_or_path",), f"the {judge.type} judge needs a model", f"give a folder or Hub id{also}"
        )


OF_ITERATIONS = ("reference", "policy", "uncertainty_penalty", "consistency", "peers")
"""Settings of the implicit reward that name other models of a run."""


def judge_needs_no_run(job: jobs.JudgeJob) -> Conflicts:
    """A judge of answers that are there already has the policy and the reference that the job names."""
    judge = job.judge
    if judge.type != "implicit_reward":
        return
    for name in OF_ITERATIONS:
        if getattr(judge, name) != type(judge).model_fields[name].default:
            yield Conflict((f"judge.{name}",), "has no effect without the iterations of a run", "remove it")


def _without_run(benchmark: schema.Pairwise) -> Conflicts:
    judge = benchmark.judge
    if benchmark.against == "init":
        yield Conflict(("against",), "there is no run whose pi_init could be meant", "name a folder or a Hub id")
    if benchmark.prompts is None:
        yield Conflict(("prompts",), "there are no prompts to answer", "set it")
    if judge.type == "implicit_reward" and judge.policy is None:
        yield Conflict(("judge.policy",), "there is no run whose pi_0 could judge", "give policy and reference")
