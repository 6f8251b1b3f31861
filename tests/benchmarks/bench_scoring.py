"""Scoring speed: `spa_recipes.generation.scoring` against plain implementations and TRL's, from one run.

    python tests/benchmarks/bench_scoring.py [--threads 2] [--repeats 3]

- plain: whole logits, log-softmax over all positions, batches of 1 and of 8 in the order of the data, padded.
- trl: what DPOTrainer does to precompute reference log-probs (its fused output layer), batches of 8.

Models and texts are random. Sides take turns, the best time of each counts; all must give the same scores.
"""

import argparse
import random
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from spa_recipes.generation.scoring import Scored, sequence_logps


def llama(hidden: int, layers: int, vocab: int) -> PreTrainedModel:
    """A random Llama of the sandbox's kind."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=3 * hidden,
        tie_word_embeddings=True,
        initializer_range=0.06,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config).eval()


def texts(count: int, prompt: tuple[int, int], response: tuple[int, int], vocab: int) -> list[Scored]:
    """Random prompts and responses whose lengths lie in the given ranges."""
    rng = random.Random(0)
    return [
        Scored(*([rng.randrange(vocab) for _ in range(rng.randint(*lengths))] for lengths in (prompt, response)))
        for _ in range(count)
    ]


def padded(items: list[Scored]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """input_ids, attention_mask and response mask of a batch, padded on the right."""
    width = max(len(item.prompt_ids) + len(item.response_ids) for item in items)
    rows = [[], [], []]  # type: list[list[list[int]]]
    for item in items:
        a, b = len(item.prompt_ids), len(item.response_ids)
        pad = [0] * (width - a - b)
        rows[0].append(item.prompt_ids + item.response_ids + pad)
        rows[1].append([1] * (a + b) + pad)
        rows[2].append([0] * a + [1] * b + pad)
    input_ids, mask, response = (torch.tensor(values) for values in rows)
    return input_ids, mask, response


def plain(model: PreTrainedModel, items: list[Scored], batch_size: int) -> list[float]:
    """Scores from whole logits."""
    scores: list[float] = []
    for begin in range(0, len(items), batch_size):
        input_ids, mask, response = padded(items[begin : begin + batch_size])
        with torch.no_grad():
            logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        logps = logits[:, :-1].log_softmax(-1).gather(-1, input_ids[:, 1:, None]).squeeze(-1)
        scores.extend((logps * response[:, 1:]).sum(-1).tolist())
    return scores


def trl(model: PreTrainedModel, items: list[Scored], batch_size: int) -> list[float]:
    """Scores as `DPOTrainer.compute_ref_log_probs` gets them; the model went through `add_fused_lm_head`."""
    scores: list[float] = []
    for begin in range(0, len(items), batch_size):
        input_ids, mask, response = padded(items[begin : begin + batch_size])
        labels = input_ids.masked_fill(response == 0, -100)
        with torch.no_grad():
            output = model(input_ids=input_ids, attention_mask=mask, labels=labels, use_cache=False, fused_lm_head=True)
        scores.extend(output.log_probs.sum(dim=1).tolist())
    return scores


def main() -> None:
    """Print tokens per second of every side and the ratio to ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads, best of {arguments.repeats}; tokens of prompts and responses per second")
    # name, hidden, layers, vocabulary, responses, prompt lengths, response lengths
    cases = [
        ("sandbox (96 x 2, V 450)", 96, 2, 450, 800, (17, 23), (15, 55)),
        ("256 x 4, V 1,000", 256, 4, 1000, 96, (20, 120), (20, 200)),
        ("256 x 4, V 32,000", 256, 4, 32000, 32, (20, 120), (20, 200)),
    ]
    for name, hidden, layers, vocab, count, prompt, response in cases:
        model, fused = llama(hidden, layers, vocab), llama(hidden, layers, vocab)
        add_fused_lm_head(fused)
        items = texts(count, prompt, response, vocab)
        tokens = sum(len(item.prompt_ids) + len(item.response_ids) for item in items)
        sides: dict[str, Callable[[], list[float]]] = {
            "ours": lambda m=model, i=items: sequence_logps(m, i, tokens_per_batch=16384),  # type: ignore[misc]
            "plain, 1": lambda m=model, i=items: plain(m, i, 1),  # type: ignore[misc]
            "plain, 8": lambda m=model, i=items: plain(m, i, 8),  # type: ignore[misc]
            "trl, 8": lambda m=fused, i=items: trl(m, i, 8),  # type: ignore[misc]
        }
        best = dict.fromkeys(sides, 0.0)
        expected = sides["ours"]()
        for _ in range(arguments.repeats):
            for side, score in sides.items():
                begin = time.perf_counter()
                scores = score()
                best[side] = max(best[side], tokens / (time.perf_counter() - begin))
                worst = max(abs(a - b) for a, b in zip(scores, expected, strict=True))
                assert worst < 1e-2, f"{side} differs by {worst}"
        print(f"{name:26}", end="")
        for side, speed in best.items():
            ratio = "" if side == "ours" else f" ({best['ours'] / speed:.1f}x)"
            print(f"   {side} {speed:7,.0f}{ratio}", end="")
        print(flush=True)


if __name__ == "__main__":
    main()
