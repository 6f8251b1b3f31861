"""The kinds of stages. Open this first to see how a recipe becomes a plan, a plan stages, and stages artifacts.

A plan is made of stages, and each stage has a kind. All that is particular to a kind stands in the table `KINDS`: which
module runs it, what it reads and writes, which sections of the recipe set it, and what it needs. To add a kind, write
`spa_recipes/stages/<module>.py` with a function `run(context)`, add a row here, and let a plan use it.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from spa_recipes.recipe.schema import (
    Data,
    DatasetSource,
    Endpoint,
    Evaluation,
    Judge,
    LlmJudge,
    LmEval,
    Method,
    Model,
    Noise,
    PreferenceTraining,
    RefineTraining,
    Sampling,
    Source,
    SupervisedTraining,
    Training,
)

MODEL = "model"
"""Folder of a model inside the output of a stage that makes one."""

ADAPTER = "adapter"
"""Folder of the LoRA weights that were merged into that model."""

Content = Literal["policy", "tokenizer", "model", "reward model", "judge", "weights", "dataset", "file", "rows"]
"""What an input is: a `policy` renders texts with its own tokenizer and chat template, of a `tokenizer` these are all
that is read, a plain `model` reads the token ids that a policy's tokenizer made, a `reward model` and a `judge` read
texts in their own way. `weights` go with a policy. A `dataset` is a user's rows, `rows` are another stage's, and a
`file` is any other file of the user's."""

Work = Literal["train", "sample", "score"]
"""What a stage does with the weights that it loads."""

Tokens = Literal["text", "pair", "answer", "verdict"]
"""How many tokens a row takes at most: a whole text, two of them, a sampled answer, or a judge's verdict."""


class Kind(NamedTuple):
    """A kind of stage.

    Attributes:
        module: of `spa_recipes.stages` whose `run` does the work.
        version: raised by one when a stage would give another result for the same settings, which a changed default
            does, too. It is part of the key.
        settings: the sections and scalars that set it, by name.
        reads: its inputs by role name, and `may_read` those that some stages of the kind do without, where `*` stands
            for any text.
        writes: names of its output, `*` standing for any text.
        delivers: those of `writes` that `spa evaluate` hands to the user.
        work: what it does with a language model; empty for a stage that loads none, which then runs in one process and
            never under a launcher.
        torch: whether it computes with torch although it loads no language model.
        tokens: tokens of one of its rows, for estimates.
        section: the section of the recipe that sets its training, for messages.
        policy: whether it makes a policy of the method: pi_init, pi_0, pi_1, ...
    """

    module: str
    version: int = 1
    settings: Mapping[str, Any] = MappingProxyType({})
    reads: Mapping[str, Content] = MappingProxyType({})
    may_read: Mapping[str, Content] = MappingProxyType({})
    writes: tuple[str, ...] = ()
    delivers: tuple[str, ...] = ()
    work: tuple[Work, ...] = ()
    torch: bool = False
    tokens: Tokens | None = None
    section: str = ""
    policy: bool = False

    @property
    def loads_model(self) -> bool:
        """Whether it loads a language model: only such a stage needs a device, and runs under a launcher."""
        return bool(self.work)

    @property
    def takes_shards(self) -> bool:
        """Whether independent processes can do it together, each making shards of its tables."""
        return self.loads_model and "train" not in self.work

    @property
    def uses_torch(self) -> bool:
        """Whether it computes with torch, and so has to limit its threads."""
        return self.loads_model or self.torch

    def content(self, name: str) -> Content:
        """What the input of this name is; KeyError if the kind has no such input."""
        for pattern, content in (*self.reads.items(), *self.may_read.items()):
            if fnmatchcase(name, pattern):
                return content
        raise KeyError(name)

    def wrong_inputs(self, names: set[str]) -> list[str]:
        """What is wrong with a stage of this kind that has inputs of these names."""
        known = (*self.reads, *self.may_read)
        missing = self.reads.keys() - names
        unknown = {name for name in names if not any(fnmatchcase(name, pattern) for pattern in known)}
        return [f"needs the input {name}" for name in sorted(missing)] + [
            f"has no input {name}" for name in sorted(unknown)
        ]

    def has_output(self, path: str) -> bool:
        """Whether a stage of this kind writes a file or folder of this name."""
        return any(fnmatchcase(path, pattern) for pattern in self.writes)


_MODEL = {"model": Model, "chat_template_sha256": str}
_TRAINED = (MODEL, ADAPTER)

_REFINED = Kind(
    "refine",
    settings={
        **_MODEL,
        "training": RefineTraining,
        "noise": Noise,
        "lambda": float,
        "p_detect": str,
        "win_shares": bool,
        "seed": int,
        "iteration": int,
    },
    reads={"policy": "policy", "reference": "model", "judgments": "rows", "completions": "rows"},
    may_read={
        "adapter": "weights",
        "base": "weights",
        "seed_pairs": "rows",
        "added_pairs": "rows",
        "reference_logps": "rows",
        "log_ratios": "rows",
        "token_logps": "rows",
    },
    writes=_TRAINED,
    work=("train",),
    tokens="pair",
    section="refine",
)
"""A training on judged pairs, in the run's own chain or in that of its peer."""

KINDS: dict[str, Kind] = {
    # --- rows and models to start from
    "data": Kind(
        "data",
        version=2,
        settings={**_MODEL, "data": Data},
        reads={"pairs": "dataset"},
        may_read={"prompts": "dataset", "policy": "tokenizer"},
        writes=("seed.jsonl", "prompts-*.jsonl", "heldout.jsonl"),
    ),
    "prompts": Kind(
        "prompts",
        settings={**_MODEL, "source": DatasetSource},
        reads={"prompts": "dataset", "policy": "tokenizer"},
        writes=("prompts.jsonl",),
    ),
    "added": Kind(
        "added",
        settings={"source": DatasetSource},
        reads={"pairs": "dataset"},
        may_read={"earlier": "rows", "taken-*": "rows"},
        writes=("pairs.jsonl",),
    ),
    "init_model": Kind("init_model", settings={"seed": int}, writes=(MODEL,), torch=True),
    # --- training
    "sft": Kind(
        "sft",
        version=3,
        settings={**_MODEL, "training": SupervisedTraining, "source": Source, "seed": int},
        reads={"policy": "policy", "source": "dataset"},
        may_read={"base": "weights"},
        writes=_TRAINED,
        work=("train",),
        tokens="text",
        section="sft",
        policy=True,
    ),
    "dpo": Kind(
        "dpo",
        version=2,
        settings={**_MODEL, "training": PreferenceTraining, "seed": int},
        reads={"policy": "policy", "reference": "model", "pairs": "rows"},
        may_read={"base": "weights"},
        writes=_TRAINED,
        work=("train",),
        tokens="pair",
        section="seed_training",
        policy=True,
    ),
    "member": Kind(
        "dpo",
        settings={**_MODEL, "training": PreferenceTraining, "seed": int, "member": int, "shares": int},
        reads={"policy": "policy", "reference": "model", "pairs": "rows"},
        may_read={"base": "weights"},
        writes=_TRAINED,
        work=("train",),
        tokens="pair",
        section="seed_training",
    ),
    "refine": _REFINED._replace(policy=True),
    "peer": _REFINED,
    "extrapolate": Kind(
        "extrapolate",
        settings={**_MODEL, "factor": float},
        reads={"policy": "policy", "init": "model"},
        writes=(MODEL,),
        torch=True,
        section="final",
        policy=True,
    ),
    "control": Kind(
        "control",
        settings={
            **_MODEL,
            "training": PreferenceTraining,
            "refine": RefineTraining,
            "iterations": list[int],
            "seed": int,
        },
        reads={"policy": "policy", "reference": "model", "pairs": "rows"},
        may_read={"base": "weights", "judgments-*": "rows", "added-*": "rows"},
        writes=_TRAINED,
        work=("train",),
        tokens="pair",
        section="seed_training",
    ),
    "reward_model": Kind(
        "reward_model",
        version=2,
        settings={**_MODEL, "training": Training, "seed": int},
        reads={"policy": "policy", "pairs": "rows"},
        writes=_TRAINED,
        work=("train",),
        tokens="pair",
        section="judge.training",
    ),
    # --- answers, and what they are judged by
    "generate": Kind(
        "generate",
        version=2,
        settings={**_MODEL, "sampling": Sampling, "seed": int, "iteration": int},
        reads={"policy": "policy", "prompts": "rows"},
        may_read={"adapter": "weights", "base": "weights"},
        writes=("completions.parquet",),
        work=("sample",),
        tokens="answer",
    ),
    "candidates": Kind(
        "candidates",
        version=3,
        settings={**_MODEL, "source": DatasetSource},
        reads={"pairs": "dataset"},
        may_read={"policy": "policy", "reference": "policy"},
        writes=("completions.parquet", "prompts.jsonl"),
    ),
    "score": Kind(
        "score",
        settings={**_MODEL, "by_token": bool},
        reads={"model": "model", "completions": "rows"},
        writes=("logps.parquet",),
        work=("score",),
        tokens="text",
    ),
    "log_ratios": Kind(
        "log_ratios",
        settings={**_MODEL, "method": Method},
        reads={"policy": "model", "reference": "model", "completions": "rows"},
        may_read={"adapter": "weights"},
        writes=("log_ratios.parquet",),
        work=("score",),
        torch=True,
        tokens="text",
    ),
    "reward": Kind(
        "reward",
        settings=_MODEL,
        reads={"model": "reward model", "completions": "rows"},
        may_read={"prompts": "rows"},
        writes=("rewards.parquet",),
        work=("score",),
        tokens="text",
    ),
    "verdicts": Kind(
        "verdicts",
        settings={**_MODEL, "judge": LlmJudge, "sampling": Sampling, "seed": int},
        reads={"completions": "rows", "prompts": "rows", "question": "file"},
        may_read={"model": "judge", "policy": "policy", "adapter": "weights", "base": "weights"},
        writes=("rewards.parquet", "verdicts.jsonl"),
        work=("sample",),
        tokens="verdict",
    ),
    "endpoint_verdicts": Kind(
        "verdicts",
        settings={"judge": LlmJudge, "endpoint": Endpoint},
        reads={"completions": "rows", "prompts": "rows", "question": "file"},
        writes=("rewards.parquet", "verdicts.jsonl"),
        tokens="verdict",
    ),
    "judge": Kind(
        "judge",
        version=2,
        settings={
            "judge": Judge,
            "seed": int,
            "iteration": int,
            "gold_audit": bool,
            "labels_by": str,
            "forget_rate": float,
        },
        reads={"completions": "rows", "prompts": "rows"},
        may_read={
            "policy_logps": "rows",
            "reference_logps": "rows",
            "judging_logps": "rows",
            "seed_logps": "rows",
            "log_ratios": "rows",
            "seed_log_ratios": "rows",
            "earlier_logps": "rows",
            "earlier_log_ratios": "rows",
            "peer_logps": "rows",
            "peer_log_ratios": "rows",
            "member*_logps": "rows",
            "member*_log_ratios": "rows",
            "rewards": "rows",
        },
        writes=("judgments.jsonl", "pairs.jsonl"),
        torch=True,
    ),
    "heldout": Kind(
        "heldout",
        settings={**_MODEL, "beta": float, "method": Method},
        reads={"policy": "policy", "heldout": "rows"},
        may_read={"init": "model", "stack": "weights", "init_logps": "rows"},
        writes=("margins.jsonl",),
        work=("score",),
        tokens="text",
    ),
    "reliability": Kind(
        "reliability",
        reads={"judgments": "rows", "completions": "rows"},
        may_read={
            "reference_logps": "rows",
            "member*_logps": "rows",
            "member*_log_ratios": "rows",
            "member*_heldout": "rows",
        },
        writes=("margins.jsonl",),
    ),
    # --- what a policy is worth
    "evaluate": Kind(
        "evaluate",
        version=3,
        settings={
            **_MODEL,
            "sampling": Sampling,
            "evaluation": Evaluation,
            "seed": int,
            "beta": float,
            "method": Method,
        },
        reads={"policy": "policy", "heldout": "rows"},
        may_read={
            "adapter": "weights",
            "base": "weights",
            "reward_policy": "model",
            "reward_reference": "model",
            "init": "model",
            "stack": "weights",
            "reward_stack": "weights",
            "init_samples": "rows",
            "init_logps": "rows",
            "spa_samples": "rows",
        },
        writes=("samples.jsonl", "heldout.jsonl"),
        work=("sample", "score"),
        tokens="answer",
    ),
    # --- the field's benchmarks
    "answers": Kind(
        "answers",
        version=3,
        settings={
            **_MODEL,
            "sampling": Sampling,
            "seed": int,
            "benchmark": str,
            "name": str,
            "source": DatasetSource,
        },
        reads={"policy": "policy"},
        may_read={"instructions": "file", "questions": "file", "prompts": "dataset"},
        writes=("model_outputs.json", "model_answer/*.jsonl", "answers.jsonl"),
        delivers=("model_outputs.json", "model_answer/*.jsonl"),
        work=("sample",),
        tokens="answer",
    ),
    "alpaca_annotations": Kind(
        "alpaca_annotations",
        settings={"annotator": str},
        reads={"outputs": "rows", "instructions": "file"},
        writes=("*/annotations.json", "*/leaderboard.csv"),
        delivers=("*/annotations.json", "*/leaderboard.csv"),
    ),
    "alpaca_score": Kind(
        "alpaca_score", reads={"annotations": "rows"}, writes=("scores.json",), delivers=("scores.json",)
    ),
    "mt_bench_grades": Kind(
        "mt_bench_grades",
        version=2,
        settings={"endpoint": Endpoint, "judge_max_tokens": int, "name": str},
        reads={"questions": "file", "answers": "rows", "judge_prompts": "file"},
        may_read={"reference_answers": "file"},
        writes=("model_judgment/*.jsonl", "scores.json"),
        delivers=("model_judgment/*.jsonl", "scores.json"),
    ),
    "versus": Kind(
        "versus",
        reads={"ours": "rows", "theirs": "rows"},
        writes=("all.jsonl", "pairs.jsonl", "completions.parquet"),
    ),
    "win_rate": Kind(
        "win_rate",
        settings={"judge": str},
        reads={"all": "rows", "pairs": "rows"},
        may_read={
            "rewards": "rows",
            "verdicts": "rows",
            "policy_logps": "rows",
            "reference_logps": "rows",
            "log_ratios": "rows",
        },
        writes=("outcomes.jsonl", "scores.json"),
        delivers=("outcomes.jsonl", "scores.json"),
        torch=True,
    ),
    "lm_eval": Kind(
        "lm_eval",
        settings={**_MODEL, "benchmark": LmEval},
        reads={"policy": "policy"},
        may_read={"tasks": "file"},
        writes=("results.json", "samples.jsonl"),
        work=("score",),
    ),
    "lm_eval_scores": Kind(
        "lm_eval_scores",
        settings={"against": str},
        reads={"ours": "rows", "ours_samples": "rows"},
        may_read={"theirs": "rows", "theirs_samples": "rows"},
        writes=("scores.json", "samples.jsonl"),
        delivers=("scores.json", "samples.jsonl"),
    ),
}
"""All kinds by name, in the order in which a run meets them."""
