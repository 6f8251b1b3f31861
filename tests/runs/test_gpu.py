"""On a CUDA device: the same log-probs and samples as the definition gives on a CPU, and no whole logits in memory."""

import pytest
import torch

from spa_recipes.algo.decoupled import chunked_decoupled_logps
from spa_recipes.algo.logps import LmHead, tiled_token_logps
from spa_recipes.generation.scoring import sequence_logps
from tests.kit.scoring import build, ragged, sampled, slow_logps, with_shared_prompts
from tests.kit.tiny_models import VOCAB

DEVICE = torch.device("cuda")

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "granite", "wide mistral", "mistral", "gemma2", "doubling"])
@pytest.mark.parametrize("texts", ["shared", "ragged"])
def test_scores_are_those_of_the_definition(kind: str, texts: str) -> None:
    """Packed where the model can be, in rows of their own where not."""
    model, items = build(kind), with_shared_prompts() if texts == "shared" else ragged()
    expected = slow_logps(model, items)
    scores = sequence_logps(model.to(DEVICE), items, tokens_per_batch=300)
    assert scores == pytest.approx(expected, rel=1e-5, abs=1e-3)


def test_kept_log_probs_are_the_scores() -> None:
    model = build("llama").to(DEVICE)
    items, kept = sampled(model)
    assert sequence_logps(model, items, tokens_per_batch=500) == pytest.approx(kept, rel=1e-5, abs=1e-3)


def test_decoupled_log_probs_are_those_of_a_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, heads = ([torch.randn(n, 16, generator=generator) for _ in range(2)] for n in (40, VOCAB))
    targets_N = torch.randint(VOCAB, (40,), generator=generator)

    def logps(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        states, layers = ([tensor.to(device, dtype) for tensor in tensors] for tensors in (hidden, heads))
        found = chunked_decoupled_logps(
            states[0], LmHead(layers[0]), states[1], LmHead(layers[1]), targets_N.to(device), 0.5, chunk_size=16
        )
        return torch.stack(list(found)).double().cpu()

    exact = logps(torch.device("cpu"), torch.float64)
    assert torch.allclose(logps(DEVICE, torch.float32), exact, rtol=1e-4, atol=1e-4)


def test_logits_are_never_whole_in_memory() -> None:
    tokens, words, rows = 8192, 32_000, 256
    head = LmHead(torch.randn(words, 64, device=DEVICE))
    hidden_ND = torch.randn(tokens, 64, device=DEVICE)
    targets_N = torch.zeros(tokens, dtype=torch.long, device=DEVICE)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    tiled_token_logps(hidden_ND, head, targets_N, rows=rows, columns=words)
    assert torch.cuda.max_memory_allocated() - before < 4 * (4 * rows * words)
