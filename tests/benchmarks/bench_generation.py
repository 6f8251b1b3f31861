"""Sampling speed: `spa_recipes.generation.transformers.sample` against `model.generate`, from one run.

    python -m tests.benchmarks.bench_generation [--threads 2] [--repeats 3]

Models are random and so are prompts; stop tokens make answers about as long as the sandbox's. `generate` gets the same
prompts in batches of the same size, as they come, padded on the left. Sides take turns, the best time of each counts.
"""

import argparse
import random
import time
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from spa_recipes.generation.requests import Request, request_seed
from spa_recipes.generation.transformers import sample
from tests.benchmarks.kit import PAD, llama


def ask(prompts: int, samples: int, shortest: int, longest: int, vocab: int) -> list[Request]:
    """`samples` requests for each of some random prompts."""
    rng = random.Random(0)
    texts = [[rng.randrange(1, vocab) for _ in range(rng.randint(shortest, longest))] for _ in range(prompts)]
    return [Request(str(i), k, text) for i, text in enumerate(texts) for k in range(samples)]


def ours(model: PreTrainedModel, requests: list[Request], stops: list[int], max_tokens: int, batch_size: int) -> int:
    """Sample with this package; returns the number of sampled tokens."""
    completions = sample(
        model,
        requests,
        temperature=0.7,
        top_p=1.0,
        max_tokens=max_tokens,
        stop_ids=stops,
        seed_of=lambda request: request_seed(0, "bench", request.prompt_id, request.sample),
        batch_size=batch_size,
    )
    return sum(len(completion.response_ids) for completion in completions)


def theirs(model: PreTrainedModel, requests: list[Request], stops: list[int], max_tokens: int, batch_size: int) -> int:
    """Sample with `model.generate`; returns the number of sampled tokens."""
    tokens = 0
    for begin in range(0, len(requests), batch_size):
        prompts = [request.prompt_ids for request in requests[begin : begin + batch_size]]
        width = max(map(len, prompts))
        output = model.generate(
            torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts]),
            attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
            do_sample=True,
            temperature=0.7,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max_tokens,
            eos_token_id=stops,
            pad_token_id=PAD,
            output_logits=True,
            return_dict_in_generate=True,
        )
        # The log-probs of the sampled tokens, which `sample` gives as well.
        for step, logits in enumerate(output.logits):
            logits.gather(-1, output.sequences[:, width + step, None]).squeeze(-1) - logits.logsumexp(-1)
        for row in output.sequences[:, width:].tolist():
            tokens += next((i + 1 for i, token in enumerate(row) if token in stops), len(row))
    return tokens


def rate(work: Callable[[], int]) -> float:
    """Tokens per second of one run."""
    begin = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - begin)


def main() -> None:
    """Print tokens per second of both sides and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads, best of {arguments.repeats}; sampled tokens per second")
    # name, hidden, layers, vocabulary, prompts, samples, prompt lengths, max_tokens, batch_size
    cases = [
        ("sandbox (96 x 2, V 450)", 96, 2, 450, 256, 2, 17, 23, 64, 256),
        ("256 x 4, V 1,000", 256, 4, 1000, 64, 2, 20, 120, 128, 64),
        ("256 x 4, V 32,000", 256, 4, 32000, 32, 2, 20, 120, 64, 64),
    ]
    for name, hidden, layers, vocab, prompts, samples, shortest, longest, max_tokens, batch_size in cases:
        model = llama(hidden, layers, vocab)
        requests = ask(prompts, samples, shortest, longest, vocab)
        stops = list(range(1, 1 + max(1, round(vocab / max_tokens * 1.7))))
        settings = (model, requests, stops, max_tokens, batch_size)
        sides: dict[str, list[float]] = {"sample": [], "generate": []}
        for _ in range(arguments.repeats):
            sides["sample"].append(rate(lambda s=settings: ours(*s)))  # type: ignore[misc]
            sides["generate"].append(rate(lambda s=settings: theirs(*s)))  # type: ignore[misc]
        best = {side: max(rates) for side, rates in sides.items()}
        print(
            f"{name:26} sample {best['sample']:8,.0f}   generate {best['generate']:8,.0f}   "
            f"ratio {best['sample'] / best['generate']:.1f}"
        )


if __name__ == "__main__":
    main()
