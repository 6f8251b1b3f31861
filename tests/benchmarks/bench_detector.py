"""Does the detector of noisy labels see more than rounding in half precision? p~ in bfloat16 beside float32's.

    python -m tests.benchmarks.bench_detector --policy FOLDER --reference FOLDER --data pairs.jsonl [--pairs 100]

The policy is a model in training: float32 weights, as a training holds them (a policy that a float32 recipe saved). The
reference is what it started from, stored in bfloat16. `--data`: JSON lines with `prompt`, `chosen` and `rejected` as
strings; the last pairs are taken. p~ of every pair is computed in float32 throughout and in two ways with a reference
in bfloat16, for lambda 0 and 0.5: as a difference of log-probs under autocast, and by a derivative along the update, as
the training does. The policy is also placed at a quarter of its update, as it is early in a training.

Printed are for each way Spearman's correlation of its p~ with float32's, the share of the tenth with the smallest p~
that both flag, the error of a margin, and the margins' spread in float32.
"""

import argparse
import json
from pathlib import Path
from statistics import median, pstdev
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoTokenizer, PreTrainedModel

from spa_recipes.algo.refine import dpo_margin
from spa_recipes.data.chat import Renderer
from spa_recipes.models.loading import load_causal_lm
from spa_recipes.recipe.schema import Model
from spa_recipes.training.along_update import AlongUpdate
from spa_recipes.training.response_logps import IGNORED, Reference, add_response_logps
from tests.benchmarks.kit import where

BETA, LAMBDA = 0.1, 0.5


def main() -> None:
    """Measure and print a row for each lambda and each place along the update."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 1.0], help="places along the update")
    parser.add_argument("--max-length", type=int, default=384, help="tokens of prompt and response")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    Accelerator(cpu=True)  # the training's forward pass asks for its state
    rows = _rows(options)
    print(f"{len(rows)} pairs; {where(options.threads)}", flush=True)
    columns = "rank correlation | flagged by both | error of a margin | standard deviation of margins"
    print(f"| of the update | lambda | p~ in bfloat16 | {columns} |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for share in options.shares:
        exact, halves = _by_difference(options, share, rows, half=False), {}
        halves["a difference"] = _by_difference(options, share, rows, half=True)
        halves["a derivative"] = _by_derivative(options, share, rows)
        for k, lam in enumerate((0.0, LAMBDA)):
            for way, half in halves.items():
                print(f"| {share:.0%} | {lam} | {way} | {_compared(exact[k], half[k])} |", flush=True)


def _compared(exact: list[float], half: list[float]) -> str:
    errors = median(abs(a - b) for a, b in zip(exact, half, strict=True))
    correlation, both = spearman(exact, half), flagged_by_both(exact, half)
    return f"{correlation:.2f} | {both:.0%} | {errors:.2g} | {pstdev(exact):.2g}"


def spearman(one: list[float], other: list[float]) -> float:
    """The correlation of ranks."""
    ranks = [torch.tensor(values).argsort().argsort().double() for values in (one, other)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def flagged_by_both(one: list[float], other: list[float]) -> float:
    """Share of the lowest tenth of one that is among the lowest tenth of the other."""
    count = max(1, len(one) // 10)
    lowest = [set(torch.tensor(values).argsort()[:count].tolist()) for values in (one, other)]
    return len(lowest[0] & lowest[1]) / count


def _rows(options: Any) -> list[tuple[list[int], list[list[int]]]]:
    length = options.max_length
    tokenizer = AutoTokenizer.from_pretrained(options.reference)
    renderer = Renderer(tokenizer, max_prompt_length=length // 3, max_length=length)
    rows = [json.loads(line) for line in options.data.read_text().splitlines()]
    prompts = {row["prompt"]: row for row in rows}
    found = []
    for row in list(prompts.values())[-options.pairs :]:
        prompt: Any = [{"role": "user", "content": row["prompt"]}]
        answers = [renderer.response_ids(prompt, row[side]) for side in ("chosen", "rejected")]
        found.append((renderer.prompt_ids(prompt), answers))
    return found


def _both_models(options: Any, share: float, *, half: bool) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The policy at a place along its update, and its reference."""
    settings = Model(model_name_or_path=options.policy)
    reference = load_causal_lm(options.reference, settings, torch.bfloat16 if half else torch.float32)
    policy = load_causal_lm(options.policy, settings, torch.float32)
    with torch.no_grad():
        for ours, theirs in zip(policy.parameters(), reference.parameters(), strict=True):
            ours.lerp_(theirs.float(), 1.0 - share)
    return policy, reference


@torch.no_grad()
def _by_difference(options: Any, share: float, rows: Any, *, half: bool) -> list[list[float]]:
    """beta times the difference of log-ratios, for lambda 0 and 0.5 those of all pairs; p~ is the sigmoid of one."""
    policy, reference = _both_models(options, share, half=half)
    add_response_logps(policy)
    head = add_response_logps(reference)
    margins: list[list[float]] = [[], []]
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        for prompt, answers in rows:
            chosen, rejected = (
                policy(**tokens, reference=Reference(reference(**tokens, hidden_only=True), head(), LAMBDA))
                for tokens in _tokens(prompt, answers)
            )
            before = (chosen.reference, rejected.reference, BETA)
            margins[0].append(float(dpo_margin(chosen.policy, rejected.policy, *before)))
            margins[1].append(float(dpo_margin(chosen.decoupled, rejected.decoupled, *before)))
    return margins


def _by_derivative(options: Any, share: float, rows: Any) -> list[list[float]]:
    """The same from derivatives along the update."""
    policy, reference = _both_models(options, share, half=True)
    margins: list[list[float]] = []
    for lam in (0.0, LAMBDA):
        along = AlongUpdate(reference, None, lam, print)
        margins.append([])
        for prompt, answers in rows:
            ratios = [along.log_ratios(policy, *tokens.values()) for tokens in _tokens(prompt, answers)]
            chosen, rejected = (float(ratio) for ratio in ratios if ratio is not None)
            margins[-1].append(BETA * (chosen - rejected))
    return margins


def _tokens(prompt: list[int], answers: list[list[int]]) -> list[dict[str, torch.Tensor]]:
    """The training's inputs for both answers to a prompt, each without padding."""
    return [
        {
            "input_ids": torch.tensor([prompt + answer]),
            "response_labels": torch.tensor([[IGNORED] * len(prompt) + answer]),
        }
        for answer in answers
    ]


if __name__ == "__main__":
    main()
