"""What a run needs from outside is looked at before its first stage: one line, the documented code, nothing written."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spa_recipes.errors import DataError, RecipeError, SpaError, TryAgainError
from spa_recipes.plan import compile_plan
from spa_recipes.plan.judge_job import compile_judge_plan
from spa_recipes.recipe.jobs import JudgeJob
from spa_recipes.recipe.schema import DatasetSource, ImplicitRewardJudge, Model, Recipe
from spa_recipes.run.preflight import check_inputs
from spa_recipes.run.rundir import RunDir
from spa_recipes.state.digests import DigestMemo
from tests.kit.finished_runs import commit
from tests.kit.models import CONFIG, REMOTE, TOKENIZER, model_folder, recipe_for
from tests.kit.recipes import merged


def refusal(tmp_path: Path, recipe: dict[str, Any]) -> SpaError:
    plan = compile_plan(Recipe.model_validate(recipe), DigestMemo(tmp_path / "memo"))
    with pytest.raises(SpaError) as caught:
        check_inputs(plan, RunDir(tmp_path / "runs" / "mini"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()
    return caught.value


def accepted(tmp_path: Path, recipe: dict[str, Any]) -> None:
    plan = compile_plan(Recipe.model_validate(recipe), DigestMemo(tmp_path / "memo"))
    check_inputs(plan, RunDir(tmp_path / "runs" / "mini"))


INDEX = json.dumps({"weight_map": {"x": "model-1.safetensors", "y": "model-2.safetensors"}})
FOLDERS: dict[str, tuple[dict[str, Any], type[SpaError], str, str]] = {
    "no config": ({"config__json": None}, DataError, "there is no config.json", "as `save_pretrained` writes it"),
    "broken config": ({"config__json": "{"}, DataError, "config.json cannot be read", "save it again"),
    "config is a list": ({"config__json": "[]"}, DataError, "config.json is not a JSON object", "save the model again"),
    "adapter": ({"config__json": None, "adapter_config__json": "{}"}, DataError, "only an adapter", "merge it"),
    "no weights": ({"model__safetensors": None}, DataError, "there are no weights", "download or save the model again"),
    "pickle": (
        {"model__safetensors": None, "pytorch_model__bin": "x"},
        DataError,
        "its weights are a pickle (pytorch_model.bin)",
        "save it again, which writes model.safetensors",
    ),
    "part missing": (
        {"model__safetensors": None, "model__safetensors__index__json": INDEX, "model-1__safetensors": "x"},
        DataError,
        "the weights model-2.safetensors are missing",
        "download or save the model again",
    ),
    "quantised": (
        {"config__json": json.dumps({**CONFIG, "quantization_config": {"quant_method": "gptq"}})},
        DataError,
        "its weights are stored quantised (gptq)",
        "give the model that it was made from",
    ),
    "bidirectional": (
        {"config__json": json.dumps({**CONFIG, "use_bidirectional_attention": True})},
        DataError,
        "it is no causal language model",
        "give a model that generates text",
    ),
    "growing positions": (
        {
            "config__json": json.dumps(
                {**CONFIG, "original_max_position_embeddings": 1024, "rope_scaling": {"type": "longrope"}}
            )
        },
        RecipeError,
        "model.max_length (2048) is more than 1024",
        "set model.max_length to 1024 or less",
    ),
    "no embedding": (
        {
            "config__json": json.dumps({**CONFIG, "vocab_size": 2}),
            "tokenizer_config__json": json.dumps({"chat_template": "{{ messages }}<end>"}),
        },
        DataError,
        "the model has no embedding for: <end> is 2, and there are 2",
        "resize_token_embeddings",
    ),
    "no tokenizer": ({"tokenizer__json": None}, DataError, "there is no tokenizer", "the tokenizer beside the model"),
    "no template": (
        {"tokenizer_config__json": "{}"},
        DataError,
        "the tokenizer has no chat template",
        "name a file with one in model.chat_template",
    ),
    "positions": (
        {"config": {"max_position_embeddings": 1024}},
        RecipeError,
        "model.max_length (2048) is more than the model's max_position_embeddings (1024)",
        "set model.max_length to 1024, model.max_prompt_length to 992 and sampling.max_tokens to 32, or less",
    ),
    "other name": ({"config": {"max_position_embeddings": None, "n_positions": 8}}, RecipeError, "n_positions (8)", ""),
    "inner": (
        {"config": {"text_config": {"max_position_embeddings": 9}}},
        RecipeError,
        "max_position_embeddings (9)",
        "",
    ),
    "remote code": (
        {"config": REMOTE},
        RecipeError,
        "this model runs Python code of its own (auto_map in config.json)",
        "if you trust it, set model.trust_remote_code: true",
    ),
    "remote tokenizer": (
        {
            "config": {"model_type": "own"},
            "tokenizer_config__json": json.dumps({"auto_map": {"AutoTokenizer": ["t.T", None]}, "chat_template": "x"}),
        },
        RecipeError,
        "(auto_map in tokenizer_config.json)",
        "model.trust_remote_code: true",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_is_no_usable_model(case: str, tmp_path: Path) -> None:
    files, kind, what, fix = FOLDERS[case]
    folder = model_folder(tmp_path / "model", **files)
    error = refusal(tmp_path, recipe_for(folder))
    assert type(error) is kind
    assert error.where == f"model.model_name_or_path: {folder}"
    assert what in error.what
    assert fix in error.fix
    assert error.fix


@pytest.mark.parametrize(
    ("files", "changes"),
    [
        ({}, {}),
        ({"tokenizer_config__json": "{}", "chat_template__jinja": "x"}, {}),
        ({"tokenizer_config__json": "{}"}, {"model": {"chat_template": __file__}}),
        ({"config": REMOTE}, {"model": {"trust_remote_code": True}}),
        ({"config": {**REMOTE, "model_type": "llama"}}, {}),  # transformers has code of its own for it
        ({"config": {"max_position_embeddings": 1024, "rope_scaling": {"type": "linear", "factor": 2.0}}}, {}),
        ({"config": {"max_position_embeddings": 1024}}, {"model": {"max_length": 1024, "max_prompt_length": 512}}),
        (
            {
                "model__safetensors": None,
                "model__safetensors__index__json": INDEX,
                "model-1__safetensors": "x",
                "model-2__safetensors": "y",
            },
            {},
        ),
    ],
)
def test_usable_models(files: dict[str, Any], changes: dict[str, Any], tmp_path: Path) -> None:
    accepted(tmp_path, recipe_for(model_folder(tmp_path / "model", **files), **changes))


def other_vocabulary() -> str:
    return json.dumps({**TOKENIZER, "model": {"type": "BPE", "vocab": {"b": 0, "a": 1}}})


EVALUATION = {"reward": "implicit_reward", "reward_policy": "POLICY", "reward_reference": "REFERENCE"}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "judge.reference": ("judge", {"type": "implicit_reward", "reference": "REFERENCE"}),
    "evaluation.reward_policy": ("evaluation", {**EVALUATION, "reward_reference": "GOOD"}),
    "evaluation.reward_reference": ("evaluation", {**EVALUATION, "reward_policy": "GOOD"}),
    "judge.model_name_or_path": ("judge", {"type": "reward_model", "model_name_or_path": "REWARD"}),
}


@pytest.mark.parametrize("key", OTHERS)
def test_every_model_from_outside_is_looked_at(key: str, tmp_path: Path) -> None:
    section, settings = OTHERS[key]
    good, bad = model_folder(tmp_path / "good"), model_folder(tmp_path / "bad", model__safetensors=None)
    placed = {name: {"GOOD": str(good)}.get(value, str(bad)) if value.isupper() else value
              for name, value in settings.items()}  # fmt: skip
    recipe = merged(recipe_for(good), {section: placed})
    if section == "judge":
        recipe["judge"] = placed
    error = refusal(tmp_path, recipe)
    assert error.where == f"{key}: {bad}"
    assert "there are no weights" in error.what
    (bad / "model.safetensors").write_text("x")
    if key == "judge.model_name_or_path":
        assert "one output (num_labels 1), not 2" in refusal(tmp_path, recipe).what
        (bad / "config.json").write_text(json.dumps({**CONFIG, "id2label": {"0": "x"}}))
    accepted(tmp_path, recipe)
    (bad / "tokenizer.json").write_text(other_vocabulary())
    if key == "judge.model_name_or_path":  # which reads texts, not the policy's tokens
        accepted(tmp_path, recipe)
    else:
        assert f"the tokenizers of this model and of {good} differ" in refusal(tmp_path, recipe).what


TANGENT = {"type": "implicit_reward", "method": "tangent"}


@pytest.mark.parametrize("key", ["judge.reference", "judge.policy", "evaluation.reward_policy"])
def test_a_tangent_needs_two_models_of_one_shape(key: str, tmp_path: Path) -> None:
    """Said before anything runs, although the policies are trained in the run: they have the shape of its model."""
    good, other = model_folder(tmp_path / "good", {"hidden_size": 64}), model_folder(tmp_path / "other")
    section, name = key.split(".")
    evaluation = {**EVALUATION, "reward_policy": str(other), "reward_reference": str(good)}
    changes = {"judge": {**TANGENT, name: str(other)}} if section == "judge" else {"evaluation": evaluation}
    recipe = merged(recipe_for(good), {"judge": TANGENT, **changes})
    accepted(tmp_path, recipe)  # a default is left out of some config.json
    (other / "config.json").write_text(json.dumps({**CONFIG, "hidden_size": 32}))
    error = refusal(tmp_path, recipe)
    assert error.where == f"{key}: {other}"
    assert error.what == f"the method tangent needs two models of one shape: hidden_size is 32, and 64 in {good}"
    recipe["judge"] = {**recipe["judge"], "method": "auto"}
    accepted(tmp_path, recipe)


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"config": {"num_hidden_layers": 3}},
         "--policy: P: the method tangent needs two models of one shape: num_hidden_layers is 2, and 3 in R; give a "
         "policy and the model that it was trained from, or set the method to difference"),
        ({"config": {"vocab_size": 9}},
         "--policy: P: the method tangent needs two models of one shape: vocab_size is 3, and 9 in R; "),
        ({"chat_template__jinja": "{{ other }}"},
         "--policy: P: the method tangent needs two models with one chat template, and that of R differs; "),
        ({"tokenizer__json": other_vocabulary()}, "--reference: R: the tokenizers of this model and of P differ; "),
    ],
    ids=["shape", "vocabulary", "template", "tokenizer"],
)  # fmt: skip
def test_a_tangent_of_spa_judge_needs_two_alike(files: dict[str, Any], line: str, tmp_path: Path) -> None:
    policy = model_folder(tmp_path / "p", {"num_hidden_layers": 2, "vocab_size": 3})
    reference = model_folder(tmp_path / "r", **files)
    job = judge_job(policy, reference)
    tangent = job.model_copy(update={"judge": ImplicitRewardJudge(method="tangent")})
    with pytest.raises(DataError) as caught:
        check_inputs(compile_judge_plan(tangent, DigestMemo(tmp_path / "memo")), RunDir(tmp_path / "out.spa"))
    assert str(caught.value).replace(str(reference), "R").replace(str(policy), "P").startswith(line)
    if "tokenizer__json" not in files:
        check_inputs(compile_judge_plan(job, DigestMemo(tmp_path / "memo")), RunDir(tmp_path / "out.spa"))


def judge_job(policy: Path, reference: Path, **model: Any) -> JudgeJob:
    pairs = policy.parent / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    return JudgeJob(
        name="j",
        model=Model(model_name_or_path=str(policy), **model),
        reference=str(reference),
        pairs=DatasetSource(source=str(pairs)),
        judge=ImplicitRewardJudge(),
    )


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"tokenizer__json": other_vocabulary()}, "--reference: R: the tokenizers of this model and of P differ; "),
        ({"tokenizer_config__json": "{}"}, "--reference: R: the tokenizer has no chat template; name a file with one "
                                           "in --chat-template"),
        ({"config": {"max_position_embeddings": 99}}, "--reference: R: --max-length (2048) is more than the model's "
                                                      "max_position_embeddings (99); set --max-length to 99 or less"),
        ({"config": REMOTE}, "--reference: R: this model runs Python code of its own (auto_map in config.json), which "
                             "is off; if you trust it, set --trust-remote-code"),
    ],
)  # fmt: skip
def test_spa_judge_speaks_of_its_options(files: dict[str, Any], line: str, tmp_path: Path) -> None:
    policy, reference = model_folder(tmp_path / "p"), model_folder(tmp_path / "r", **files)
    plan = compile_judge_plan(judge_job(policy, reference), DigestMemo(tmp_path / "memo"))
    with pytest.raises(SpaError) as caught:
        check_inputs(plan, RunDir(tmp_path / "out.spa"))
    assert str(caught.value).replace(str(reference), "R").replace(str(policy), "P").startswith(line)


def test_what_is_done_needs_nothing_any_more(tmp_path: Path) -> None:
    """A finished run can be looked at when its model is gone; `until` looks no further than the stages up to it."""
    folder = model_folder(tmp_path / "model", model__safetensors=None)
    plan = compile_plan(Recipe.model_validate(recipe_for(folder)), DigestMemo(tmp_path / "memo"))
    run = RunDir(tmp_path / "runs" / "mini")
    check_inputs(plan, run, until="data")
    with pytest.raises(DataError):
        check_inputs(plan, run, until="seed")
    for stage in plan.stages:
        commit(run, plan, stage.id)
    check_inputs(plan, run)


@pytest.mark.parametrize("link", ["stages", "stages/00-data-abcdefgh", "stages/00-data-abcdefgh/work"])
def test_a_link_leads_no_output_out_of_the_run(link: str, tmp_path: Path) -> None:
    plan = compile_plan(Recipe.model_validate(recipe_for(model_folder(tmp_path / "m"))), DigestMemo(tmp_path / "memo"))
    run, outside = RunDir(tmp_path / "runs" / "mini"), tmp_path / "outside"
    outside.mkdir()
    (run.path / link).parent.mkdir(parents=True)
    (run.path / link).symlink_to(outside)
    with pytest.raises(DataError, match="a run writes into its own folder only") as caught:
        check_inputs(plan, run)
    assert caught.value.where == str(run.path / link)


def hub_says(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The Hub answers every question with an error of this name, as its client raises it."""
    import huggingface_hub
    from huggingface_hub import errors

    def fail(*args: Any, **kwargs: Any) -> Any:
        kind = ConnectionError if name == "ConnectionError" else getattr(errors, name)
        error = kind.__new__(kind)
        Exception.__init__(error, f"{name}: see the documentation\nfor more")
        if name != "ConnectionError":
            error.response = SimpleNamespace(status_code=403 if name == "GatedRepoError" else 404)
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    for question in ("auth_check", "model_info", "dataset_info"):
        monkeypatch.setattr(huggingface_hub.HfApi, question, fail)
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ("name", "kind", "what", "fix"),
    [
        ("GatedRepoError", DataError, "the model is gated on the Hub",
         "ask for access at https://huggingface.co/org/model and set HF_TOKEN"),
        ("RepositoryNotFoundError", DataError, "no such model on this disk or on the Hub", "one needs HF_TOKEN"),
        ("RevisionNotFoundError", DataError, "no such revision of the model", "check revision"),
        ("ConnectionError", TryAgainError, "the Hub cannot be reached", "run the command again"),
    ],
)  # fmt: skip
def test_a_model_that_the_hub_does_not_give(
    name: str, kind: type[SpaError], what: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_says(monkeypatch, name)
    error = refusal(tmp_path, recipe_for("org/model"))
    assert type(error) is kind
    assert error.where == "model.model_name_or_path: org/model"
    assert what in error.what
    assert fix in error.fix


@pytest.mark.parametrize("key", ["data.pairs.source", "data.prompts.source", "sft.data.source"])
def test_a_dataset_that_the_hub_does_not_give(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_says(monkeypatch, "GatedRepoError")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    recipe = recipe_for(model_folder(tmp_path / "model"))
    hub = {"type": "dataset", "source": "org/data"}
    if key == "sft.data.source":
        recipe["sft"] = {"data": hub}
    else:
        recipe["data"][key.split(".")[1]] = hub
    if key == "data.pairs.source":
        recipe["evaluation"] = {"enabled": False}
    error = refusal(tmp_path, recipe)
    assert error.where == f"{key}: org/data"
    assert "the dataset is gated" in error.what
    hub_says(monkeypatch, "ConnectionError")
    assert isinstance(refusal(tmp_path, recipe), TryAgainError)
    (tmp_path / "cache" / "org___data").mkdir(parents=True)  # prepared before: the Hub need not be asked
    accepted(tmp_path, recipe)


def test_a_hub_model_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    folder = model_folder(tmp_path / "model", tokenizer_config__json="{}")
    asked: set[str | None] = set()

    def download(name: str, file: str, revision: str | None = None) -> str:
        asked.add(revision)
        if not (folder / file).is_file():
            error = EntryNotFoundError.__new__(EntryNotFoundError)
            raise error
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: None)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "file_exists", lambda self, name, file, revision: (folder / file).is_file()
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda self, name, **_: SimpleNamespace(sha="1" * 40, siblings=[])
    )
    recipe = recipe_for("org/model", model={"revision": "abc"})
    assert "no chat template" in refusal(tmp_path, recipe).what
    (folder / "chat_template.jinja").write_text("x")
    accepted(tmp_path, recipe)
    assert asked == {"1" * 40}
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "its weights are a pickle" in refusal(tmp_path, recipe).what
