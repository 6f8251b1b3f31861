"""The benchmarks' files and figures, against plain loops and what the packages behind them publish."""

import csv
import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest

from spa_recipes.algo.winrate import confidence_interval
from spa_recipes.benchmarks import alpaca_eval, mt_bench
from spa_recipes.errors import DataError, RecipeError, SpaError
from tests.kit.benchmarks import (
    PROMPTS,
    QUESTIONS,
    annotations,
    logprobs,
    mt_files,
    needs_package,
    write_difficulty,
    write_lines,
)
from tests.kit.endpoint_server import EndpointServer

REAL = Path(__file__).parents[3] / "shared" / "data" / "gpt4_preferences.jsonl"


@pytest.fixture
def offline_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


# --- intervals


def slow_interval(outcome: list[float]) -> tuple[float, float]:
    """All rates that are less than 1.96 of their own standard errors away from the one seen, found by halving."""
    n, z = len(outcome), 1.959963984540054
    seen = math.fsum(outcome) / n

    def is_in(rate: float) -> bool:
        return (seen - rate) ** 2 <= z * z * rate * (1 - rate) / n

    def border(inside: float, outside: float) -> float:
        if is_in(outside):
            return outside
        for _ in range(200):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if is_in(middle) else (inside, middle)
        return inside

    # The rate itself is inside, but for 0 and 1, where the interval starts at it and is looked for from next to it.
    low = 0.0 if seen == 0 else border(min(seen, 1 - 1e-12), 0.0)
    high = 1.0 if seen == 1 else border(max(seen, 1e-12), 1.0)
    return low, high


@pytest.mark.parametrize(
    "outcome",
    [[1.0, 0.0, 1.0, 0.5], [1.0] * 9, [0.0] * 4, [0.5] * 11, [1.0] * 123 + [0.0] * 77 + [0.25] * 5, [1.0]],
)
def test_the_interval_is_the_one_found_by_search(outcome: list[float]) -> None:
    assert confidence_interval(outcome) == pytest.approx(slow_interval(outcome), abs=1e-9)


@pytest.mark.parametrize("rate", [0.5, 0.7, 0.95])
def test_the_interval_holds_the_true_rate_as_often_as_it_says(rate: float) -> None:
    n, covered = 500, 0.0
    for wins in range(n + 1):
        low, high = confidence_interval([1.0] * wins + [0.0] * (n - wins))
        if low <= rate <= high:
            covered += math.comb(n, wins) * rate**wins * (1 - rate) ** (n - wins)
    assert covered == pytest.approx(0.95, abs=0.012)


def test_no_outcomes_have_no_interval() -> None:
    with pytest.raises(ValueError, match="no outcomes"):
        confidence_interval([])


# --- AlpacaEval


def test_outputs_are_in_the_form_of_the_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    rows = [
        {"instruction": " Keep me\nas I am ", "dataset": "koala", "output": "ref", "generator": "gpt"},
        {"instruction": "é?", "dataset": "vicuna", "output": "ref 2", "generator": "gpt"},
    ]
    path.write_text(json.dumps(rows))
    prompts = alpaca_eval.read_prompts(path)
    assert prompts[0].messages == [{"role": "user", "content": " Keep me\nas I am "}]
    assert alpaca_eval.model_outputs(prompts, [" one ", "two"], "me") == [
        {"dataset": "koala", "instruction": " Keep me\nas I am ", "output": "one", "generator": "me"},
        {"dataset": "vicuna", "instruction": "é?", "output": "two", "generator": "me"},
    ]
    assert alpaca_eval.reference_outputs(prompts, "p") == rows


def test_prompts_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prompts.jsonl:2.*`instruction`"):
        alpaca_eval.read_prompts(write_lines(tmp_path / "prompts.jsonl", [{"instruction": "a"}, {"prompt": "b"}]))
    only = write_lines(tmp_path / "only.jsonl", [{"instruction": "a"}])
    with pytest.raises(DataError, match=r"row 1 has no `output`"):
        alpaca_eval.reference_outputs(alpaca_eval.read_prompts(only), str(only))


def test_the_hub_out_of_reach_is_one_line(offline_cache: Path) -> None:
    with pytest.raises(SpaError, match=r"^tatsu-lab/alpaca_eval/alpaca_eval_gpt4_baseline.json: .*HF_HUB_OFFLINE") as e:
        alpaca_eval.hub_file(alpaca_eval.HUB_PROMPTS)
    assert "\n" not in str(e.value)


@needs_package
def test_the_win_rate_is_the_mean_preference(offline_cache: Path) -> None:
    rows = annotations()
    rows[3]["preference"] = None
    plain = [row["preference"] - 1 for row in rows if row["preference"] is not None]
    scores = alpaca_eval.score(rows, "here")
    assert scores.figures["win_rate"] == pytest.approx(100 * sum(plain) / len(plain), abs=1e-12)
    assert scores.figures["n_total"] == len(plain) == 59
    assert scores.figures["n_draws"] == sum(value == 0.5 for value in plain)


@needs_package
def test_published_rates_come_out_to_all_their_digits(offline_cache: Path) -> None:
    spec = find_spec("alpaca_eval")
    assert spec is not None
    assert spec.submodule_search_locations
    boards = Path(spec.submodule_search_locations[0]) / "leaderboards" / "data_AlpacaEval_2"
    with (boards / "weighted_alpaca_eval_gpt4_turbo_leaderboard.csv").open(newline="") as handle:
        published = [row for row in csv.DictReader(handle) if row["discrete_win_rate"]]
    compared = 0
    for row in published:
        wins, losses, draws = (int(float(row[name])) for name in ("n_wins", "n_wins_base", "n_draws"))
        # Some rows count as wins what is rounded to draws in their discrete rate: their counts do not tell it.
        rounded = 100 * (wins + draws / 2) / (wins + losses + draws)
        if abs(rounded - float(row["discrete_win_rate"])) > 0.01:
            continue
        compared += 1
        made = [{"preference": value} for value, n in ((2, wins), (1, losses), (1.5, draws)) for _ in range(n)]
        figures = alpaca_eval.score(made, "here").figures
        assert figures["win_rate"] == pytest.approx(float(row["discrete_win_rate"]), rel=1e-13)
        assert figures["n_total"] == int(float(row["n_total"]))
    assert compared > len(published) / 2


@needs_package
def test_without_the_difficulties_one_line_says_how_to_get_them(offline_cache: Path) -> None:
    scores = alpaca_eval.score(annotations(), "here")
    assert "length_controlled_winrate" not in scores.figures
    assert "win_rate" in scores.figures
    assert "hf download tatsu-lab/alpaca_eval df_gamed.csv --repo-type dataset" in scores.missing
    assert "\n" not in scores.missing


@needs_package
def test_with_the_difficulties_length_is_taken_out(offline_cache: Path) -> None:
    from alpaca_eval import metrics

    write_difficulty(offline_cache, 200)
    rows = annotations(200, length_matters=True)
    scores = alpaca_eval.score(rows, "here")
    assert not scores.missing
    assert scores.figures["win_rate"] > 65
    assert abs(scores.figures["length_controlled_winrate"] - 50) < 10
    own = metrics.get_length_controlled_winrate(rows, save_weights_dir=None)
    assert scores.figures["length_controlled_winrate"] == own["length_controlled_winrate"]
    import alpaca_eval as package

    assert not (Path(package.__file__).parent / "metrics" / "weights").exists()  # nothing is left in the package


@needs_package
def test_a_part_of_the_instructions_has_no_length_controlled_rate(offline_cache: Path) -> None:
    write_difficulty(offline_cache, 61)
    assert "all 61 instructions" in alpaca_eval.score(annotations(60), "here").missing


@needs_package
@pytest.mark.skipif(not REAL.is_file(), reason="the real GPT-4 preferences are not at hand")
def test_real_preferences_are_averaged(tmp_path: Path, offline_cache: Path) -> None:
    rows = [json.loads(line) for line in REAL.read_text().splitlines()][:300]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([{"instruction": row["prompt"], "preference": 1 + row["score_chosen"]} for row in rows]))
    figures = alpaca_eval.score(alpaca_eval.read_annotations(path), str(path)).figures
    assert figures["win_rate"] == pytest.approx(100 * math.fsum(row["score_chosen"] for row in rows) / 300, abs=1e-10)
    prompts = tmp_path / "prompts.jsonl"
    write_lines(prompts, [{"instruction": row["prompt"]} for row in rows])
    assert [prompt.instruction for prompt in alpaca_eval.read_prompts(prompts)] == [row["prompt"] for row in rows]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"instruction": "a"}]', "no column `preference`"),
        ('[{"preference": "two"}]', "no number in `preference` but 'two'"),
        ("[]", "no annotations"),
        ('[{"preference": 2}', "cut off"),
    ],
)
def test_annotation_files_that_are_none(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        alpaca_eval.read_annotations(path)


@needs_package
@needs_package
def test_annotations_are_saved_and_told_chunk_by_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"question {number}" for number in range(5)]
    mine, base = (
        [{"dataset": "d", "instruction": text, "output": f"{text} {name}", "generator": name} for text in texts]
        for name in ("mine", "base")
    )
    monkeypatch.setattr(alpaca_eval, "ROWS_AT_A_TIME", 2)
    told: list[tuple[int, int]] = []
    with EndpointServer(logprobs) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "a-key-of-the-tests")
        monkeypatch.setenv("OPENAI_API_BASE", server.base_url)
        alpaca_eval.annotate(
            mine,
            base,
            "weighted_alpaca_eval_gpt4_turbo",
            folder=tmp_path,
            cache=tmp_path / "cache.json",
            on_progress=lambda done, total: told.append((done, total)),
        )
    assert told == [(2, 5), (4, 5), (5, 5)]


@needs_package
def test_annotators_are_checked_before_anything_is_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_API_KEYS", "OPENAI_CLIENT_CONFIG_PATH"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RecipeError, match="no annotator 'nobody'"):
        alpaca_eval.check_annotator("nobody")
    with pytest.raises(RecipeError, match="OPENAI_API_KEY, which is not set"):
        alpaca_eval.check_annotator("weighted_alpaca_eval_gpt4_turbo")
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    alpaca_eval.check_annotator("weighted_alpaca_eval_gpt4_turbo")
    monkeypatch.setattr(alpaca_eval, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'spa-recipes\[eval\]'"):
        alpaca_eval.check_annotator("weighted_alpaca_eval_gpt4_turbo")


# --- MT-Bench


def test_temperatures_are_fastchats() -> None:
    published = {0.7: "writing roleplay new", 0.1: "stem humanities", 0.0: "extraction math coding reasoning"}
    for temperature, categories in published.items():
        for name in categories.split():
            assert mt_bench.Question(1, name, ("q",)).temperature == temperature, name
    assert {*mt_bench.TEMPERATURES, "new"} == set(" ".join(published.values()).split())


def test_the_judge_is_asked_what_the_published_prompts_say(tmp_path: Path) -> None:
    questions, prompts, references = mt_files(tmp_path)
    answers: dict[int | str, list[str]] = {81: ["{question_2}", "b"], 111: ["2", "4"], 150: ["c"]}
    asked = mt_bench.matches(
        mt_bench.read_questions(questions),
        answers,
        mt_bench.read_judge_prompts(prompts),
        mt_bench.read_answers(references),
    )
    assert [(m.question.id, m.turn, m.prompt) for m in asked] == [
        (81, 1, "single-v1"),
        (111, 1, "single-math-v1"),
        (150, 1, "single-v1"),
        (81, 2, "single-v1-multi-turn"),
        (111, 2, "single-math-v1-multi-turn"),
    ]
    # Braces in a question or an answer are text.
    assert [m.messages[1]["content"] for m in asked] == [
        "Q write {answer} A {question_2}",
        "Q 1 + 1 R two A 2",
        "Q alone A c",
        "Q write {answer} A {question_2} Q again A b",
        "R two four A 2 4 Q and 2 + 2",
    ]
    assert asked[1].messages[0] == {"role": "system", "content": "system of single-math-v1"}
    # The same as Python's own formatting, which FastChat fills them in with.
    template = PROMPTS[3]["prompt_template"]
    fields = {
        "ref_answer_1": "two",
        "ref_answer_2": "four",
        "answer_1": "2",
        "answer_2": "4",
        "question_2": "and 2 + 2",
    }
    assert asked[4].messages[1]["content"] == template.format(**fields)


@pytest.mark.parametrize(
    ("judgment", "score"),
    [
        ("Rating: [[7]]", 7),
        ("[[7.5]] and [[2]]", 2),
        ("I say [8] of [9]", 9),
        ("[3] or rather [[4]]", 4),
        ("[[10]]", 10),
        ("ten out of ten", -1),
        ("", -1),
        ("[[rating]]", -1),
    ],
)
def test_the_last_rating_of_a_judgment_counts(judgment: str, score: float) -> None:
    assert mt_bench.rating(judgment) == score


def test_averages_leave_out_what_was_not_rated() -> None:
    categories: dict[int | str, str] = {1: "math", 2: "writing", 3: "writing"}
    scores = {(1, 1): 4, (2, 1): 8, (3, 1): -1, (1, 2): 6, (2, 2): 9.5, (3, 2): 1}
    rows = [{"question_id": q, "turn": t, "score": score} for (q, t), score in scores.items()]
    found = mt_bench.averages(rows, categories)
    assert found.score == pytest.approx((4 + 8 + 6 + 9.5 + 1) / 5)
    assert found.turns == {"1": 6.0, "2": pytest.approx(16.5 / 3)}
    assert found.categories == {"math": 5.0, "writing": pytest.approx(18.5 / 3)}
    assert found.by_category_and_turn["writing"] == {"1": 8.0, "2": pytest.approx(5.25)}
    assert found.unrated == 1
    assert mt_bench.averages([{"question_id": 1, "turn": 1, "score": -1}], categories).score is None


def test_files_that_are_not_fastchats_are_named(tmp_path: Path) -> None:
    questions, prompts, references = mt_files(tmp_path)
    with pytest.raises(DataError, match=r"q.jsonl:2.*question_id"):
        mt_bench.read_questions(write_lines(tmp_path / "q.jsonl", [QUESTIONS[0], {"question_id": 2, "turns": []}]))
    with pytest.raises(DataError, match="question_id 81 occurs twice"):
        mt_bench.read_questions(write_lines(tmp_path / "q.jsonl", [QUESTIONS[0], QUESTIONS[0]]))
    with pytest.raises(DataError, match="no judge prompt single-math-v1-multi-turn"):
        mt_bench.read_judge_prompts(write_lines(tmp_path / "p.jsonl", PROMPTS[:3]))
    known = mt_bench.read_questions(questions)
    judge, given = mt_bench.read_judge_prompts(prompts), mt_bench.read_answers(references)
    with pytest.raises(DataError, match=r"question 111: no reference answer to turn 1"):
        mt_bench.matches(known, {81: ["a", "b"], 111: ["a", "b"], 150: ["a"]}, judge, {})
    with pytest.raises(DataError, match=r"question 81: no answer to turn 2"):
        mt_bench.matches(known, {81: ["a"], 111: ["a", "b"], 150: ["a"]}, judge, given)
    strange = {**judge, "single-v1": mt_bench.JudgePrompt("single-v1", "", "{answer} {secret}")}
    with pytest.raises(DataError, match=r"asks for \{secret\}"):
        mt_bench.matches(known, {81: ["a", "b"], 111: ["a", "b"], 150: ["a"]}, strange, given)


def test_an_answer_file_is_fastchats(tmp_path: Path) -> None:
    question = mt_bench.Question(81, "writing", ("a", "b"))
    row = mt_bench.answer_row(question, ["one", "two"], "me", 12.5)
    assert list(row) == ["question_id", "answer_id", "model_id", "choices", "tstamp"]
    assert row["choices"] == [{"index": 0, "turns": ["one", "two"]}]
    assert len(row["answer_id"]) == 22
    assert mt_bench.read_answers(write_lines(tmp_path / "a.jsonl", [row])) == {81: ["one", "two"]}
