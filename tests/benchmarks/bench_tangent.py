"""The judge's forward-mode pass beside what it replaces, in one run: time, memory, and error against float32.

    python -m tests.benchmarks.bench_tangent [--pairs 100] [--repeats 3]
    python -m tests.benchmarks.bench_tangent --model FOLDER --data pairs.jsonl [--pairs 12] ...

- tangent: log-ratios by derivatives along the update, at the middle, in bfloat16.
- tangent, LoRA: the same where the update is a random adapter of rank 16 on every linear layer.
- one pass: log-probs of one model in bfloat16, as the judge needs them where the sampler kept the policy's.
- two passes, float32: log-probs of both models, in bfloat16 and in float32.

The update is random, and stored in bfloat16 by stochastic rounding. Times are of this process's processor on a CPU, so
that other processes disturb them less. The last table has each way's median error on a log-ratio, in nats.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from spa_recipes.algo.tangents import Move, Thin
from spa_recipes.generation.scoring import Scored, sequence_logps
from spa_recipes.generation.tangent import sequence_log_ratios
from spa_recipes.models.update import Update, difference
from tests.benchmarks.bench_judge import real_pairs
from tests.benchmarks.kit import llama, pairs, take_turns, where
from tests.kit.updates import moved, random_update, stored_stochastically

RANK = 16


def random_adapter(model: PreTrainedModel, size: float) -> Update:
    """Thin factors for every linear layer but the output layer."""
    torch.manual_seed(0)
    moves: dict[str, Move] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and layer is not model.get_output_embeddings():
            o, i = layer.weight.shape
            length = size * layer.weight.float().square().mean().sqrt() / RANK**0.5
            up, down = length * torch.randn(o, RANK), torch.randn(RANK, i)
            moves[f"{name}.weight"] = Thin(*(part.to(layer.weight.device, layer.weight.dtype) for part in (down, up)))
    return Update(moves, 1.0)


def subtracted(policy: PreTrainedModel, reference: PreTrainedModel, items: list[Scored]) -> list[float]:
    """Log-ratios of two passes."""
    both = (sequence_logps(model, items, tokens_per_batch=16384) for model in (policy, reference))
    return [a - b for a, b in zip(*both, strict=True)]


def by_derivatives(update: Update, reference: PreTrainedModel, items: list[Scored]) -> list[float]:
    """Log-ratios of the forward-mode pass."""
    return [ratio for ratio, _ in sequence_log_ratios(update, reference, items, tokens_per_batch=16384)]


def peak_memory(work: Callable[[], object]) -> float:
    """The most megabytes that this process (on a GPU: torch) holds while it works."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    """Print time, memory and error of each side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--update", type=float, default=1e-4, help="its size, as a share of the weights'")
    parser.add_argument("--model", type=Path, help="a folder with a real chat model")
    parser.add_argument("--data", type=Path, help="with --model: JSON lines with prompt, chosen and rejected")
    arguments = parser.parse_args()
    if (arguments.model is None) != (arguments.data is None):
        parser.error("--model and --data go together")
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.model is None:
        reference, items = llama(576, 6, 8192, heads=9), pairs(arguments.pairs, 8192)
    else:
        reference = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
        items = real_pairs(arguments.data, arguments.model, arguments.pairs)
    reference = reference.bfloat16()
    exact = moved(moved(reference, {}).float(), random_update(reference, arguments.update))
    policy = stored_stochastically(exact).to(device)
    reference = reference.to(device)
    compare(policy, reference, items, arguments)


def compare(
    policy: PreTrainedModel, reference: PreTrainedModel, items: list[Scored], arguments: argparse.Namespace
) -> None:
    """Time every side on one pair of models."""
    update, adapter = difference(policy, reference), random_adapter(reference, arguments.update)
    policy32, reference32 = moved(policy, {}).float(), moved(reference, {}).float()
    ratios: dict[str, list[float]] = {}

    def keep(name: str, work: Callable[[], list[float]]) -> Callable[[], None]:
        return lambda: ratios.__setitem__(name, work())

    sides: dict[str, Callable[[], object]] = {
        "tangent": keep("tangent", lambda: by_derivatives(update, reference, items)),
        "tangent, LoRA": lambda: by_derivatives(adapter, reference, items),
        "one pass": lambda: sequence_logps(reference, items, tokens_per_batch=16384),
        "two passes": keep("two passes", lambda: subtracted(policy, reference, items)),
        "float32": keep("float32", lambda: subtracted(policy32, reference32, items)),
    }
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    seconds = take_turns(sides, arguments.repeats, clock)
    print(f"{len(items)} responses, best of {arguments.repeats}; {where(arguments.threads)}")
    for name, took in seconds.items():
        memory = peak_memory(sides[name])
        print(f"  {name:14} {took:8.2f} s   {took / seconds['two passes']:5.2f} of two passes   {memory:8,.0f} MB")
    true = ratios.pop("float32")
    print(f"median |log-ratio| {median(map(abs, true)):.4f} nats")
    for name, values in ratios.items():
        print(f"  {name:14} median error {median(abs(a - b) for a, b in zip(values, true, strict=True)):.4f} nats")


if __name__ == "__main__":
    main()
