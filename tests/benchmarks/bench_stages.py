"""How busy the GPU is while a stage works: GPU seconds over wall seconds, from a real run of a random model.

    python -m tests.benchmarks.bench_stages [--until seed] [--rows 64] [--billions 7] [--lora] [--small]

A model of Mistral's shape with random weights in bfloat16 is made on the GPU and saved; then `spa run` takes pairs of
the sandbox through the stages up to `--until`, each in a process of its own, as always. Meanwhile `nvidia-smi` is asked
five times a second how busy the GPU is and how much of its memory is in use. The seed stage of 7 billion parameters
with adapters takes less than two minutes. A share above 0.8 is good for a stage of a minute's work; a short
stage is mostly the start of its process.

Without a GPU, or with `--small`, the model is tiny and the processor's load stands for the GPU's: the same code in
miniature.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from transformers import MistralConfig, MistralForCausalLM

from spa_recipes.units import human_bytes
from tests.benchmarks.kit import said, where, work_device

SHAPE = {"width": 4096, "inner": 14336, "heads": 32, "keys": 8}
SMALL = {"width": 64, "inner": 96, "heads": 4, "keys": 2}
PER_BILLION = 32 / 7.1
"""Layers of this width for each billion parameters."""


class Moment(NamedTuple):
    """How busy the device was, from 0 to 1, and bytes in use on it, at a time."""

    at: float
    busy: float
    memory: int


class Watch:
    """Notes how busy the device is, five times a second, while it is entered."""

    def __init__(self, *, gpu: bool) -> None:
        self.moments: list[Moment] = []
        self._source = _of_gpu() if gpu else _of_processor()
        self._thread = threading.Thread(target=self._note, daemon=True)
        self._over = threading.Event()

    def _note(self) -> None:
        for moment in self._source:
            self.moments.append(moment)
            if self._over.is_set():
                return

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(5)


def _of_gpu() -> Iterator[Moment]:
    command = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as asked:
        assert asked.stdout is not None
        try:
            for line in asked.stdout:
                busy, memory = line.split(",")
                yield Moment(time.time(), float(busy) / 100, int(memory) * 2**20)
        finally:
            asked.terminate()


def _of_processor() -> Iterator[Moment]:
    def times() -> tuple[int, int]:
        numbers = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        return sum(numbers), numbers[3] + numbers[4]

    before = times()
    while True:
        time.sleep(0.2)
        now = times()
        everything, idle = now[0] - before[0], now[1] - before[1]
        before = now
        yield Moment(time.time(), 1 - idle / max(1, everything), 0)


def save_model(folder: Path, layers: int, shape: dict[str, int], device: torch.device) -> float:
    """A random model, with the sandbox's tokenizer; returns its parameters."""
    from spa_recipes.sandbox.model import _build_tokenizer

    tokenizer = _build_tokenizer()
    config = MistralConfig(
        vocab_size=32768 if shape is SHAPE else len(tokenizer),
        hidden_size=shape["width"],
        intermediate_size=shape["inner"],
        num_hidden_layers=layers,
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["keys"],
        sliding_window=None,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = MistralForCausalLM(config)
    finally:
        torch.set_default_dtype(usual)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return float(model.num_parameters())


def recipe(model: Path, arguments: argparse.Namespace, *, gpu: bool) -> dict[str, Any]:
    """A run of all stages with few rows, in batches that suit the device."""
    training = {"per_device_train_batch_size": 2, "global_batch_size": 8, "gradient_checkpointing": True}
    return {
        "name": "stages",
        "model": {
            "model_name_or_path": str(model),
            "dtype": "bfloat16",
            "max_length": 256,
            "max_prompt_length": 64,
            **({"lora": {}} if arguments.lora else {}),
        },
        "data": {
            "pairs": {"type": "sandbox", "rows": 4 * arguments.rows},
            "seed_labels": arguments.rows,
            "prompts_per_iteration": [arguments.rows],
            "heldout": min(32, arguments.rows),
        },
        "seed_training": training,
        "refine": dict(training),
        "sampling": {"max_tokens": 96, "max_identical": 1.0, "max_empty": 1.0, "backend": {"batch_size": 64}},
        "evaluation": {"max_prompts": min(32, arguments.rows), "reward": "none"},
        "compute": {"executor": {"type": "local"}, **({} if gpu else {"cpu_threads": 1})},
    }


def stages_of(run: Path) -> Iterator[tuple[str, float, float]]:
    """Each finished stage, and when it began and ended."""
    begun: dict[str, float] = {}
    for line in (run / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "stage started":
            begun[event["stage"]] = event["time"]
        elif event["event"] == "stage finished":
            yield event["stage"], begun[event["stage"]], event["time"]


def main() -> None:
    """Run, and print a line per stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--until", default="seed", help="the last stage; `refine-1` for a whole iteration")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--billions", type=float, default=7.1)
    parser.add_argument("--lora", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--small", action="store_true", help="a tiny model")
    arguments = parser.parse_args()
    gpu = torch.cuda.is_available()
    shape = SMALL if arguments.small or not gpu else SHAPE
    layers = 2 if shape is SMALL else max(1, round(arguments.billions * PER_BILLION))
    print(f"{'adapters' if arguments.lora else 'all weights'}, {arguments.rows} rows; {where(torch.get_num_threads())}")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with said(f"a model of {layers} layers on {work_device()}, and saving it"):
            parameters = save_model(folder / "model", layers, shape, work_device())
        if gpu:
            torch.cuda.empty_cache()  # the stages need the room
        (folder / "r.yaml").write_text(yaml.safe_dump(recipe(folder / "model", arguments, gpu=gpu)))
        command = [sys.executable, "-m", "spa_recipes.cli", "run", "r.yaml", "--until", arguments.until]
        with Watch(gpu=gpu) as watch:
            done = subprocess.run(command, cwd=folder, text=True, stderr=subprocess.PIPE)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        print(
            f"\n{parameters / 1e9:.3f} billion parameters: wall seconds, {'GPU' if gpu else 'processor'} seconds, share"
        )
        for stage, begin, end in stages_of(folder / "runs" / "stages"):
            inside = [moment for moment in watch.moments if begin <= moment.at <= end]
            share = sum(moment.busy for moment in inside) / max(1, len(inside))
            peak = max((moment.memory for moment in inside), default=0)
            memory = f"   {human_bytes(peak)} by nvidia-smi" if gpu else ""
            print(
                f"  {stage:18} {end - begin:7.1f} s   {share * (end - begin):7.1f} s   {share:.2f}{memory}", flush=True
            )


if __name__ == "__main__":
    main()
