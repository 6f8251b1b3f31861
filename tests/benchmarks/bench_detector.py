"""Does the detector of noisy labels see more than rounding in half precision? p~ in bfloat16 beside float32's.

    python -m tests.benchmarks.bench_detector --policy FOLDER --reference FOLDER --data pairs.jsonl [--pairs 100]

The policy is a model in training: float32 weights, as a training holds them (a policy that a float32 recipe saved). The
reference is what it started from, stored in bfloat16. `--data`: JSON lines with `prompt`, `chosen` and `rejected` as
strings; the last pairs are taken. p~ of every pair is computed as the training does, in float32 throughout and under
bfloat16's autocast with a reference in bfloat16, for lambda 0 and 0.5. The policy is also placed at a quarter of its
update, as it is early in a training.

Printed are Spearman's correlation of p~ between the two, the share of the tenth with the smallest p~ that both flag,
and the error of a margin beside the margins' spread.
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
    print(f"| of the update | lambda | {columns} |")
    print("|---|---|---|---|---|---|", flush=True)
    for share in options.shares:
        places = zip(*(_margins(options, share, rows, half=half) for half in (False, True)), strict=True)
        for lam, (exact, half) in zip((0.0, LAMBDA), places, strict=True):
            errors = median(abs(a - b) for a, b in zip(exact, half, strict=True))
            correlation, both = spearman(exact, half), flagged_by_both(exact, half)
            print(
                f"| {share:.0%} | {lam} | {correlation:.2f} | {both:.0%} | {errors:.2g} | {pstdev(exact):.2g} |",
                flush=True,
            )


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


@torch.no_grad()
def _margins(options: Any, share: float, rows: Any, *, half: bool) -> tuple[list[float], list[float]]:
    """beta times the difference of log-ratios of each pair, plain and de-coupled; p~ is the sigmoid of one of them."""
    settings = Model(model_name_or_path=options.policy)
    reference = load_causal_lm(options.reference, settings, torch.bfloat16 if half else torch.float32)
    policy = load_causal_lm(options.policy, settings, torch.float32)
    for ours, theirs in zip(policy.parameters(), reference.parameters(), strict=True):
        ours.lerp_(theirs.float(), 1.0 - share)
    add_response_logps(policy)
    head = add_response_logps(reference)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        plain, decoupled = zip(
            *(_pair(policy, reference, head, prompt, answers) for prompt, answers in rows), strict=True
        )
    return list(plain), list(decoupled)


def _pair(policy: PreTrainedModel, reference: PreTrainedModel, head: Any, prompt: Any, answers: Any) -> Any:
    found: list[Any] = []
    for answer in answers:
        ids = torch.tensor([prompt + answer])
        tokens = {"input_ids": ids, "response_labels": torch.tensor([[IGNORED] * len(prompt) + answer])}
        found.append(policy(**tokens, reference=Reference(reference(**tokens, hidden_only=True), head(), LAMBDA)))
    chosen, rejected = found
    before = (chosen.reference, rejected.reference, BETA)
    return (
        float(dpo_margin(chosen.policy, rejected.policy, *before)),
        float(dpo_margin(chosen.decoupled, rejected.decoupled, *before)),
    )


if __name__ == "__main__":
    main()
