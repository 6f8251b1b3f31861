"""The rules that settings must follow together: which values contradict each other, although each is valid by itself.

A rule is a function that yields what is wrong with one section. `schema` names the rules of a section as its `RULES`;
its types and bounds are checked before. Rules on settings of several sections are in `document_rules`.
"""

from __future__ import annotations

import re
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


_OPTION = re.compile(r"[a-z][a-z-]*")
_OWN_OPTIONS = ("nodes", "gpus-per-node", "time", "partition", "account", "qos", "requeue", "no-requeue", "job-name")


def sbatch_options_are_options(executor: schema.SlurmExecutor) -> Conflicts:
    for name in executor.sbatch:
        if not _OPTION.fullmatch(name):
            yield Conflict(("sbatch",), f"{name} is no long name of an option of sbatch", "write it without dashes")
        elif name in _OWN_OPTIONS:
            yield Conflict(("sbatch",), f"{name} is set by compute.executor itself", "set it there")
    for line in executor.setup:
        if "\n" in line:
            yield Conflict(("setup",), "has a line that is several", "make each line an entry of its own")


def lora_leaves_the_head(lora: schema.Lora) -> Conflicts:
    modules = lora.lora_target_modules
    if isinstance(modules, list) and any("lm_head" in module for module in modules):
        yield Conflict(
            ("lora_target_modules",), "must not name lm_head", "remove it: log-probs are read from its weight directly"
        )


def template_variables_are_free(model: schema.ModelSource | schema.LlmJudge) -> Conflicts:
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
        half = model.max_length // 2
        yield Conflict(
            ("max_prompt_length", "max_length"),
            f"max_prompt_length ({model.max_prompt_length}) must be smaller than max_length ({model.max_length})",
            f"set max_prompt_length to {half}, or raise max_length" if half else "raise max_length to 2 at least",
        )


def rounding_has_an_effect(model: schema.Model) -> Conflicts:
    if model.save_rounding is not None and model.dtype == "float32":
        yield Conflict(
            ("save_rounding",),
            f"{model.save_rounding} has no effect with dtype float32, in which trained weights are saved as they are",
            "remove it, or set dtype to bfloat16 or float16",
        )


def sharding_has_an_effect(
    executor: schema.AccelerateExecutor | schema.SlurmExecutor | schema.RayExecutor,
) -> Conflicts:
    if executor.sharding in ("auto", "none"):
        return
    if executor.type == "accelerate" and executor.config_file is not None:
        yield Conflict(
            ("sharding", "config_file"), "config_file says how the training is shared out", "remove one of them"
        )
    elif executor.type != "accelerate" and executor.gpus_per_node == 0:
        yield Conflict(
            ("sharding", "gpus_per_node"),
            f"{executor.sharding} shares a training out over GPUs, and gpus_per_node is 0",
            "remove sharding, or set gpus_per_node to the number of GPUs",
        )
    elif executor.training_processes == 1:
        key = "num_processes" if executor.type == "accelerate" else "gpus_per_node"
        yield Conflict(
            ("sharding", key),
            f"{executor.sharding} shares a training out over processes, and there is one",
            f"remove sharding, or set {key} to the number of GPUs",
        )


def batch_splits(training: schema.Training) -> Conflicts:
    total, per_device = training.global_batch_size, training.per_device_train_batch_size
    if total % per_device:
        yield Conflict(
            ("global_batch_size", "per_device_train_batch_size"),
            f"global_batch_size ({total}) must be a multiple of per_device_train_batch_size ({per_device})",
        )


def one_member_shares_nothing(members: schema.Members) -> Conflicts:
    if members.count == 1 and members.share != "disjoint":
        yield Conflict(
            ("share", "count"),
            f"{members.share} has no effect with one member, which is pi_0",
            "raise count, or remove it",
        )


def distilled_pairs_are_judged(training: schema.RefineTraining) -> Conflicts:
    if training.loss == "distill" and training.seed_replay:
        yield Conflict(
            ("loss", "seed_replay"),
            "distill learns the judge's margins, and replayed seed pairs have none",
            "remove seed_replay, or choose another loss",
        )


def sppo_reads_answers(training: schema.RefineTraining) -> Conflicts:
    """`sppo` learns how far each answer is to go by itself: it has no pairs, and no margins."""
    if training.loss != "sppo":
        return
    if training.seed_replay:
        yield Conflict(
            ("loss", "seed_replay"),
            "sppo learns how often each sampled response wins, and replayed seed pairs are not sampled",
            "remove seed_replay, or choose another loss",
        )
    if training.divergence != "reverse_kl":
        what = f"{training.divergence} changes the margin of a pair, which loss sppo does not read"
        yield Conflict(("divergence", "loss"), what, "remove it, or choose another loss")
    if training.reference_mix:
        yield Conflict(
            ("reference_mix", "loss"),
            "a mixed reference is known up to its normaliser, which does not cancel in the log-ratios of loss sppo",
            "remove it, or choose another loss",
        )


def token_credit_is_of_margins(training: schema.RefineTraining) -> Conflicts:
    if training.token_credit is None:
        return
    if training.loss == "sppo":
        yield Conflict(("token_credit", "loss"), "loss sppo has no margin whose tokens could be weighed", "remove it")
    if training.divergence != "reverse_kl":
        what = f"divergence {training.divergence} is of whole responses, whose tokens cannot be weighed"
        yield Conflict(("token_credit", "divergence"), what, "remove one of them")
    if training.reference_mix:
        what = "a mixed reference is known of whole responses, whose tokens cannot be weighed"
        yield Conflict(("token_credit", "reference_mix"), what, "remove one of them")
    if training.seed_replay:
        what = "replayed seed pairs have no rewards of tokens: nothing was sampled"
        yield Conflict(("token_credit", "seed_replay"), what, "remove one of them")


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
    if judge.model_name_or_path is None and judge.chat_template_kwargs:
        fix = "add it, or set model.chat_template_kwargs, which are those of a policy that judges"
        yield Conflict(("chat_template_kwargs",), "needs model_name_or_path", fix)
    if judge.endpoint is not None and judge.max_length is not None:
        yield Conflict(("max_length",), "has no effect on an endpoint, whose server has its own limit", "remove it")


def only_scores_are_sampled(judge: schema.LlmJudge) -> Conflicts:
    if judge.samples > 1 and judge.mode == "pairs":
        yield Conflict(("samples",), "has no effect with mode pairs", "set mode to single, or remove it")


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


def tasks_are_distinct(benchmark: schema.LmEval) -> Conflicts:
    twice = next((name for i, name in enumerate(benchmark.tasks) if name in benchmark.tasks[:i]), None)
    if twice is not None:
        yield Conflict(("tasks",), f"{twice} is there twice", "name each task once")


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
