"""Scores of responses against a slow forward pass in float64, one response and one token at a time."""

import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from spa_recipes.errors import StageError
from spa_recipes.generation import packing, scoring
from spa_recipes.generation.lm_head import checked_lm_head, logits_at
from spa_recipes.generation.scoring import Scored, sequence_logps
from tests.kit.scoring import build, ragged, sampled, slow_logps, with_shared_prompts
from tests.kit.tiny_models import GPT2, SHAPE, VOCAB


def setup_module() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Responses per prompt of everything that was scored in one row."""
    seen: list[int] = []

    def pack(groups: Any, device: Any) -> Any:
        seen.extend(len(group.responses) for group in groups)
        return packing.packed(groups, device)

    monkeypatch.setattr(scoring, "packed", pack)
    return seen


TRIED = [2, 1]
"""What is packed to see whether a model can be: two responses to one prompt, and one to another."""

THEN_TRIED = [*TRIED, 1, 1]
"""Where these do not differ, the shortest and the longest text, too."""


@pytest.mark.parametrize("kind", ["llama", "gpt2", "granite", "cohere", "wide mistral"])
@pytest.mark.parametrize("layout", ["spans", "grid"])
def test_scores_with_a_shared_prompt_are_those_of_the_definition(
    kind: str, layout: str, shared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(kind)
    items = with_shared_prompts()
    if layout == "grid":  # as on a GPU
        monkeypatch.setattr(scoring, "_layout", packing.as_grid)
    assert sequence_logps(model, items, tokens_per_batch=300) == pytest.approx(slow_logps(model, items), abs=2e-4)
    tried = len(THEN_TRIED)
    assert shared[:tried] == THEN_TRIED
    assert sum(shared[tried:]) == len(items)
    assert max(shared[tried:]) == 4
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "doubling", "bare"])
def test_a_model_that_cannot_be_packed_is_not(kind: str, shared: list[int]) -> None:
    """A window, eager attention, logits that are not hidden states times a matrix."""
    model = build(kind)
    items = with_shared_prompts(prompts=3)
    assert sequence_logps(model, items, tokens_per_batch=300) == pytest.approx(slow_logps(model, items), abs=2e-4)
    assert shared == []


@pytest.mark.parametrize("how", ["ignores positions", "other attention"])
def test_a_model_that_is_no_good_packed_is_found_out(
    how: str, shared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("llama")
    kind = type(model.base_model)
    forward = kind.forward

    def other(self: Any, input_ids: Any = None, position_ids: Any = None, **rest: Any) -> Any:
        if how == "other attention" and self.config._attn_implementation == packing.ATTENTION:
            raise ValueError("attention of another kind")
        return forward(self, input_ids, **rest)

    monkeypatch.setattr(kind, "forward", other)
    short = Scored([7], [8])  # which says little about a model
    items = [short, *with_shared_prompts(prompts=2), short]
    assert sequence_logps(model, items, tokens_per_batch=300) == pytest.approx(slow_logps(model, items), abs=2e-4)
    assert shared == TRIED
    assert model.config._attn_implementation == "sdpa"


def test_a_model_with_fewer_positions_than_the_trial_has_is_scored(shared: list[int]) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, **{**GPT2, "n_positions": 12})).eval()
    items = [Scored([1, 2, 3], [4, 5, 6, 7]), Scored([1, 2, 3], [8, 9, 10] * 3)]
    assert sequence_logps(model, items, tokens_per_batch=300) == pytest.approx(slow_logps(model, items), abs=2e-4)
    assert shared == []


@given(
    prompts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=12),
    lengths=st.lists(st.integers(1, 5), min_size=12, max_size=12),
    most=st.integers(1, 12),
    budget=st.integers(1, 40),
)
def test_packed_and_padded_batches_hold_every_text_once(
    prompts: list[list[int]], lengths: list[int], most: int, budget: int
) -> None:
    items = [
        Scored(prompt, [10 * i + t for t in range(length)])
        for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=False))
    ]
    for groups in (packing.groups_of(items, most), packing.alone(items)):
        assert sorted(i for group in groups for i in group.items) == list(range(len(items)))
        assert all(group.tokens <= most or len(group.items) == 1 for group in groups) or groups == packing.alone(items)
        for padding in (True, False):
            passes = list(packing.batches(groups, budget, padding=padding))
            assert sorted(i for groups in passes for group in groups for i in group.items) == list(range(len(items)))
            for part in passes:
                texts = sum(len(group.items) for group in part)
                places = texts * max(group.longest for group in part)
                assert len(part) == 1 or (places if padding else sum(group.tokens for group in part)) <= budget
                hold_their_texts(part, [items[i] for group in part for i in group.items])


def hold_their_texts(groups: list[packing.Group], texts: list[Scored]) -> None:
    """Both forms of a batch, spelled out text by text."""
    cpu = torch.device("cpu")
    whole = [prompt + response[:-1] for prompt, response in texts]
    rows = packing.padded(groups, cpu)
    predicts_the_responses(rows, texts)
    assert [row[: len(text)] for row, text in zip(rows.input_ids.tolist(), whole, strict=True)] == whole
    batch, spans = packing.packed(groups, cpu)
    predicts_the_responses(batch, texts)
    assert batch.positions is not None
    ids, positions = batch.input_ids[0].tolist(), batch.positions[0].tolist()
    assert [ids[prompt] + ids[own] for prompt, *owns in spans.groups for own in owns] == whole
    grid = packing.as_grid(spans, cpu)
    for row, text in zip(grid.of_texts.tolist(), whole, strict=True):
        assert [ids[token] for token in row[: len(text)]] == text
        assert [positions[token] for token in row[: len(text)]] == list(range(len(text)))
    flat = grid.of_texts.flatten().tolist()
    assert [flat[place] for place in grid.of_tokens.tolist()] == list(range(len(ids)))


def predicts_the_responses(batch: packing.Batch, texts: list[Scored]) -> None:
    """Targets, the items they belong to, and the tokens that stand where they are predicted."""
    ids = batch.input_ids.flatten().tolist()
    assert batch.targets.tolist() == [token for text in texts for token in text.response_ids]
    assert batch.item.tolist() == [i for i, text in enumerate(texts) for _ in text.response_ids]
    before = [token for p, response in texts for token in [p[-1], *response[:-1]]]
    assert [ids[place] for place in batch.at.tolist()] == before


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


def test_a_cpu_holds_logits_of_a_part_of_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    model, items = build("llama"), ragged(30)
    expected = sequence_logps(model, items, tokens_per_batch=1000)
    shapes = []

    def log_softmax(logits_nC: torch.Tensor, **settings: Any) -> torch.Tensor:
        shapes.append(logits_nC.shape)
        return of_torch(logits_nC, **settings)

    of_torch = torch.log_softmax
    monkeypatch.setattr(torch, "log_softmax", log_softmax)
    monkeypatch.setattr(scoring, "CPU_WORDS", VOCAB // 2 + 3)
    assert sequence_logps(model, items, tokens_per_batch=1000) == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert {words for _, words in shapes} == {VOCAB // 2 + 3, VOCAB - VOCAB // 2 - 3}
    assert max(tokens for tokens, _ in shapes) > 100


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_passes_side_by_side_give_the_same_scores(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, items = build(kind), with_shared_prompts(prompts=20)
    monkeypatch.setattr(scoring, "CPU_TOKENS", 64)
    expected = sequence_logps(model, items, tokens_per_batch=64)
    seen: list[tuple[int, int]] = []
    threads = set()
    attention = packing._over_spans

    def over_spans(*arguments: Any) -> Any:
        threads.add((threading.get_ident(), torch.get_num_threads()))
        return attention(*arguments)

    monkeypatch.setattr(packing, "_over_spans", over_spans)
    torch.set_num_threads(3)
    try:
        scores = sequence_logps(model, items, tokens_per_batch=200, on_progress=lambda *now: seen.append(now))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    mine = threading.get_ident()
    assert [count for ident, count in threads if ident != mine] == [1, 1, 1]
    assert (mine, 3) in threads  # which has tried the model before
    assert scores == pytest.approx(expected, rel=1e-6, abs=1e-5)
    assert seen == sorted(seen)
    assert seen[-1][0] == len(items)
    assert model.config._attn_implementation == "sdpa"


def test_a_failure_in_a_thread_stops_the_others_and_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, items = build("llama"), with_shared_prompts(prompts=20)
    monkeypatch.setattr(scoring, "CPU_TOKENS", 64)
    passes = []

    def over_spans(*arguments: Any) -> Any:
        passes.append(1)
        if len(passes) > 20:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return attention(*arguments)

    attention = packing._over_spans
    monkeypatch.setattr(packing, "_over_spans", over_spans)
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            sequence_logps(model, items, tokens_per_batch=200)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert len(passes) <= 22  # each of two threads meets the failure once
    assert model.config._attn_implementation == "sdpa"


def test_a_score_does_not_depend_on_the_longest_text_of_a_pass() -> None:
    """A rotary embedding that has other frequencies for long texts is given one text at a time."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 4.0}
    rope = {"rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": 40, **factors}
    model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "rope_parameters": rope})).eval()
    items = [*ragged(), *(Scored([3] * 20, [4, 5] * 10 + [6] * more) for more in (0, 1, 20))]
    scores = sequence_logps(model, items, tokens_per_batch=1000)
    assert scores == pytest.approx(slow_logps(model, items), abs=2e-4)
    lengths = [len(item.prompt_ids) + len(item.response_ids) for item in items]
    assert min(lengths) < 40 < max(lengths)


def test_scores_are_the_sums_of_the_logps_kept_while_sampling() -> None:
    model = build("llama")
    items, kept = sampled(model)
    assert sequence_logps(model, items, tokens_per_batch=500) == pytest.approx(kept, rel=1e-5, abs=1e-3)


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
