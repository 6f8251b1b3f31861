"""The rules that settings must follow together: which values contradict each other, although each is valid by itself.

A rule is a function that yields what is wrong with one section. `schema` names the rules of a section as its `RULES`;
its types and bounds are checked before. A rule on settings of several sections belongs to `Recipe`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from spa_recipes.recipe import hosts

if TYPE_CHECKING:
    from spa_recipes.recipe import schema

SANDBOX_PROMPTS = 13_056
"""Prompts of the sandbox world. It has no more labelled pairs than that."""


class Conflict(NamedTuple):
    """Settings that contradict each other.

    Attributes:
        keys: the settings, dotted and below the rule's section. The first one that the recipe sets is shown.
        what: the fact, to be read after a key.
        fix: what to do about it; empty where `what` says it.
    """

    keys: tuple[str, ...]
    what: str
    fix: str = ""

    def below(self, section: str) -> Conflict:
        """The same conflict, seen from outside the section."""
        return self._replace(keys=tuple(f"{section}.{key}" for key in self.keys))

    def __str__(self) -> str:
        return f"{self.keys[0]}: {self.what}" + (f"; {self.fix}" if self.fix else "")


Conflicts = Iterator[Conflict]
Rules = tuple[Callable[[Any], Conflicts], ...]


class ConflictError(ValueError):
    """Settings of a recipe or job contradict each other; `conflicts` has all of them."""

    def __init__(self, conflicts: list[Conflict]) -> None:
        super().__init__("\n".join(map(str, conflicts)))
        self.conflicts = conflicts


def conflicts_in(error: ValidationError) -> list[Conflict]:
    """The conflicts that pydantic was told about; none where it found values of a wrong shape."""
    causes = [detail.get("ctx", {}).get("error") for detail in error.errors(include_url=False, include_input=False)]
    return [conflict for cause in causes if isinstance(cause, ConflictError) for conflict in cause.conflicts]


def conflicts_of(section: schema.Section) -> Conflicts:
    """All conflicts within a section and the sections below it."""
    for rule in section.RULES:
        yield from rule(section)
    for name, value in section:
        for key, part in _sections(name, value):
            yield from (conflict.below(key) for conflict in conflicts_of(part))


def _sections(name: str, value: Any) -> Iterator[tuple[str, schema.Section]]:
    """The section, or the list of sections, that is the value of a key."""
    entries = [(f"{name}.{i}", entry) for i, entry in enumerate(value)] if isinstance(value, list) else [(name, value)]
    return ((key, entry) for key, entry in entries if hasattr(entry, "RULES"))


# --- rules within a section


def lora_leaves_the_head(lora: schema.Lora) -> Conflicts:
    modules = lora.lora_target_modules
    if isinstance(modules, list) and any("lm_head" in module for module in modules):
        yield Conflict(
            ("lora_target_modules",), "must not name lm_head", "remove it: log-probs are read from its weight directly"
        )


def template_variables_are_free(model: schema.ModelSource) -> Conflicts:
    for name in sorted(model.chat_template_kwargs.keys() & _TEMPLATE_ARGUMENTS):
        yield Conflict(("chat_template_kwargs",), f"must not name {name}", "remove it: rendering sets it itself")


_TEMPLATE_ARGUMENTS = {
    *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt"),
    *("continue_final_message", "tokenize", "padding", "truncation", "max_length", "tokenizer_kwargs"),
    *("return_tensors", "return_dict", "return_assistant_tokens_mask"),
}
"""What transformers' `apply_chat_template` takes for itself."""


def prompt_fits(model: schema.Model) -> Conflicts:
    if model.max_prompt_length >= model.max_length:
        yield Conflict(
            ("max_prompt_length", "max_length"),
            f"max_prompt_length ({model.max_prompt_length}) must be smaller than max_length ({model.max_length})",
        )


def rounding_has_an_effect(model: schema.Model) -> Conflicts:
    if model.save_rounding is not None and model.dtype == "float32":
        yield Conflict(
            ("save_rounding",),
            f"{model.save_rounding} has no effect with dtype float32, in which trained weights are saved as they are",
            "remove it, or set dtype to bfloat16 or float16",
        )


def batch_splits(training: schema.Training) -> Conflicts:
    total, per_device = training.global_batch_size, training.per_device_train_batch_size
    if total % per_device:
        yield Conflict(
            ("global_batch_size", "per_device_train_batch_size"),
            f"global_batch_size ({total}) must be a multiple of per_device_train_batch_size ({per_device})",
        )


def distilled_pairs_are_judged(training: schema.RefineTraining) -> Conflicts:
    if training.loss == "distill" and training.seed_replay:
        yield Conflict(
            ("loss", "seed_replay"),
            "distill learns the judge's margins, and replayed seed pairs have none",
            "remove seed_replay, or choose another loss",
        )


def base_url_is_the_base(endpoint: schema.Endpoint) -> Conflicts:
    if endpoint.base_url.rstrip("/").endswith("/completions"):
        yield Conflict(("base_url",), "must end before /chat/completions", "e.g. https://api.openai.com/v1")


def key_goes_where_it_may(endpoint: schema.Endpoint) -> Conflicts:
    name = endpoint.api_key_env
    if name is None:
        return
    if hosts.is_never_sent(name):
        what = f"{name} is never sent to an endpoint"
        yield Conflict(("api_key_env",), what, "name the variable of the endpoint's own key, or set null")
    elif not hosts.is_encrypted(endpoint.base_url):
        what = f"would get the key in {name} over plain http, where others can read it"
        yield Conflict(("base_url",), what, "use https, or set api_key_env: null")


def reward_model_is_trained_or_given(judge: schema.RewardModelJudge) -> Conflicts:
    if judge.model_name_or_path is not None and judge.training is not None:
        yield Conflict(
            ("training",), "is for a reward model that the run trains", "remove it, or remove model_name_or_path"
        )
    if judge.model_name_or_path is None and judge.revision is not None:
        yield Conflict(("revision",), "needs model_name_or_path", "add it, or remove revision")


def llm_judge_is_one_model(judge: schema.LlmJudge) -> Conflicts:
    if judge.model_name_or_path is not None and judge.endpoint is not None:
        yield Conflict(
            ("endpoint", "model_name_or_path"), "endpoint and model_name_or_path name two judges", "remove one of them"
        )
    for name in ("revision", "chat_template"):
        if judge.model_name_or_path is None and getattr(judge, name) is not None:
            yield Conflict((name,), "needs model_name_or_path", f"add it, or remove {name}")
    if judge.endpoint is not None and judge.max_length is not None:
        yield Conflict(("max_length",), "has no effect on an endpoint, whose server has its own limit", "remove it")


def window_can_fill(threshold: schema.PercentileThreshold) -> Conflicts:
    if threshold.min_pairs > threshold.window:
        yield Conflict(
            ("min_pairs", "window"), f"min_pairs ({threshold.min_pairs}) must not exceed window ({threshold.window})"
        )


def lambdas_have_an_effect(noise: schema.Noise) -> Conflicts:
    if noise.detector == "judge" and noise.lambdas is not None:
        yield Conflict(("lambdas",), "has no effect with detector judge, which reads no logits", "remove it")


def answer_leaves_room(benchmark: schema.Answering) -> Conflicts:
    if benchmark.max_length is not None and benchmark.max_tokens >= benchmark.max_length:
        yield Conflict(
            ("max_tokens", "max_length"),
            f"max_tokens ({benchmark.max_tokens}) must be smaller than max_length ({benchmark.max_length})",
        )


def mt_bench_can_grade(benchmark: schema.MtBench) -> Conflicts:
    if benchmark.endpoint is not None and benchmark.judge_prompts is None:
        yield Conflict(
            ("endpoint",), "endpoint needs judge_prompts", "add it: the judge_prompts.jsonl that FastChat publishes"
        )
    grading = [name for name in ("judge_prompts", "reference_answers") if getattr(benchmark, name) is not None]
    if benchmark.endpoint is None and grading:
        yield Conflict(
            tuple(grading),
            "judge_prompts and reference_answers need an endpoint to grade with",
            f"add endpoint, or remove {' and '.join(grading)}",
        )


def llm_comparison_names_its_judge(benchmark: schema.Pairwise) -> Conflicts:
    judge = benchmark.judge
    if judge.type == "llm" and judge.endpoint is None and judge.model_name_or_path is None:
        yield Conflict(("judge.type",), "llm must be another model", "give it model_name_or_path or endpoint")


def comparison_names_both_models(judge: schema.ImplicitRewardComparison) -> Conflicts:
    if (judge.policy is None) != (judge.reference is None):
        yield Conflict(("policy", "reference"), "policy and reference belong together", "give both, or neither")


def evaluation_names_its_judge(evaluation: schema.Evaluation) -> Conflicts:
    models = ("reward_policy", "reward_reference")
    given = [name for name in models if getattr(evaluation, name) is not None]
    if evaluation.reward == "implicit_reward" and len(given) < len(models):
        missing = " and ".join(name for name in models if name not in given)
        yield Conflict(("reward",), "implicit_reward needs reward_policy and reward_reference", f"add {missing}")
    if evaluation.reward != "implicit_reward":
        for name in given:
            yield Conflict((name,), "needs reward implicit_reward", f"set it, or remove {name}")


# --- rules between sections of a recipe


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
    is_a_policy_of_the_run = judge.policy in ("previous", "seed", "mean")
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


def qlora_judges_on_one_base(recipe: schema.Recipe) -> Conflicts:
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
    "judge.policy",
    "refine.loss",
    "refine.divergence",
    "refine.reference_mix",
    "refine.sft_weight",
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


def there_is_something_to_do(recipe: schema.Recipe) -> Conflicts:
    if recipe.data.seed_labels == 0 and not recipe.iterations and recipe.sft is None:
        yield Conflict(
            ("data.seed_labels",),
            "there is nothing to do: no sft section, data.seed_labels is 0 and data.prompts_per_iteration is []",
            "set one of them",
        )


def verdict_leaves_room(recipe: schema.Recipe) -> Conflicts:
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


def benchmarks_fit_the_run(recipe: schema.Recipe) -> Conflicts:
    for i, benchmark in enumerate(recipe.evaluation.benchmarks):
        found = answer_fits_the_model(benchmark, recipe.model)
        for conflict in (*found, *(_pairwise(benchmark, recipe) if benchmark.type == "pairwise" else ())):
            yield conflict.below(f"evaluation.benchmarks.{i}")


def answer_fits_the_model(benchmark: schema.Answering, model: schema.Model | schema.BenchmarkedModel) -> Conflicts:
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


def benchmark_stands_alone(job: schema.BenchmarkJob) -> Conflicts:
    """A benchmark without a run names all models and prompts itself."""
    found = answer_fits_the_model(job.benchmark, job.model)
    for conflict in (*found, *(_without_run(job.benchmark) if job.benchmark.type == "pairwise" else ())):
        yield conflict.below("benchmark")


def vllm_python_has_an_effect(job: schema.BenchmarkJob) -> Conflicts:
    if job.compute.vllm_python is not None and job.backend.type != "vllm":
        yield Conflict(
            ("compute.vllm_python",), f"has no effect with backend.type {job.backend.type}", "set backend.type to vllm"
        )


def _without_run(benchmark: schema.Pairwise) -> Conflicts:
    judge = benchmark.judge
    if benchmark.against == "init":
        yield Conflict(("against",), "there is no run whose pi_init could be meant", "name a folder or a Hub id")
    if benchmark.prompts is None:
        yield Conflict(("prompts",), "there are no prompts to answer", "set it")
    if judge.type == "implicit_reward" and judge.policy is None:
        yield Conflict(("judge.policy",), "there is no run whose pi_0 could judge", "give policy and reference")
