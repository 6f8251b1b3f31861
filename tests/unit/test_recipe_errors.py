"""What is said about recipes with a wrong shape: the line, the key, the fact and the remedy."""

from pathlib import Path

import pytest

from spa_recipes.errors import RecipeError
from spa_recipes.recipe.load import load_recipe
from tests.kit.recipe_texts import BASE

TYPES = "gold, implicit_reward, llm, random, reward_model"
TOP = (
    "name, description, hardware, seed, model, data, sft, seed_training, sampling, judge, refine, noise, "
    "final, control, evaluation, tracking, compute, storage"
)
SEED = "must be an integer of at least 0 and at most 4294967295"
SEED_LABELS = "must be an integer of at least 0 or a number above 0 and at most 1"
PROMPTS_EXAMPLE = "e.g. prompts: {type: dataset, source: prompts.jsonl}"
NO_NAME = "must be text that matches ^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"

# Text that follows BASE, so that it begins in line 6, and the line that it gets.
APPENDED = {
    # unknown keys
    "nois: {}": "6: nois: unknown key; did you mean noise?",
    "zzz: {}": f"6: zzz: unknown key; allowed here: {TOP}",
    "noise: {alhpa: 0.1}": "6: noise.alhpa: unknown key; did you mean alpha?",
    "noise: {Alpha: 0.1}": "6: noise.Alpha: unknown key; did you mean alpha?",
    "noise:\n  alpha: 0.1\n  lamdas: [1]": "8: noise.lamdas: unknown key; did you mean lambdas?",
    "refine: {learning_rate: 1e-5, learning_rat: 1e-5}": "6: refine.learning_rat: unknown key; "
    "did you mean learning_rate, which is set already?",
    "refine: {lr: 1e-5}": "6: refine.lr: unknown key; did you mean learning_rate?",
    "refine: {epochs: 2}": "6: refine.epochs: unknown key; did you mean num_train_epochs?",
    "refine: {gradient_accumulation_steps: 8}":
        "6: refine.gradient_accumulation_steps: unknown key; did you mean global_batch_size?",
    "sampling: {max_new_tokens: 8}": "6: sampling.max_new_tokens: unknown key; did you mean max_tokens?",
    "sampling: {num_return_sequences: 2}": "6: sampling.num_return_sequences: unknown key; did you mean n?",
    "learning_rate: 1e-5": "6: learning_rate: unknown key; it belongs under sft or seed_training or refine",
    "lr: 1e-5": "6: lr: unknown key; learning_rate belongs under sft or seed_training or refine",
    "temperature: 1": "6: temperature: unknown key; it belongs under sampling",
    "noise: {max_tokens: 1}": "6: noise.max_tokens: unknown key; it belongs under sampling or judge",
    "noise.alpha: 0.1": "6: noise.alpha: unknown key; write noise: {alpha: ...}",
    "noise.threshold.k: 5": "6: noise.threshold.k: unknown key; write noise: {threshold: {k: ...}}",
    "'': 1": f"6: '': unknown key; allowed here: {TOP}",
    "judge: {type: gold, beta: 0.1}": "6: judge.beta: unknown key; allowed for type gold: type",
    "judge: {type: gold, gold: 1}": "6: judge.gold: unknown key; allowed for type gold: type",
    "compute: {executor: {type: fork, num_processes: 2}}":
        "6: compute.executor.num_processes: unknown key; allowed for type fork: type",
    "  prompts: {type: sandbox, source: a}":
        "6: data.prompts.source: unknown key; allowed for type sandbox: type, rows, seed",
    "judge: {type: implicit_reward, betta: 0.1}": "6: judge.betta: unknown key; did you mean beta?",
    # the type of a section is left out
    "judge: {betta: 0.1}": "6: judge.betta: unknown key; did you mean beta?",
    "judge: {zzz: 0.1}": "6: judge.zzz: unknown key; "
        "allowed for type implicit_reward: type, beta, reference, policy, uncertainty_penalty, consistency, keep, "
        "peers, method, recompute_policy_logps, length_penalty, min_margin_in_noise",
    "judge: {beta: 0}": "6: judge.beta: must be a number above 0, not 0",
    "judge: {Type: gold}": "6: judge.Type: unknown key; did you mean type?",
    "noise: {threshold: {tau: 0.3}}": "6: noise.threshold.tau: unknown key; add type: fixed",
    "noise: {threshold: {kk: 3}}": "6: noise.threshold.kk: unknown key; did you mean k?",
    "noise: {threshold: {share: 3}}":
        "6: noise.threshold.share: unknown key; allowed for type percentile: type, k, window, min_pairs",
    "compute: {executor: {num_processes: 4}}": "6: compute.executor.num_processes: unknown key; add type: accelerate",
    "sampling: {backend: {enforce_eager: true}}": "6: sampling.backend.enforce_eager: unknown key; add type: vllm",
    "sampling: {backend: {batchsize: 8}}": "6: sampling.backend.batchsize: unknown key; did you mean batch_size?",
    "  prompts: {}":
        "6: data.prompts.source: this key is required; add it under data.prompts, e.g. source: pairs.jsonl",
    "  prompts: {source: a, rows: 3}": "6: data.prompts.rows: unknown key; add type: sandbox",
    # types of sections
    "judge: {type: pairrm}": f"6: judge.type: must be one of {TYPES}, not 'pairrm'",
    "judge:\n  beta: 1\n  type: implicit": f"8: judge.type: must be one of {TYPES}, not 'implicit'; "
        "did you mean implicit_reward?",
    "judge: {type: 3}": f"6: judge.type: must be one of {TYPES}, not 3",
    "judge: {type: }": f"6: judge.type: must be one of {TYPES}, not nothing",
    "judge: {type: ''}": f"6: judge.type: must be one of {TYPES}, not ''",
    "judge: {type: [gold]}": f"6: judge.type: must be one of {TYPES}, not a list",
    "judge: {type: {gold: 1}}": f"6: judge.type: must be one of {TYPES}, not a mapping",
    "judge: gold": f"6: judge: must be a section with a type ({TYPES}), not 'gold'; write {{type: gold}}",
    "judge: [gold]": f"6: judge: must be a section with a type ({TYPES}), not a list",
    "judge:": f"6: judge: must be a section with a type ({TYPES}), not nothing; "
        "remove the key, or put its settings under it",
    "  prompts: p.jsonl":
        f"6: data.prompts: must be a section with a type (dataset, sandbox), not 'p.jsonl'; {PROMPTS_EXAMPLE}",
    "sampling: {backend: vlm}":
        "6: sampling.backend: must be a section with a type (transformers, vllm), not 'vlm'",
    "noise: {threshold: {type: fixd}}":
        "6: noise.threshold.type: must be one of fixed, percentile, not 'fixd'; did you mean fixed?",
    "compute: {executor: accelerate}":
        "6: compute.executor: must be a section with a type (accelerate, fork, local, ray, slurm), not 'accelerate'; "
        "write {type: accelerate}",
    # required keys
    "sft: {}": "6: sft.data: this key is required; add it under sft, "
        "e.g. data: {type: dataset, source: conversations.jsonl}",
    "sft: {data: {type: dataset}}":
        "6: sft.data.source: this key is required; add it under sft.data, e.g. source: pairs.jsonl",
    "noise:\n  threshold:\n    type: fixed":
        "7: noise.threshold.tau: this key is required; add it under noise.threshold, e.g. tau: 0.3",
    "compute: {executor: {type: accelerate}}":
        "6: compute.executor.num_processes: this key is required; add it under compute.executor, "
        "e.g. num_processes: 4",
    # sections
    "noise:": "6: noise: must be a section with keys of its own, not nothing; "
        "remove the key, or put its settings under it",
    "noise: null": "6: noise: must be a section with keys of its own, not null; "
        "remove the key, or put its settings under it",
    "noise: off": "6: noise: must be a section with keys of its own, not 'off'",
    "noise: false": "6: noise: must be a section with keys of its own, not false",
    "noise: []": "6: noise: must be a section with keys of its own, not a list",
    # integers
    "seed: -1": f"6: seed: {SEED}, not -1",
    "seed: 2.0": f"6: seed: {SEED}, not 2.0; write 2",
    "seed: 1e3": f"6: seed: {SEED}, not 1e3; write 1000",
    "seed: 2.5": f"6: seed: {SEED}, not 2.5",
    "seed: true": f"6: seed: {SEED}, not true",
    "seed: '7'": f"6: seed: {SEED}, not '7'; write 7 without quotes or separators",
    "seed: 1_000": f"6: seed: {SEED}, not '1_000'; write 1000 without quotes or separators",
    "seed: 1,000": f"6: seed: {SEED}, not '1,000'; write 1000 without quotes or separators",
    "seed: 0x10": f"6: seed: {SEED}, not '0x10'",
    "seed:": f"6: seed: {SEED}, not nothing; "
        "give a value, or remove the key for its default",
    "seed: []": f"6: seed: {SEED}, not a list",
    "sampling: {n: 0}": "6: sampling.n: must be an integer of at least 1, not 0",
    "sampling: {n: 1}": "6: sampling.n: one response makes no pair; set it to 2 or more",
    "refine: {num_train_epochs: 0}": "6: refine.num_train_epochs: must be an integer of at least 1, not 0",
    f"seed: {2**32}": f"6: seed: {SEED}, not 4294967296",
    "  shuffle_seed: 4294967296": f"6: data.shuffle_seed: {SEED}, not 4294967296",
    "  prompts: {type: sandbox, seed: 4294967296}": f"6: data.prompts.seed: {SEED}, not 4294967296",
    "  seed_labels: -1": f"6: data.seed_labels: {SEED_LABELS}, not -1",
    "  seed_labels: 1.5": f"6: data.seed_labels: {SEED_LABELS}, not 1.5",
    "  seed_labels: 0.0": f"6: data.seed_labels: {SEED_LABELS}, not 0.0",
    "  seed_labels: 3.3%": f"6: data.seed_labels: {SEED_LABELS}, not '3.3%'; write 0.033",
    "  seed_labels: few": f"6: data.seed_labels: {SEED_LABELS}, not 'few'",
    # numbers
    "noise: {alpha: 1}": "6: noise.alpha: must be a number of at least 0 and at most 0.5, not 1",
    "noise: {alpha: 10%}": "6: noise.alpha: must be a number of at least 0 and at most 0.5, not '10%'; write 0.1",
    "noise: {alpha: .inf}": "6: noise.alpha: must be a number of at least 0 and at most 0.5, not '.inf'",
    "noise: {alpha: 1e999}": "6: noise.alpha: must be a number of at least 0 and at most 0.5, not 1e999",
    "noise: {alpha: true}": "6: noise.alpha: must be a number of at least 0 and at most 0.5, not true",
    "refine: {learning_rate: 0}": "6: refine.learning_rate: must be a number above 0, not 0",
    "refine: {learning_rate: '5e-7'}":
        "6: refine.learning_rate: must be a number above 0, not '5e-7'; write 5e-7 without quotes or separators",
    "refine: {learning_rate: 5 e-7}": "6: refine.learning_rate: must be a number above 0, not '5 e-7'",
    "sampling: {top_p: 1.1}": "6: sampling.top_p: must be a number above 0 and at most 1, not 1.1",
    "noise: {threshold: {type: percentile, k: 100}}":
        "6: noise.threshold.k: must be a number above 0 and below 100, not 100",
    # true and false
    "noise: {enabled: no}": "6: noise.enabled: must be true or false, not 'no'; write false",
    "noise: {enabled: On}": "6: noise.enabled: must be true or false, not 'On'; write true",
    "noise: {enabled: 1}": "6: noise.enabled: must be true or false, not 1",
    "noise: {enabled: 'true'}": "6: noise.enabled: must be true or false, not 'true'",
    "noise: {enabled: maybe}": "6: noise.enabled: must be true or false, not 'maybe'",
    # text
    "description: 1e10": "6: description: must be text, not 1e10; put it in quotes: '1e10'",
    "description: 0.10": "6: description: must be text, not 0.10; put it in quotes: '0.10'",
    "description: true": "6: description: must be text, not true; put it in quotes: 'true'",
    "description: [a]": "6: description: must be text, not a list",
    "description:": "6: description: must be text, not nothing; give a value, or remove the key for its default",
    "storage: {runs_dir: ''}": "6: storage.runs_dir: must be non-empty text, not ''",
    # choices
    "evaluation: {reward: golden}": "6: evaluation.reward: must be one of none, seed, gold, implicit_reward, "
    "not 'golden'; did you mean gold?",
    "refine: {lr_scheduler_type: polynomial}":
        "6: refine.lr_scheduler_type: must be one of cosine, linear, constant, constant_with_warmup, not 'polynomial'",
    "tracking: {report_to: [wandbb]}":
        "6: tracking.report_to.0: must be one of wandb, tensorboard, mlflow, trackio, not 'wandbb'; "
        "did you mean wandb?",
    # lists
    "tracking: {report_to: wandb}": "6: tracking.report_to: must be a list of names, not 'wandb'; write [wandb]",
    "noise: {lambdas: 0.5}": "6: noise.lambdas: must be a list of numbers, not 0.5; write [0.5]",
    "noise: {lambdas: {}}": "6: noise.lambdas: must be a list of numbers, not a mapping",
    "noise:\n  lambdas:\n    - 0.5\n    - -1":
        "9: noise.lambdas.1: must be a number of at least 0, not -1",
    "noise: {lambdas: [0.5, {}]}": "6: noise.lambdas.1: must be a number of at least 0, not a mapping",
    "  prompts_per_iteration: 8000":
        "6: data.prompts_per_iteration: must be a list of integers, not 8000; write [8000]",
    "  prompts_per_iteration: [8000, 0]":
        "6: data.prompts_per_iteration.1: must be an integer of at least 1, not 0",
}  # fmt: skip

# Whole recipes.
WHOLE = {
    "model: {model_name_or_path: m}\ndata: {pairs: {type: sandbox}}":
        "r.yaml: name: this key is required; add it, e.g. name: my-run",
    "name: x\ndata: {pairs: {type: sandbox}}":
        "r.yaml: model: this key is required; add it, e.g. model: {model_name_or_path: "
        "HuggingFaceTB/SmolLM2-135M-Instruct}",
    "name: x\nmodel: {model_name_or_path: m}":
        "r.yaml: data: this key is required; add it, e.g. data: {pairs: {type: dataset, source: pairs.jsonl}}",
    "name: x\nmodel: {}\ndata: {pairs: {type: sandbox}}":
        "r.yaml:2: model.model_name_or_path: this key is required; add it under model, e.g. model_name_or_path: "
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    "name: x\nmodel: gpt2\ndata: {pairs: {type: sandbox}}":
        "r.yaml:2: model: must be a section with keys of its own, not 'gpt2'; e.g. model: {model_name_or_path: "
        "HuggingFaceTB/SmolLM2-135M-Instruct}",
    "name: x\nmodel: {model_name_or_path: m}\ndata: {}":
        "r.yaml:3: data.pairs: this key is required; add it under data, e.g. pairs: {type: dataset, source: "
        "pairs.jsonl}",
    "name: x\nmodel: {model_name_or_path: m}\ndata: {pairs: a.jsonl}":
        "r.yaml:3: data.pairs: must be a section with a type (dataset, sandbox), not 'a.jsonl'; e.g. pairs: {type: "
        "dataset, source: pairs.jsonl}",
    "name: a/b\nmodel: {model_name_or_path: m}\ndata: {pairs: {type: sandbox}}":
        f"r.yaml:1: name: {NO_NAME}, not 'a/b'; e.g. name: my-run",
    "name: 3\nmodel: {model_name_or_path: m}\ndata: {pairs: {type: sandbox}}":
        f"r.yaml:1: name: {NO_NAME}, not 3; put it in quotes: '3'",
    "name:\nmodel: {model_name_or_path: m}\ndata: {pairs: {type: sandbox}}":
        f"r.yaml:1: name: {NO_NAME}, not nothing; give it a value",
    "name: x\nmodel: {model_name_or_path: ''}\ndata: {pairs: {type: sandbox}}":
        "r.yaml:2: model.model_name_or_path: must be non-empty text, not ''",
    "name: x\nmodel:\n  model_name_or_path: m\n  revision: 1234567\ndata: {pairs: {type: sandbox}}":
        "r.yaml:4: model.revision: must be text, not 1234567; put it in quotes: '1234567'",
    "name: x\nmodel: {model_name_or_path: m, dtype: float23}\ndata: {pairs: {type: sandbox}}":
        "r.yaml:2: model.dtype: must be one of auto, float32, bfloat16, float16, not 'float23'; "
        "did you mean float32?",
    "name: x\nmodel:\n  model_name_or_path: m\n  lora:\n    lora_target_modules: [q, 3]\n"
    "data: {pairs: {type: sandbox}}":
        "r.yaml:5: model.lora.lora_target_modules.1: must be text, not 3; put it in quotes: '3'",
    "name: x\nmodel:\n  model_name_or_path: m\n  lora:\n    lora_target_modules: all-liner\n"
    "data: {pairs: {type: sandbox}}":
        "r.yaml:5: model.lora.lora_target_modules: must be a list of names or all-linear, not 'all-liner'; "
        "did you mean all-linear?",
    "name: x\nmodel:\n  model_name_or_path: m\n  lora:\n    lora_target_modules: []\n"
    "data: {pairs: {type: sandbox}}":
        "r.yaml:5: model.lora.lora_target_modules: must not be empty; "
        "give it an entry, or remove the key for its default",
    "name: x\nmodel:\n  model_name_or_path: m\n  lora: true\ndata: {pairs: {type: sandbox}}":
        "r.yaml:4: model.lora: must be a section with keys of its own, not true",
}  # fmt: skip


@pytest.mark.parametrize(("text", "line"), [*APPENDED.items()])
def test_one_line(text: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _check(BASE + text, f"r.yaml:{line}", tmp_path, monkeypatch)


@pytest.mark.parametrize(("text", "line"), [*WHOLE.items()])
def test_one_line_of_a_whole_recipe(text: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _check(text, line, tmp_path, monkeypatch)


def _check(text: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("r.yaml"))
    assert str(caught.value) == line
    assert caught.value.exit_code == 2
    assert not getattr(caught.value, "others", ())


def test_the_table_is_long() -> None:
    assert len(APPENDED) + len(WHOLE) >= 120
