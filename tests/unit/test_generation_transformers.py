"""Sampling with transformers: against `model.generate`, a recomputed forward pass, and the distribution itself."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from spa_recipes.errors import DataError, RecipeError, StageError
from spa_recipes.generation import transformers as sampler
from spa_recipes.generation.engines import open_engine
from spa_recipes.generation.kept import in_float32
from spa_recipes.generation.requests import Completion, Request, request_seed
from spa_recipes.generation.transformers import sample
from spa_recipes.models.loading import for_inference, load_causal_lm
from spa_recipes.recipe.schema import Model, Sampling, TransformersBackend, VllmBackend
from tests.kit.tiny_models import VOCAB, build

KINDS = ("llama", "mistral", "qwen3", "gpt2", "gemma2")


def setup_module() -> None:
    torch.set_num_threads(1)


def ask(lengths: list[int], samples: int = 1) -> list[Request]:
    """Requests with prompts of the given lengths, random but fixed."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in lengths]
    return [Request(f"p{i}", k, prompt) for i, prompt in enumerate(prompts) for k in range(samples)]


def seed_of(request: Request) -> int:
    return request_seed(5, "generate-1", request.prompt_id, request.sample)


def run(model: PreTrainedModel, requests: list[Request], **changes: Any) -> list[Completion]:
    settings: dict[str, Any] = {
        "temperature": 0.8,
        "top_p": 1.0,
        "max_tokens": 20,
        "stop_ids": [0, 1, 2],
        "seed_of": seed_of,
        "batch_size": 16,
    }
    return sample(model, requests, **{**settings, **changes})


def full_logps(model: PreTrainedModel, prompt_ids: list[int], response_ids: list[int]) -> list[float]:
    """Log-probs of the response tokens from one plain forward pass."""
    ids = torch.tensor([prompt_ids + response_ids])
    with torch.no_grad():
        logps_TV = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
    begin = len(prompt_ids)
    return [float(logps_TV[begin + i - 1, token]) for i, token in enumerate(response_ids)]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_what_generate_gives(kind: str) -> None:
    model = build(kind)
    requests = ask([5, 5, 9, 3, 14, 6])
    stops = [0, 1, 2, 3, 4, 5]
    completions = run(model, requests, temperature=0.0, stop_ids=stops, max_tokens=40)
    for request, completion in zip(requests, completions, strict=True):
        expected = model.generate(
            torch.tensor([request.prompt_ids]),
            attention_mask=torch.ones(1, len(request.prompt_ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=stops,
            pad_token_id=0,
        )[0, len(request.prompt_ids) :].tolist()
        assert completion.response_ids == expected
        assert completion.finish_reason == ("stop" if expected[-1] in stops else "length")
    if kind != "gemma2":  # this one goes round in circles; the rows of the others end at different times
        assert len({len(completion.response_ids) for completion in completions}) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_logps_are_those_of_a_full_forward_pass(kind: str) -> None:
    model = build(kind)
    requests = ask([4, 8, 11], samples=4)
    for top_p in (1.0, 0.7):
        for request, completion in zip(requests, run(model, requests, top_p=top_p), strict=True):
            expected = full_logps(model, request.prompt_ids, completion.response_ids)
            assert completion.logps == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_sample_depends_on_neither_batch_nor_order(kind: str) -> None:
    model = build(kind)
    requests = ask([3, 7, 7, 12, 5, 20], samples=3)
    together = {(c.prompt_id, c.sample): c for c in run(model, requests)}
    for other in (requests[::-1], requests[4:9], requests[-1:]):
        for size in (1, 5, 16):
            for request, completion in zip(other, run(model, other, batch_size=size), strict=True):
                expected = together[request.prompt_id, request.sample]
                assert completion.response_ids == expected.response_ids
                assert completion.logps == pytest.approx(expected.logps, abs=1e-4)


def test_samples_of_one_prompt_differ_and_another_seed_gives_others() -> None:
    model = build("llama")
    requests = ask([6], samples=8)
    answers = {tuple(completion.response_ids) for completion in run(model, requests)}
    assert len(answers) == 8
    others = run(model, requests, seed_of=lambda r: seed_of(r) ^ 1)
    assert answers.isdisjoint(tuple(completion.response_ids) for completion in others)


@pytest.mark.parametrize("share", [0.0, 2.0])
def test_dropping_finished_rows_changes_nothing(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("mistral")
    requests = ask([3, 7, 9], samples=6)
    expected = run(model, requests)
    monkeypatch.setattr(sampler, "DROP_SHARE", share)
    completions = run(model, requests)
    assert [c.response_ids for c in completions] == [c.response_ids for c in expected]
    assert Counter(c.finish_reason for c in completions).keys() == {"stop", "length"}


def test_completions_are_in_the_order_of_the_requests_and_end_as_they_say() -> None:
    model = build("llama")
    requests = ask([9, 3, 6, 3], samples=2)
    seen: list[tuple[int, int]] = []
    completions = run(model, requests, batch_size=3, on_progress=lambda done, tokens: seen.append((done, tokens)))
    assert [(c.prompt_id, c.sample) for c in completions] == [(r.prompt_id, r.sample) for r in requests]
    assert [done for done, _ in seen] == [3, 6, 8]
    assert seen[-1][1] == sum(len(c.response_ids) for c in completions)
    for completion in completions:
        assert len(completion.logps) == len(completion.response_ids) <= 20
        assert not set(completion.response_ids[:-1]) & {0, 1, 2}
        assert (completion.response_ids[-1] in {0, 1, 2}) == (completion.finish_reason == "stop")


def test_a_stop_token_inside_a_prompt_ends_nothing() -> None:
    model = build("llama")
    requests = [Request("short", 0, [9, 8]), Request("long", 0, [9, 8, 0, 1, 2, 7])]
    completions = run(model, requests, temperature=0.0)
    alone = run(model, requests[1:], temperature=0.0)[0]
    assert completions[1].response_ids == alone.response_ids
    assert completions[1].logps == pytest.approx(alone.logps, abs=1e-4)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.6)])
def test_frequencies_follow_the_distribution(temperature: float, top_p: float) -> None:
    model = build("llama")
    count = 4000
    request = ask([5])[0]
    requests = [request._replace(sample=k) for k in range(count)]
    completions = run(
        model, requests, temperature=temperature, top_p=top_p, max_tokens=1, stop_ids=[], batch_size=count
    )
    counts = torch.bincount(torch.tensor([c.response_ids[0] for c in completions]), minlength=VOCAB).double()
    with torch.no_grad():
        logits_V = model(torch.tensor([request.prompt_ids])).logits[0, -1].double()
    probs_V = torch.softmax(logits_V / temperature, -1)
    likeliest = probs_V.argsort(descending=True).tolist()
    kept: list[int] = []
    while sum(float(probs_V[token]) for token in kept) < top_p - 1e-12 and len(kept) < VOCAB:
        kept.append(likeliest[len(kept)])
    assert counts.sum() == counts[kept].sum() == count
    expected = torch.zeros_like(probs_V)
    expected[kept] = probs_V[kept] / probs_V[kept].sum() * count
    common = expected >= 5
    chi_square = float(((counts - expected)[common] ** 2 / expected[common]).sum())
    freedom = int(common.sum()) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5 + 4


def test_a_broken_model_is_reported() -> None:
    model = build("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    for temperature in (0.0, 1.0):
        with pytest.raises(StageError, match="NaN"):
            run(model, ask([4]), temperature=temperature)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="empty prompt"):
        run(build("llama"), [Request("p", 0, [])])
    assert run(build("llama"), []) == []


def test_seeds_are_fixed_and_distinct() -> None:
    assert request_seed(42, "generate-1", "p", 0) == 2605738059373894991
    seeds = {
        request_seed(run, stage, prompt, k)
        for run in (1, 11)
        for stage in ("a", "ab")
        for prompt in ("b", "bb")
        for k in range(50)
    }
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_saved_model_loads_and_says_the_same(tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path)
    loaded = for_inference(load_causal_lm, Model(model_name_or_path=str(tmp_path)))
    requests = ask([4, 6])
    assert run(loaded, requests) == run(model, requests)


def test_the_engine_is_the_one_the_recipe_names(tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path)
    settings = Model(model_name_or_path=str(tmp_path))
    sampling = Sampling(temperature=0.8, max_tokens=20, backend=TransformersBackend(batch_size=3))
    requests = ask([4, 6], samples=2)
    engine = open_engine(settings, sampling, [0, 1, 2])
    groups = [requests[:1], [], requests[1:]]
    reports: list[tuple[int, int]] = []
    stream = engine.stream(iter(groups), seed_of=seed_of, on_progress=lambda *report: reports.append(report))
    answers = [run(model, group, batch_size=3) for group in groups]
    assert list(stream) == list(enumerate(answers))
    assert reports[-1] == (4, sum(len(answer.response_ids) for group in answers for answer in group))


def test_a_prompt_without_room_for_an_answer_is_refused(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    settings = Model(model_name_or_path=str(tmp_path), max_length=30, max_prompt_length=10)
    sampling = Sampling(temperature=0.8, max_tokens=20)
    engine = open_engine(settings, sampling, [0])
    groups = iter([ask([10]), ask([4, 11])])
    stream = engine.stream(groups, seed_of=seed_of)
    assert len(next(stream)[1]) == 1
    with pytest.raises(DataError, match=r"p1: a prompt of 11 tokens and an answer of up to 20 .*max_length \(30\)"):
        next(stream)


def test_vllm_that_is_not_there_is_a_recipe_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    sampling = Sampling(backend=VllmBackend(type="vllm"))
    with pytest.raises(RecipeError, match=r"spa-recipes\[vllm\]"):
        open_engine(Model(model_name_or_path="x/y"), sampling, [0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_that_is_another_one_token_by_token_stops_the_sampling(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = sampler._RoomyLayer.update
    batches: list[int] = []

    def forgetful(self: Any, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen_keys, seen_values = update(self, keys, values, *args, **kwargs)
        return seen_keys * 0.5, seen_values

    monkeypatch.setattr(sampler._RoomyLayer, "update", forgetful)
    model = build("llama").to(dtype)
    with pytest.raises(StageError, match="sampled token by token, the model is another one") as caught:
        run(model, ask([4, 9, 30]), batch_size=1, on_progress=lambda done, tokens: batches.append(done))
    assert caught.value.where == "prompt p0, answer 0"
    assert batches == []  # nothing more was sampled


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_in_half_precision_does_not_stop_the_sampling(kind: str) -> None:
    """Eight prompts of one batch each: what is kept and one pass over it differ by rounding, which is measured."""
    model = build(kind).bfloat16()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for request in ask([4, 6, 8, 9, 10, 12, 16, 30]):
        run(model, [request])
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_model_in_half_precision_computes_in_float32_and_is_as_before() -> None:
    model = build("gemma2").bfloat16()
    exact = build("gemma2").bfloat16().float()
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    with torch.inference_mode():
        rounded = model(input_ids=ids).logits
        with in_float32(model):
            assert torch.equal(model(input_ids=ids).logits, exact(input_ids=ids).logits)
        assert torch.equal(model(input_ids=ids).logits, rounded)
        with pytest.raises(IndexError), in_float32(model):
            model(input_ids=ids + VOCAB)
        assert torch.equal(model(input_ids=ids).logits, rounded)


def test_a_model_that_does_not_compute_in_float32_is_sampled_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build("llama").bfloat16()
    product = type(model.lm_head).forward

    def half_only(layer: Any, states: torch.Tensor) -> Any:
        if states.dtype == torch.float32:
            raise RuntimeError("no product in float32\nsecond line")
        return product(layer, states)

    monkeypatch.setattr(type(model.lm_head), "forward", half_only)
    assert run(model, ask([4]))
    said = "sampling was not compared with one pass, as bfloat16 was not measured (no product in float32)\n"
    assert capsys.readouterr().out == said


def test_an_engine_compares_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    monkeypatch.setattr(sampler, "stop_if_another_model", lambda model, answers: compared.append(len(answers)))
    build("llama").save_pretrained(tmp_path)
    engine = open_engine(Model(model_name_or_path=str(tmp_path), max_length=90), Sampling(max_tokens=40), [0])
    list(engine.stream(iter([ask([4, 6, 8, 9, 10]), ask([5])]), seed_of=seed_of))
    assert compared == [sampler.TRIED]
