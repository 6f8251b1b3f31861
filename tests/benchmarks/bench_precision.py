"""What half precision does to preference learning, on a real model: labels, policies and whole loops beside float32's.

    python -m tests.benchmarks.bench_precision --model FOLDER --data pairs.jsonl --work FOLDER
        [--seeds 1 2 3] [--rates 2e-6 2e-5] [--parts ways loops checks] [--ways truth new ...] [--threads 1] [--quick]

FOLDER of the model: a small chat model, stored in bfloat16 as published models are. `--data`: JSON lines with `prompt`,
`chosen` and `rejected` as strings; of each prompt the first pair is taken.

- ways: for every seed and learning rate a policy is trained on 72 labels in float32. Its log-ratios against pi_init on
  150 held-out pairs are got in every way there is: saved in bfloat16 to nearest or stochastically, or not; by
  arithmetic in float32 or bfloat16; by two passes that are subtracted, or by one along the stored difference.
- loops: three iterations of the whole method by `spa run`, in float32, in bfloat16 as it was (`today`), and in
  bfloat16 as it is (`new`). Their policies are compared by log-ratios in float32, and by sampled answers which the
  implicit reward of a float32 policy prefers or does not.
- checks: the package's stochastic rounding and tangent against plain versions of them.

Everything that was made stays in `--work` and is found again by model, data and settings: a command that was stopped
goes on, and tables are printed from what is there (`--parts` without a name prints them only). The version of the
package is not looked at: after a change of how it trains, delete `policies` in that folder, and of how it scores,
`passes`. One command at a time works in a folder. `--quick` is a miniature of a minute, for tests.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import product
from pathlib import Path

import torch

from spa_recipes.state.digests import file_digest
from tests.benchmarks.kit import where
from tests.benchmarks.precision.checks import rounding_figures, tangents
from tests.benchmarks.precision.kept import Kept
from tests.benchmarks.precision.loops import wins
from tests.benchmarks.precision.passes import NEW, TRUTH, WAYS, Passes
from tests.benchmarks.precision.policies import FULL, LOOPS, QUICK, Case, Runs, World, prepare_rows
from tests.benchmarks.precision.tables import SAVED, Tables

PARTS = ("ways", "loops", "checks")


def main() -> None:
    """Measure what is missing, and print the tables after each part of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a folder with a chat model, stored in bfloat16")
    parser.add_argument("--data", type=Path, required=True, help="JSON lines with prompt, chosen and rejected")
    parser.add_argument("--work", type=Path, default=Path("runs/precision"), help="keeps all that was made")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-6, 2e-5], help="learning rates")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="none prints the tables only")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=list(LOOPS))
    parser.add_argument("--loop-rates", type=float, nargs="*", default=[2e-6, 2e-5])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made_by = {
        "model": file_digest(options.model / "model.safetensors"),
        "data": prepare_rows(options.data, options.work),
    }
    sizes = QUICK if options.quick else FULL
    kept = Kept(options.work, where(options.threads))
    world = World(options.model.resolve(), made_by, options.work.resolve(), sizes, options.threads, kept)
    cases = [Case(seed, rate) for seed in options.seeds for rate in options.rates]
    tables = Tables(dataclasses.replace(world, kept=dataclasses.replace(kept, only_look=True)), options.seeds)
    with closing(Runs(world)) as runs:
        for _ in measured(options, world, runs, cases):
            write(tables, kept, options)
    print(write(tables, kept, options))


def write(tables: Tables, kept: Kept, options: argparse.Namespace) -> str:
    """Write `results.md` of what is there so far, and return its text."""
    texts = [*kept.machines(), ""]
    for rate in options.rates:
        texts += [tables.ways(rate), tables.saved(rate), tables.tangents(rate)]
    texts += [tables.loops(rate, max(options.rates)) for rate in options.loop_rates]
    text = "\n".join(texts)
    (options.work / "results.md").write_text(text)
    return text


def measured(options: argparse.Namespace, world: World, runs: Runs, cases: Sequence[Case]) -> Iterator[None]:
    """Measure what is missing. Yields after each part of it; what tables need first comes first."""
    passes = Passes(world)
    items = {case: passes.items(runs.heldout(case)) for case in cases}
    for way in options.ways if "ways" in options.parts else []:
        for case in cases:
            passes.log_ratios(runs.policy("float32", case, 0), WAYS[way], items[case])
        yield
    for case in cases if "checks" in options.parts else []:
        policy = runs.policy("float32", case, 0)
        for saved in SAVED:
            passes.update(policy, saved)
        rounding_figures(world, passes, policy)
        tangents(world, passes, policy, NEW, items[case])
        yield
    if "loops" not in options.parts:
        return
    iterations = range(2, world.sizes.iterations + 1)
    loops = [
        (iteration, loop, Case(*which))
        for iteration in iterations
        for loop in options.loops
        for which in product(options.seeds, options.loop_rates)
    ]
    for iteration, loop, case in loops:
        passes.log_ratios(runs.policy(loop, case, iteration), TRUTH, passes.items(runs.heldout(case)))
        yield
    for iteration, loop, case in loops:
        judge = runs.policy("float32", Case(case.seed, max(options.rates)), 0)
        policy, dtype = runs.policy(loop, case, iteration), getattr(torch, LOOPS[loop].dtype)
        wins(world, passes, policy, dtype, judge, runs.heldout(case))
        yield


if __name__ == "__main__":
    main()
