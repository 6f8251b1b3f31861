"""Time and memory of a refine step against TRL's DPOTrainer with a live reference, from one run.

    python -m tests.benchmarks.bench_refine [--vocab 1000 32000] [--batch 8] [--steps 10] [--threads 2] [--repeats 2]

All sides train the same model on the same pairs with the same optimizer, `--batch` pairs per forward pass and four
times as many per optimizer step; each runs in a process of its own, so that its peak memory is its own.

- TRL: DPOTrainer, loss `sigmoid`, a live reference model.
- lambda = 0.5: refinement with de-coupled detection, which needs a live reference model as well.
- lambda = 0: refinement with the reference log-probs that the judge has computed, and no reference model.

Seconds are those of the median step after the first two; memory is the peak above what was there before the models were
loaded (on a GPU: what torch allocated). `of peak` is what the policy's matrix products (three times those of a forward
pass) in the time of a step are of those that one large product reaches on this machine; those of a reference are cost.
On a GPU the shapes are those of a Llama with 1 B parameters, by default with one vocabulary and one turn: that
takes less than two minutes.
"""

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tests.benchmarks.kit import llama, pairs, peak_flops, product_flops, said, tokens_of, where, work_device

SIDES = ("TRL", "lambda = 0.5", "lambda = 0")
SKIPPED = 2
"""Steps that warm up."""


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def held_bytes() -> int:
    """What it holds now."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def rows_of(count: int, vocab: int) -> list[dict[str, Any]]:
    """Pairs as the trainers take them; the reference log-probs are invented, as only their place matters."""
    items = pairs(count, vocab)
    return [
        {
            "prompt_ids": chosen.prompt_ids,
            "chosen_ids": chosen.response_ids,
            "rejected_ids": rejected.response_ids,
            "ref_chosen_logps": -100.0,
            "ref_rejected_logps": -100.0,
        }
        for chosen, rejected in zip(items[::2], items[1::2], strict=True)
    ]


class Steps:
    """When the steps ended, and what had been held by then."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.peak = 0
        self._newest = 0

    def ended(self, step: int, *_: Any) -> None:
        """Note a step, once however often it is told."""
        if step == self._newest:
            return
        self._newest = step
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.peak = peak_bytes()

    def seconds(self) -> float:
        """Of the median step."""
        return statistics.median(b - a for a, b in zip(self.times[SKIPPED:], self.times[SKIPPED + 1 :], strict=False))


def train(side: str, model: Path, rows: list[dict[str, Any]], batch: int, folder: Path, steps: Steps) -> None:
    """Train one epoch."""
    from transformers import AutoTokenizer

    from spa_recipes.recipe.schema import Model, PercentileThreshold, PreferenceTraining
    from spa_recipes.training.run import Refinement, TrainEnv, train_preference

    settings = PreferenceTraining(
        learning_rate=1e-6,
        global_batch_size=4 * batch,
        per_device_train_batch_size=batch,
        logging_steps=1,
        save_steps=10_000,
    )
    env = TrainEnv(
        model=Model(model_name_or_path=str(model)),
        key="of-a-stage",
        seed=0,
        output_dir=folder / "out",
        checkpoint_dir=folder / "checkpoints",
        tokenizer=AutoTokenizer.from_pretrained(model),
        on_progress=steps.ended,
    )
    if side == "TRL":
        train_by_trl(model, rows, settings, env, steps)
        return
    lam = 0.5 if side == "lambda = 0.5" else 0.0
    refinement = Refinement(alpha=0.1, lam=lam, threshold=PercentileThreshold(min_pairs=8), warmup_ratio=0.2)
    train_preference(model, rows, settings, env, reference_path=model if lam else None, refinement=refinement)


def train_by_trl(model: Path, rows: list[dict[str, Any]], settings: Any, env: Any, steps: Steps) -> None:
    """The same by TRL."""
    import datasets
    from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    from spa_recipes.training.common import trainer_arguments, training_dtype

    class Tokenised(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

    class StepEnd(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            steps.ended(state.global_step)

    dtype = training_dtype(env.model)
    half = {"dtype": dtype}
    table = datasets.Dataset.from_list(rows).select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
    trainer = Tokenised(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        AutoModelForCausalLM.from_pretrained(model, **half),
        args=DPOConfig(**trainer_arguments(settings, env, dtype, len(rows)), max_length=None),
        train_dataset=table,
        processing_class=env.tokenizer,
        data_collator=DataCollatorForPreference(pad_token_id=0),
        callbacks=[StepEnd()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def one_side(arguments: argparse.Namespace) -> None:
    """In a process of its own: train, and print the figures as JSON."""
    torch.set_num_threads(arguments.threads)
    # What the imports hold is nobody's.
    import spa_recipes.training.run  # noqa: F401

    rows = rows_of(arguments.steps * 4 * arguments.batch, arguments.vocab[0])
    steps = Steps()
    with tempfile.TemporaryDirectory() as folder:
        gc.collect()
        before = held_bytes()
        train(arguments.side, Path(arguments.model), rows, arguments.batch, Path(folder), steps)
    print(json.dumps({"seconds": steps.seconds(), "bytes": steps.peak - before}))


def measured(side: str, model: Path, vocab: int, arguments: argparse.Namespace) -> dict[str, float]:
    """The figures of one side."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_refine", "--side", side, "--model", str(model)]
    numbers = {"vocab": vocab, "batch": arguments.batch, "steps": arguments.steps, "threads": arguments.threads}
    options = [f"--{name}={value}" for name, value in numbers.items()]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Print step times and peak memory of every side and their ratios to TRL's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--vocab", type=int, nargs="*", default=[32000] if gpu else [1000, 32000])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1 if gpu else 2)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        one_side(arguments)
        return
    torch.set_num_threads(arguments.threads)
    peak = peak_flops(work_device(), torch.bfloat16 if gpu else torch.float32)
    print(f"{arguments.batch} pairs per pass, {4 * arguments.batch} per step; {where(arguments.threads)}")
    print(f"one large product: {peak / 1e12:.2f} TFLOP/s")
    for vocab in arguments.vocab:
        with tempfile.TemporaryDirectory() as folder:
            items = pairs(arguments.steps * 4 * arguments.batch, vocab)
            with said(f"a model on {work_device()}, and saving it"):
                flops = product_flops(save_model(Path(folder), vocab), items) / arguments.steps
            compare(Path(folder), vocab, arguments, tokens_of(items).all // arguments.steps, 3 * flops / peak)


def save_model(folder: Path, vocab: int) -> PreTrainedModel:
    """A random model, and a tokenizer for its pad token alone."""
    from spa_recipes.sandbox.model import _build_tokenizer

    size = (2048, 16, 32) if torch.cuda.is_available() else (256, 4, 4)
    model = llama(size[0], size[1], vocab, heads=size[2], device=work_device())
    model.save_pretrained(folder)
    _build_tokenizer().save_pretrained(folder)
    return model


def compare(model: Path, vocab: int, arguments: argparse.Namespace, tokens: int, least_seconds: float) -> None:
    """All sides in turns, the best of each; a step has `tokens`, and takes `least_seconds` at the peak."""
    best: dict[str, dict[str, float]] = {}
    for _ in range(arguments.repeats):
        for side in SIDES:
            with said(f"{side}, {arguments.steps} steps in a process of its own"):
                figures = measured(side, model, vocab, arguments)
            old = best.get(side, figures)
            best[side] = {name: min(value, old[name]) for name, value in figures.items()}
    print(f"\nvocabulary {vocab:,}: seconds per step, peak memory (as shares of TRL's)")
    for side, figures in best.items():
        shares = {name: value / best["TRL"][name] for name, value in figures.items()}
        seconds, megabytes = figures["seconds"], figures["bytes"] / 1e6
        print(
            f"  {side:13} {seconds:7.2f} s ({shares['seconds']:.2f})   {megabytes:7.0f} MB ({shares['bytes']:.2f})   "
            f"{4 * arguments.batch / seconds:6.1f} pairs/s   {tokens / seconds:9,.0f} tokens/s   "
            f"{least_seconds / seconds:4.0%} of peak",
            flush=True,
        )


if __name__ == "__main__":
    main()
