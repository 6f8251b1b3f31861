"""Scores of responses against a slow forward pass in float64, one response and one token at a time."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from spa_recipes.errors import StageError
from spa_recipes.generation import packing, scoring
from spa_recipes.generation.lm_head import checked_lm_head, logits_at
from spa_recipes.generation.requests import Request
from spa_recipes.generation.scoring import Scored, sequence_logps
from spa_recipes.generation.transformers import sample

VOCAB = 53
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


class DoublingLlama(LlamaForCausalLM):  # type: ignore[misc]
    """Does something to its logits that no config says."""

    def forward(self, *args: Any, logits_to_keep: int | torch.Tensor = 0, **kwargs: Any) -> Any:
        output = super().forward(*args, logits_to_keep=logits_to_keep, **kwargs)
        output.logits = output.logits * 2
        return output


class BareLlama(DoublingLlama):
    """The same without `logits_to_keep`."""

    def forward(self, input_ids: Any = None, use_cache: Any = None) -> Any:  # type: ignore[override]
        return super().forward(input_ids=input_ids, use_cache=use_cache)


def build(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=96, initializer_range=0.3, bos_token_id=None
        )
        return GPT2LMHeadModel(config).eval()
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=7)).eval()
    if kind == "wide mistral":
        return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=64)).eval()
    if kind == "gemma2":
        config = Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=2.0, sliding_window=7)
        config._attn_implementation = "eager"
        return Gemma2ForCausalLM(config).eval()
    if kind == "granite":
        return GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=3.0)).eval()
    if kind == "cohere":
        return CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25)).eval()
    if kind == "doubling":
        return DoublingLlama(LlamaConfig(**SHAPE)).eval()
    if kind == "bare":
        return BareLlama(LlamaConfig(**SHAPE)).eval()
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


def ragged(count: int = 24) -> list[Scored]:
    """Prompts of 1 to 30 tokens and responses of 1 to 40, random but fixed."""
    rng = random.Random(0)
    return [
        Scored(
            [rng.randrange(VOCAB) for _ in range(rng.randint(1, 30))],
            [rng.randrange(VOCAB) for _ in range(rng.randint(1, 40))],
        )
        for _ in range(count)
    ]


def slow_logps(model: PreTrainedModel, items: list[Scored]) -> list[float]:
    """The definition, spelled out; the model computes in float64."""
    model = model.double()
    sums = []
    for prompt_ids, response_ids in items:
        with torch.no_grad():
            logits_TV = model(input_ids=torch.tensor([prompt_ids + response_ids]), use_cache=False).logits[0]
        total = 0.0
        for i, token in enumerate(response_ids):
            row = logits_TV[len(prompt_ids) + i - 1].tolist()
            total += row[token] - torch.tensor(row, dtype=torch.float64).exp().sum().log().item()
        sums.append(total)
    model.float()
    return sums


def setup_module() -> None:
    torch.set_num_threads(1)


def with_shared_prompts(prompts: int = 6, samples: int = 4) -> list[Scored]:
    """Several responses of 1 to 12 tokens to each of some prompts of 12 to 40, in no order."""
    rng = random.Random(1)
    items = []
    for _ in range(prompts):
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(12, 40))]
        items += [Scored(prompt, [rng.randrange(VOCAB) for _ in range(rng.randint(1, 12))]) for _ in range(samples)]
    rng.shuffle(items)
    return items


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Responses per row of every row that was scored."""
    seen: list[int] = []

    def collate(rows: Any, *arguments: Any) -> Any:
        seen.extend(len(row.responses) for row in rows)
        return packing.collate(rows, *arguments)

    monkeypatch.setattr(scoring, "collate", collate)
    return seen


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "granite", "cohere", "wide mistral"])
def test_scores_with_a_shared_prompt_are_those_of_the_definition(kind: str, widths: list[int]) -> None:
    model = build(kind)
    if kind == "gemma2":
        model.config.sliding_window = 64
    items = with_shared_prompts()
    assert sequence_logps(model, items, tokens_per_batch=200) == pytest.approx(slow_logps(model, items), abs=2e-4)
    assert max(widths) > 1


@pytest.mark.parametrize("kind", ["mistral", "doubling", "bare"])
def test_a_model_that_cannot_share_a_prompt_does_not(kind: str, widths: list[int]) -> None:
    model = build(kind)
    items = with_shared_prompts(prompts=3)
    assert sequence_logps(model, items, tokens_per_batch=200) == pytest.approx(slow_logps(model, items), abs=2e-4)
    assert set(widths) == {1}


def test_a_model_that_ignores_who_sees_whom_is_found_out(widths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    forward = type(model.base_model).forward

    def causal(
        self: Any, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **rest: Any
    ) -> Any:
        return forward(self, input_ids, position_ids=position_ids, **rest)

    monkeypatch.setattr(type(model.base_model), "forward", causal)
    items = [Scored([1, 2, 3, 4, 5, 6, 7, 8], ids) for ids in ([9, 10, 11], [12, 13, 14])]
    assert sequence_logps(model, items, tokens_per_batch=200) == pytest.approx(slow_logps(model, items), abs=2e-4)
    assert widths == [2, 1, 1, 1, 1]  # one row with both, to look at what the model makes of it, and then none


@given(
    prompts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=12),
    lengths=st.lists(st.integers(1, 5), min_size=12, max_size=12),
    most=st.integers(1, 4),
    budget=st.integers(1, 40),
)
def test_every_item_is_in_one_row_and_sees_its_prompt_and_itself(
    prompts: list[list[int]], lengths: list[int], most: int, budget: int
) -> None:
    items = [Scored(prompt, [7] * length) for prompt, length in zip(prompts, lengths, strict=False)]
    rows = packing.rows_of(items, lambda lengths, prompt: len(lengths) <= most)
    assert sorted(i for row in rows for i in row.items) == list(range(len(items)))
    passes = list(packing.batches(rows, budget))
    assert sorted(i for rows in passes for row in rows for i in row.items) == list(range(len(items)))
    for rows in passes:
        assert len(rows) == 1 or len(rows) * max(row.width for row in rows) <= budget
        for row in rows:
            assert len(row.items) <= most
            assert all(items[i].prompt_ids == row.prompt_ids for i in row.items)
        batch = packing.collate(rows, torch.device("cpu"), torch.float32)
        members = [i for row in rows for i in row.items]
        assert [members[k] for k in batch.item.tolist()] == [i for i in members for _ in items[i].response_ids]
        if batch.positions is not None:
            sees_who_it_should(rows, batch)


def sees_who_it_should(rows: list[packing.Row], batch: packing.Batch) -> None:
    """Spelled out, token by token."""
    for b, row in enumerate(rows):
        owners = [None] * len(row.prompt_ids) + [k for k, r in enumerate(row.responses) for _ in r[:-1]]
        counts: dict[Any, int] = {}
        for q, owner in enumerate(owners):
            start = 0 if owner is None else len(row.prompt_ids)
            assert batch.positions[b, q] == start + counts.get(owner, 0)
            counts[owner] = counts.get(owner, 0) + 1
            for k in range(batch.input_ids.shape[1]):
                allowed = k <= q and owners[k] in (None, owner)
                assert (batch.attention[b, 0, q, k] == 0) == allowed


def test_a_prompt_is_shared_where_that_is_less_work() -> None:
    pays = packing.cheaper_together(LlamaConfig(hidden_size=256))
    assert pays([110, 110], 70)
    assert not pays([2000, 2000], 5)
    assert not pays([4], 100)  # nothing to share it with


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2", "gemma2", "granite", "cohere", "doubling", "bare"])
def test_scores_are_those_of_the_definition(kind: str) -> None:
    model, items = build(kind), ragged()
    expected = slow_logps(model, items)
    for tokens_per_batch in (1, 100, 10_000):
        scores = sequence_logps(model, items, tokens_per_batch=tokens_per_batch)
        assert scores == pytest.approx(expected, rel=1e-5, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "scale", "softcap"),
    [("llama", 1.0, None), ("gemma2", 1.0, 2.0), ("granite", 1 / 3, None), ("cohere", 0.25, None)],
)
def test_the_output_layer_is_taken_apart_where_its_rule_is_known(
    kind: str, scale: float, softcap: float | None
) -> None:
    head = checked_lm_head(build(kind), [5, 6, 7])
    assert head is not None
    assert head.scale == pytest.approx(scale)
    assert head.softcap == softcap


@pytest.mark.parametrize("kind", ["doubling", "bare"])
def test_an_output_layer_with_an_unknown_rule_is_left_to_the_model(kind: str) -> None:
    assert checked_lm_head(build(kind), [5, 6, 7]) is None


def test_a_score_depends_on_neither_batch_nor_order_nor_padding() -> None:
    model, items = build("mistral"), ragged(40)
    expected = sequence_logps(model, items, tokens_per_batch=400)
    backwards = sequence_logps(model, items[::-1], tokens_per_batch=70)[::-1]
    alone = [sequence_logps(model, [item], tokens_per_batch=1)[0] for item in items]
    beside_a_long_one = [
        sequence_logps(model, [item, Scored([3], [4] * 90)], tokens_per_batch=1000)[0] for item in items
    ]
    for scores in (backwards, alone, beside_a_long_one):
        assert scores == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_a_cpu_takes_no_more_than_its_caches_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    model, items = build("llama"), ragged(30)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(scoring, "CPU_TOKENS", 10**6)
    expected = sequence_logps(model, items, tokens_per_batch=10**6, on_progress=lambda *now: seen.append(now))
    tokens = sum(len(item.prompt_ids) + len(item.response_ids) for item in items)
    assert seen == [(30, tokens)]
    monkeypatch.setattr(scoring, "CPU_TOKENS", 64)
    seen.clear()
    scores = sequence_logps(model, items, tokens_per_batch=10**6, on_progress=lambda *now: seen.append(now))
    assert scores == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert len(seen) > 10
    assert seen == sorted(seen)
    assert seen[-1] == (30, tokens)


def test_scores_are_the_sums_of_the_logps_kept_while_sampling() -> None:
    model = build("llama")
    requests = [Request(str(i), 0, item.prompt_ids) for i, item in enumerate(ragged())]
    completions = sample(
        model,
        requests,
        temperature=0.7,
        top_p=0.9,
        max_tokens=30,
        stop_ids=[0, 1],
        seed_of=lambda request: int(request.prompt_id),
        batch_size=8,
    )
    items = [Scored(r.prompt_ids, c.response_ids) for r, c in zip(requests, completions, strict=True)]
    scores = sequence_logps(model, items, tokens_per_batch=500)
    assert scores == pytest.approx([sum(c.logps) for c in completions], rel=1e-5, abs=1e-3)


def test_bfloat16_stays_near_float32() -> None:
    model, items = build("llama"), ragged()
    expected = sequence_logps(model, items, tokens_per_batch=500)
    scores = sequence_logps(model.bfloat16(), items, tokens_per_batch=500)
    lengths = [len(item.response_ids) for item in items]
    assert all(
        abs(score - other) < 0.2 * length for score, other, length in zip(scores, expected, lengths, strict=True)
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_reported_with_its_item(value: float) -> None:
    model, items = build("llama"), ragged(3)
    items = [Scored([token % 50 + 1 for token in a], [token % 50 + 1 for token in b]) for a, b in items]
    with torch.no_grad():
        model.lm_head.weight[0] = value
        model.model.embed_tokens.weight[0] = value
    items[1].prompt_ids[0] = 0
    with pytest.raises(StageError, match="item"):
        sequence_logps(model, items, tokens_per_batch=1)


def test_the_item_named_is_the_one_that_is_broken() -> None:
    model = build("llama")
    items = [Scored([1, 2], [3, 4, 5]), Scored([1, 52], [6]), Scored([7], [8])]
    with torch.no_grad():
        model.model.embed_tokens.weight[52] = float("nan")
    with pytest.raises(StageError, match="item 1 is nan"):
        sequence_logps(model, items, tokens_per_batch=1)


def test_empty_prompts_and_responses_are_refused() -> None:
    model = build("llama")
    with pytest.raises(ValueError, match="item 1 has an empty response"):
        sequence_logps(model, [Scored([1], [2]), Scored([1], [])], tokens_per_batch=10)
    with pytest.raises(ValueError, match="item 0 has an empty prompt"):
        sequence_logps(model, [Scored([], [2])], tokens_per_batch=10)
    assert sequence_logps(model, [], tokens_per_batch=10) == []


def test_logits_are_kept_where_asked() -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    for kind in ("doubling", "bare"):
        model = build(kind)
        with torch.no_grad():
            whole = model(input_ids=ids).logits
            assert torch.allclose(logits_at(model, 1, input_ids=ids).logits, whole[:, -1:], atol=1e-5)
            some = logits_at(model, torch.tensor([0, 2]), input_ids=ids).logits
            assert torch.allclose(some, whole[:, [0, 2]], atol=1e-5)
