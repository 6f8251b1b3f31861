"""Judging speed in pairs per second, from one run: this package against what else does it.

    python -m tests.benchmarks.bench_judge [--pairs 400] [--vocab 1000 32000] [--repeats 3] [--sides ...] [--bf16]

Two models score both responses of each pair, as the judge does without kept log-probs; `one model` is what is left to
do when the generation has kept the policy's.

- plain N: whole logits of both models, log-softmax over all positions, batches of N pairs padded as they come, which is
  what the method's research code does.
- TRL N: `compute_ref_log_probs` of DPOTrainer (its fused output layer) for both models, batches of N pairs.
- floor: the bare matrix products of one pass of each model over the same tokens: no padding, no attention, and logits
  at the response tokens only.
- unshared: this package with every response behind a prompt of its own.

All sides must give the same rewards. On a GPU the shapes are those of a Llama with 1 B parameters in bfloat16.
"""

import argparse
from collections.abc import Callable
from unittest.mock import patch

import torch
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from spa_recipes.generation import packing, scoring
from spa_recipes.generation.scoring import Scored, sequence_logps
from tests.benchmarks.kit import llama, pairs, take_turns, where


def padded(items: list[Scored], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """input_ids, attention_mask and response mask of a batch, padded on the right."""
    width = max(len(item.prompt_ids) + len(item.response_ids) for item in items)
    rows: tuple[list[list[int]], ...] = ([], [], [])
    for item in items:
        a, b = len(item.prompt_ids), len(item.response_ids)
        pad = [0] * (width - a - b)
        for row, values in zip(
            rows, (item.prompt_ids + item.response_ids, [1] * (a + b), [0] * a + [1] * b), strict=True
        ):
            row.append(values + pad)
    input_ids, mask, response = (torch.tensor(values, device=device) for values in rows)
    return input_ids, mask, response


@torch.no_grad()
def plain(model: PreTrainedModel, items: list[Scored], batch: int) -> list[float]:
    """Scores from whole logits; `batch` counts responses."""
    scores: list[float] = []
    for begin in range(0, len(items), batch):
        input_ids, mask, response = padded(items[begin : begin + batch], model.device)
        logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits.float()
        logps = logits[:, :-1].log_softmax(-1).gather(-1, input_ids[:, 1:, None]).squeeze(-1)
        scores.extend((logps * response[:, 1:]).sum(-1).tolist())
    return scores


@torch.no_grad()
def trl(model: PreTrainedModel, items: list[Scored], batch: int) -> list[float]:
    """Scores as `DPOTrainer.compute_ref_log_probs` gets them; the model went through `add_fused_lm_head`."""
    scores: list[float] = []
    for begin in range(0, len(items), batch):
        input_ids, mask, response = padded(items[begin : begin + batch], model.device)
        labels = input_ids.masked_fill(response == 0, -100)
        output = model(input_ids=input_ids, attention_mask=mask, labels=labels, use_cache=False, fused_lm_head=True)
        scores.extend(output.log_probs.sum(dim=1).tolist())
    return scores


@torch.inference_mode()
def floor(model: PreTrainedModel, items: list[Scored]) -> None:
    """The matrix products that one pass cannot do without, on tokens in chunks and in the model's precision."""
    tokens = sum(len(item.prompt_ids) + len(item.response_ids) for item in items)
    responses = sum(len(item.response_ids) for item in items)
    chunk = scoring.CPU_TOKENS if model.device.type == "cpu" else 16384
    body = [layer.weight for layer in model.base_model.modules() if isinstance(layer, torch.nn.Linear)]
    head = model.get_output_embeddings().weight
    inputs = {w.shape[1]: torch.randn(chunk, w.shape[1], dtype=w.dtype, device=w.device) for w in [*body, head]}
    for weights, count, size in ((body, tokens, chunk), ([head], responses, 512)):
        for begin in range(0, count, size):
            for weight in weights:
                inputs[weight.shape[1]][: min(size, count - begin)] @ weight.T


def ours(model: PreTrainedModel, items: list[Scored]) -> list[float]:
    """Scores by this package."""
    return sequence_logps(model, items, tokens_per_batch=16384)


def unshared(model: PreTrainedModel, items: list[Scored]) -> list[float]:
    """Scores by this package, every response in a row of its own."""
    with patch.object(scoring, "groups_of", lambda items, most: packing.alone(items)):
        return ours(model, items)


def main() -> None:
    """Print pairs per second of every side and ours as a multiple of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--vocab", type=int, nargs="*", default=[1000, 32000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", nargs="*", default=[], help="only these, and ours")
    parser.add_argument("--bf16", action="store_true", help="weights and products in bfloat16")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    gpu = torch.cuda.is_available()
    half = arguments.bf16 or gpu
    precision = "bfloat16" if half else "float32"
    print(f"{arguments.pairs} pairs, {precision}, best of {arguments.repeats}; {where(arguments.threads)}")
    for vocab in arguments.vocab:
        hidden, layers, heads = (2048, 16, 32) if gpu else (256, 4, 4)
        models = [llama(hidden, layers, vocab, seed=seed, heads=heads) for seed in (0, 1)]
        fused = [llama(hidden, layers, vocab, seed=seed, heads=heads) for seed in (0, 1)]
        for model in (*models, *fused):
            model.to(torch.device("cuda" if gpu else "cpu"), torch.bfloat16 if half else torch.float32)
        for model in fused:
            add_fused_lm_head(model)
        compare(vocab, models, fused, pairs(arguments.pairs, vocab), arguments, exact=not half)


def compare(
    vocab: int,
    models: list[PreTrainedModel],
    fused: list[PreTrainedModel],
    items: list[Scored],
    arguments: argparse.Namespace,
    *,
    exact: bool,
) -> None:
    """Time every side on one vocabulary."""
    rewards: dict[str, list[float]] = {}

    def judge(
        name: str, score: Callable[..., list[float]], both: list[PreTrainedModel], *arguments: int
    ) -> Callable[[], None]:
        def work() -> None:
            policy, reference = (score(model, items, *arguments) for model in both)
            rewards[name] = [a - b for a, b in zip(policy, reference, strict=True)]

        return work

    sides: dict[str, Callable[[], object]] = {
        "ours": judge("ours", ours, models),
        "unshared": judge("unshared", unshared, models),
        "one model": lambda: ours(models[0], items),
        **{f"plain {n}": judge(f"plain {n}", plain, models, 2 * n) for n in (1, 8)},
        **{f"TRL {n}": judge(f"TRL {n}", trl, fused, 2 * n) for n in (1, 8, 32)},
        "floor": lambda: [floor(model, items) for model in models],
    }
    if arguments.sides:
        sides = {name: work for name, work in sides.items() if name in ("ours", "one model", *arguments.sides)}
    seconds = take_turns(sides, arguments.repeats)
    count = len(items) // 2
    print(f"\nvocabulary {vocab:,}: pairs per second (ours and one model, as multiples of it)")
    for name, time in seconds.items():
        print(
            f"  {name:10} {count / time:8.1f}   {time / seconds['ours']:6.2f}x  {time / seconds['one model']:6.2f}x",
            flush=True,
        )
    for name, values in rewards.items():
        worst = max(abs(a - b) for a, b in zip(values, rewards["ours"], strict=True))
        assert not exact or worst < 1e-2, f"{name} differs by {worst}"


if __name__ == "__main__":
    main()
