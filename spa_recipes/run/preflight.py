"""What a run takes from outside, looked at before its first stage starts: models, their tokenizers, datasets.

Only small files are read and no heavy library is imported, so a mistake is told in seconds. Models come from a folder
or from the Hub (its cache, where the environment forbids the network).
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spa_recipes.benchmarks import alpaca_eval, mt_bench
from spa_recipes.data.asked import check_counted
from spa_recipes.data.hub import ask
from spa_recipes.data.model_files import ModelFiles, hub_is_offline
from spa_recipes.data.places import is_path, local_path, no_such_folder
from spa_recipes.errors import DataError, RecipeError, TryAgainError, setting
from spa_recipes.models.lora_names import CONFIG as ADAPTER_CONFIG
from spa_recipes.plan import ALPACA_EVAL_PROMPTS, KINDS, Content, External, Plan, Stage, is_of_benchmark
from spa_recipes.recipe.jobs import AnyRecipe, BenchmarkJob, JudgeJob
from spa_recipes.recipe.schema import Endpoint, Recipe
from spa_recipes.run import model_preflight
from spa_recipes.run.cluster_preflight import check_cluster
from spa_recipes.run.downloads import check_download
from spa_recipes.run.fit import check_fit
from spa_recipes.run.intact import check_made_model
from spa_recipes.run.launch_preflight import check_launch
from spa_recipes.run.packages import missing_packages, missing_tasks
from spa_recipes.run.rundir import RunDir
from spa_recipes.run.tangent_preflight import check_adapter, refuse_different
from spa_recipes.run.vllm_preflight import IN_A_JOB, IN_A_RECIPE, check_vllm

WEIGHTS = "model.safetensors"
SHARDED_WEIGHTS = "model.safetensors.index.json"
PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")

_OPTIONS = {
    "model.model_name_or_path": "--policy",
    "reference": "--reference",
    "adapter": "--policy",
    "pairs.source": "--pairs",
    "model.max_length": "--max-length",
    "model.chat_template": "--chat-template",
    "model.trust_remote_code": "--trust-remote-code",
}
"""What `spa judge` calls the keys of its job."""


def check_inputs(plan: Plan, run: RunDir, until: str | None = None, *, on_nodes: bool = True) -> None:
    """Look at every model and dataset from outside that the stages still to be done will read.

    With `until`, only that stage and the stages that it needs count. Unless `on_nodes`, this is before a job is
    submitted, and the machine is not one on which stages run.

    Raises:
        DataError: one is missing or not usable; the run's folder holds links.
        RecipeError: a model does not go with the recipe's settings.
        TryAgainError: the network failed.
    """
    run.check()
    left = [stage for stage in plan.until(until) if not run.is_done(stage, plan)]
    recipe = plan.recipe
    works = any(KINDS[stage.kind].loads_model for stage in left)
    if missing := next(missing_packages(recipe), None) if works else None:
        raise missing
    if isinstance(recipe, Recipe) and any(stage.kind == "data" for stage in left):
        check_counted(recipe.data)
    check_launch(left, recipe)
    check_fit(left, plan)
    if on_nodes:
        check_cluster(left, recipe.compute.executor)
    check_vllm(left, recipe.compute, IN_A_JOB if isinstance(recipe, BenchmarkJob | JudgeJob) else IN_A_RECIPE)
    for dataset in _datasets(left):
        with _named(recipe, dataset):
            _check_hub_dataset(dataset.location)
            if not _is_cached_dataset(dataset.location):
                check_download("dataset", dataset.location, dataset.revision, recipe.storage.max_download_gb)
    uses = _models(left)
    _policy_as_judge(left, uses, recipe)
    for model, use in uses.items():
        with _named(recipe, model):
            check_made_model(model.location)
            if not is_path(model.location):
                check_download("model", model.location, model.revision, recipe.storage.max_download_gb)
            _check_model(ModelFiles(model.location, model.revision), use, recipe)
    # A benchmark's models each have their own tokens; those of its judge are compared by the stage that makes them.
    _check_vocabularies(recipe, _models([stage for stage in left if not is_of_benchmark(stage)]))
    if any(stage.kind == "lm_eval" for stage in left):
        for problem in missing_tasks(recipe):
            raise problem
    for stage in left:
        _check_benchmark(stage)
        _check_both_models(stage, recipe)


# --- what is read


@dataclass
class _Use:
    """How the stages use a model.

    Attributes:
        weights: they are loaded.
        texts: its own tokenizer and chat template render texts.
        tokens: it reads token ids that the policy's tokenizer made.
        reward: it is a reward model.
        asked: the stage in which it compares answers in words, if it does.
        judge: it is no policy then, and has a chat template of its own.
    """

    weights: bool = False
    texts: bool = False
    tokens: bool = False
    reward: bool = False
    asked: Stage | None = None
    judge: bool = False


def _datasets(stages: Sequence[Stage]) -> list[External]:
    """Datasets that are on the Hub; a local one was found when the plan was made."""
    found = {
        value: None
        for stage in stages
        for name, value in stage.inputs.items()
        if _reads(stage, name) == "dataset" and isinstance(value, External) and value.fingerprint.startswith("hub:")
    }
    return [dataset for dataset in found if local_path(dataset.location) is None]


def _models(stages: Sequence[Stage]) -> dict[External, _Use]:
    uses: dict[External, _Use] = {}
    for stage in stages:
        for name, value in stage.inputs.items():
            content = _reads(stage, name)
            if not isinstance(value, External) or content in ("weights", "dataset", "file", "rows"):
                continue
            use = uses.setdefault(value, _Use())
            use.weights |= content != "tokenizer"
            if content == "tokenizer":
                use.texts = True
            elif content == "reward model":
                use.reward = use.texts = True
            elif content == "judge":
                use.judge = use.texts = True
                use.asked = stage
            else:
                use.texts |= content == "policy"
                use.tokens = True
    return uses


def _reads(stage: Stage, name: str) -> Content:
    return KINDS[stage.kind].content(name)


def _policy_as_judge(stages: Sequence[Stage], uses: Mapping[External, _Use], recipe: AnyRecipe) -> None:
    """Where the policy judges in words, the model that it is made from has to have room for the questions."""
    asked = next((stage for stage in stages if stage.kind == "verdicts" and "policy" in stage.inputs), None)
    for model, use in uses.items():
        if asked is not None and _is_policy(recipe, model):
            use.asked = asked


def _judge_key(stage: Stage, name: str) -> str:
    """A setting of the llm judge that is asked in a stage, which may be a recipe's or a benchmark's."""
    question = stage.inputs["question"]
    assert isinstance(question, External)
    return f"{question.key.removesuffix('.prompt')}.{name}"


@contextmanager
def _named(recipe: AnyRecipe, value: External) -> Iterator[None]:
    """Put the setting that names a model or dataset in front of an error about it."""
    with setting(_word(recipe, value.key)):
        yield


def _word(recipe: AnyRecipe, key: str) -> str:
    """A key as the user knows it."""
    if not isinstance(recipe, JudgeJob):
        return key
    if recipe.adapter is not None and key == "model.model_name_or_path":
        key = "reference"
    return _OPTIONS.get(key, key)


# --- datasets


def _check_hub_dataset(name: str) -> None:
    """Whether a dataset of the Hub is there for this user; one in the cache will do where the Hub is out of reach."""
    from huggingface_hub import HfApi

    try:
        ask("dataset", name, lambda: HfApi().auth_check(name, repo_type="dataset"))
    except (DataError, TryAgainError) as problem:
        if not (_is_cached_dataset(name) and (hub_is_offline() or isinstance(problem, TryAgainError))):
            raise


def _is_cached_dataset(name: str) -> bool:
    """Whether `datasets` has prepared this dataset before."""
    from huggingface_hub import constants

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    return (cache / name.replace("/", "___")).is_dir()


# --- benchmarks


_MT_BENCH_FILES: dict[str, Callable[[Path], object]] = {
    "questions": mt_bench.read_questions,
    "judge_prompts": mt_bench.read_judge_prompts,
    "reference_answers": mt_bench.read_answers,
}
"""What reads a file of MT-Bench, by the name of the input."""


def _check_benchmark(stage: Stage) -> None:
    """What a benchmark's stage reads, and whether the service that it asks can be asked."""
    for name, value in stage.inputs.items():
        if isinstance(value, External) and name in _MT_BENCH_FILES:
            _MT_BENCH_FILES[name](Path(value.location))
    if isinstance(instructions := stage.inputs.get("instructions"), External):
        hub = instructions.location == ALPACA_EVAL_PROMPTS
        path = (
            alpaca_eval.hub_file(alpaca_eval.HUB_PROMPTS, instructions.revision) if hub else Path(instructions.location)
        )
        prompts = alpaca_eval.read_prompts(path)
        if "annotator" in stage.settings:
            alpaca_eval.reference_outputs(prompts, str(path))
            alpaca_eval.check_annotator(stage.settings["annotator"])
    if isinstance(endpoint := stage.settings.get("endpoint"), Endpoint):
        from spa_recipes.generation.api_key import api_key

        api_key(endpoint)


# --- models


def _check_model(files: ModelFiles, use: _Use, recipe: AnyRecipe) -> None:
    if not files.local and is_path(files.location):
        raise no_such_folder(files.location)
    config = files.read("config.json", needed=True)
    if not config:
        adapter = files.find(ADAPTER_CONFIG) is not None
        raise DataError(
            "only an adapter, without the model that it belongs to" if adapter else "there is no config.json",
            where=files.location,
            fix="merge it into its model first"
            if adapter
            else "give a folder as `save_pretrained` writes it, or a Hub id",
        )
    if use.weights:
        _check_fit(files, config, use, recipe)
        _check_weights(files)
    if not recipe.model.trust_remote_code:
        _refuse_remote_code(files, config, recipe, tokenizer=use.texts)
    if recipe.model.attn_implementation is None:
        key = _word(recipe, "model.attn_implementation")
        model_preflight.refuse_kernels(files, config, f", or set {key}: sdpa")
    if use.reward:
        _check_outputs(files, config)
    if use.tokens:
        if isinstance(recipe, Recipe):
            model_preflight.check_lengths(files, config, recipe)
        else:
            _check_positions(files, config, _word(recipe, "model.max_length"), recipe.model.max_length)
    if use.asked is not None:
        _check_positions(files, config, _judge_key(use.asked, "max_length"), use.asked.settings["model"].max_length)
    if use.texts:
        _check_tokenizer(files, use, recipe)


def _check_fit(files: ModelFiles, config: Mapping[str, Any], use: _Use, recipe: AnyRecipe) -> None:
    """What of a model cannot be used as these stages use it."""
    asked = use.asked.settings if use.asked is not None else {}
    if not (use.judge and asked["sampling"].backend.type == "vllm"):  # which serves quantised models
        model_preflight.refuse_quantised(files, config)
    if not use.reward:
        model_preflight.refuse_bidirectional(files, config)
    if use.tokens and not isinstance(recipe, JudgeJob):
        key, wanted = _word(recipe, "model.max_length"), recipe.model.max_length
        model_preflight.refuse_growing_positions(files, config, key, wanted)
        model_preflight.refuse_tied_adapter(files, config, recipe.model.lora)


def _check_weights(files: ModelFiles) -> None:
    """Weights are read from safetensors only: a pickle can run code when it is loaded."""
    if files.has(WEIGHTS):
        return
    if files.has(SHARDED_WEIGHTS):
        parts = files.read(SHARDED_WEIGHTS).get("weight_map")
        names = sorted(set(parts.values())) if isinstance(parts, dict) else []
        missing = [name for name in names if not files.has(name)]
        if not names or missing:
            what = f"the weights {missing[0]} are missing" if missing else f"{SHARDED_WEIGHTS} names no files"
            raise DataError(what, where=files.location, fix="download or save the model again")
        return
    pickled = next((name for name in PICKLED_WEIGHTS if files.has(name)), None)
    if pickled is not None:
        raise DataError(
            f"its weights are a pickle ({pickled}), which could run code when it is loaded",
            where=files.location,
            fix="where you trust it, load it with transformers and save it again, which writes model.safetensors",
        )
    raise DataError(
        f"there are no weights: neither {WEIGHTS} nor {SHARDED_WEIGHTS}",
        where=files.location,
        fix="download or save the model again",
    )


def _refuse_remote_code(files: ModelFiles, config: Mapping[str, Any], recipe: AnyRecipe, *, tokenizer: bool) -> None:
    """A model that only its own Python code can load, and a recipe that does not allow it."""
    contents = {"config.json": config}
    if tokenizer:
        contents["tokenizer_config.json"] = files.read("tokenizer_config.json")
    for name, content in contents.items():
        if content.get("auto_map") and not _is_built_in(config.get("model_type")):
            key = _word(recipe, "model.trust_remote_code")
            raise RecipeError(
                f"this model runs Python code of its own (auto_map in {name}), which is off",
                where=files.location,
                fix=f"if you trust it, set {key}" + ("" if key.startswith("--") else ": true"),
            )


def _is_built_in(model_type: object) -> bool:
    """Whether transformers knows the architecture itself, and so needs none of the code beside the weights."""
    from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES


def _check_outputs(files: ModelFiles, config: Mapping[str, Any]) -> None:
    labels = config.get("id2label")
    outputs = config.get("num_labels") or (len(labels) if isinstance(labels, dict) else 2)  # 2 is not written out
    if outputs != 1:
        raise DataError(
            f"a reward model has one output (num_labels 1), not {outputs}",
            where=files.location,
            fix="name a reward model, saved with num_labels=1",
        )


def _check_positions(files: ModelFiles, config: Mapping[str, Any], key: str, wanted: int) -> None:
    """Whether a model has positions for so many tokens, which `key` sets."""
    found = model_preflight.positions(config)
    if found is None:
        return
    name, limit = found
    if wanted > limit:
        raise RecipeError(
            f"{key} ({wanted}) is more than the model's {name} ({limit})",
            where=files.location,
            fix=f"set {key} to {limit} or less",
        )


def _check_tokenizer(files: ModelFiles, use: _Use, recipe: AnyRecipe) -> None:
    settings = files.read("tokenizer_config.json")
    if settings.get("auto_map") and recipe.model.trust_remote_code:
        return  # only its own code knows where its vocabulary and template are
    if not any(files.find(name) for name in TOKENIZERS):
        raise DataError(
            "there is no tokenizer", where=files.location, fix="download or save the tokenizer beside the model"
        )
    # The recipe's template is the policy's; a reward model reads texts by its own, and a judge has a key of its own.
    key, template = _word(recipe, "model.chat_template"), recipe.model.chat_template
    if use.judge and use.asked is not None:
        key, template = _judge_key(use.asked, "chat_template"), use.asked.settings["model"].chat_template
    given = template is not None and not use.reward
    template_of_model = files.chat_template()
    if not given and not template_of_model:
        fix = "name a reward model whose tokenizer has one" if use.reward else f"name a file with one in {key}"
        raise DataError("the tokenizer has no chat template", where=files.location, fix=fix)
    model_preflight.refuse_unknown_tokens(files, files.read("config.json"), files.vocabulary(), template_of_model)


# --- vocabularies


def _check_vocabularies(recipe: AnyRecipe, uses: Mapping[External, _Use]) -> None:
    """Models that score the policy's token ids must split text as the policy does.

    Compared where both have a `tokenizer.json`; `spa judge` compares the tokenizers themselves as well.
    """
    readers = [model for model, use in uses.items() if use.tokens]
    policy = next((model for model in readers if _is_policy(recipe, model)), None)
    if policy is None:
        return
    with _named(recipe, policy):
        ours = ModelFiles(policy.location, policy.revision).vocabulary()
    for model in readers:
        with _named(recipe, model):
            if (
                model != policy
                and ours
                and (theirs := ModelFiles(model.location, model.revision).vocabulary())
                and theirs != ours
            ):
                raise DataError(
                    f"the tokenizers of this model and of {policy.location} differ",
                    where=model.location,
                    fix="name models with the same tokenizer: a policy and the one that it was trained from",
                )


def _check_both_models(stage: Stage, recipe: AnyRecipe) -> None:
    """The models whose log-ratios a stage gives; those that the run trains have the shape of the recipe's model."""
    adapter = stage.inputs.get("adapter")
    if stage.kind == "log_ratios" and isinstance(adapter, External):
        with _named(recipe, adapter):
            check_adapter(adapter.location)
    if stage.settings.get("method") != "tangent":
        return
    rendered = isinstance(recipe, JudgeJob) or is_of_benchmark(stage)
    for roles in (("policy", "reference"), ("reward_policy", "reward_reference")):
        both = [stage.inputs[role] for role in roles if role in stage.inputs]
        outside = [ModelFiles(model.location, model.revision) for model in both if isinstance(model, External)]
        if len(both) < 2 or not outside or (len(outside) == 1 and recipe.model.is_sandbox):
            continue
        own = ModelFiles(recipe.model.model_name_or_path, recipe.model.revision)
        with _named(recipe, next(model for model in both if isinstance(model, External))):
            refuse_different(outside[0], [*outside, own][1], with_template=rendered and len(outside) == 2)


def _is_policy(recipe: AnyRecipe, model: External) -> bool:
    name = recipe.model.model_name_or_path
    return model.location in (name, str(Path(name).expanduser()))
