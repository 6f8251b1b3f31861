"""`spa data`: what it says of a dataset, and that its lines go into a recipe as they are."""

from pathlib import Path
from typing import Any

import yaml

from spa_recipes.cli.data import settings_of
from spa_recipes.data.sources import read_pairs
from spa_recipes.judge_job import JudgeRequest, judge_job
from spa_recipes.recipe.schema import Columns, DatasetSource
from tests.kit.data import CONVERSATION, GOOD
from tests.kit.data_forms import write_jsonl
from tests.kit.training import make_model

ROW = {"q": "What?", "good": "That.", "bad": "No.", "source": "x"}
NAMED = ["--set", "columns.prompt=q", "--set", "columns.chosen=good", "--set", "columns.rejected=bad"]


def test_it_says_what_is_there(spa_here: Any, tmp_path: Path) -> None:
    turned = {**ROW, "good": "No.", "bad": "That."}
    write_jsonl(tmp_path, [ROW, {**ROW, "bad": ""}, turned, ROW, {**ROW, "q": "Who?"}])
    done = spa_here("data", "data.jsonl", *NAMED, "--set", "on_bad_row=skip")
    assert (done.code, done.err) == (0, "")
    for line in (
        "data.jsonl: 5 rows, 4 pairs",
        "form:     TRL explicit, strings",
        "columns:  q, good, bad",
        "ignored:  source",
        "  prompt user: What?",
        "  chosen assistant: That.",
        "  rejected assistant: No.",
        "1 row gave nothing:",
        "          1  the rejected response is empty (row 2)",
        "1 pair repeats an earlier pair (row 4)",
        "1 pair contradicts a pair of the same prompt and answers (rows 1 and 3)",
        "one answer stands in 4 rows (chosen in 3, rejected in 1; rows 1, 3, 4, ...): That.",
    ):
        assert line in done.out.splitlines(), done.out
    assert done.out.count("\nrow ") == 3
    lines = yaml.safe_load(done.out.split("for a recipe:")[1])
    assert len(read_pairs(DatasetSource.model_validate(lines["data"]["pairs"])).rows) == 4


def test_rows_are_rendered_as_the_recipe_would_render_them(spa_here: Any, tmp_path: Path) -> None:
    """By the template and the variables that are given, whole, and with the lines that say the same in a recipe."""
    from spa_recipes.data.chat import load_tokenizer

    own = load_tokenizer(make_model(tmp_path / "model"))
    word, other = [word for word in own.get_vocab() if word.isalpha()][:2]
    Path(tmp_path, "t.jinja").write_text(f"{{% if polite %}}{word} {{% endif %}}{own.chat_template}")
    long = " ".join([other] * 3000)
    write_jsonl(tmp_path, [{"prompt": other, "chosen": long, "rejected": word}])
    plain = spa_here("data", "data.jsonl", "--model", "model")
    given = ("--chat-template", "t.jinja", "--chat-template-kwargs", "polite=true")
    done = spa_here("data", "data.jsonl", "--model", "model", *given)
    rendered, before = (
        next(line for line in out.splitlines() if "rendered: " in line) for out in (done.out, plain.out)
    )
    assert rendered.startswith(f"  rendered: '{word} ")
    assert not before.startswith(f"  rendered: '{word} ")
    assert "chosen: 3,001 tokens in the middle" in done.out
    assert yaml.safe_load(done.out.split("for a recipe:")[1])["model"] == {
        "model_name_or_path": "model", "chat_template": "t.jinja", "chat_template_kwargs": {"polite": True}
    }  # fmt: skip


def test_ends_of_answers_that_are_removed_are_counted(spa_here: Any, tmp_path: Path) -> None:
    from spa_recipes.data.chat import Renderer, load_tokenizer

    own = load_tokenizer(make_model(tmp_path / "model"))
    word = next(word for word in own.get_vocab() if word.isalpha())
    (end,) = own.convert_ids_to_tokens(Renderer(own, max_prompt_length=64, max_length=128).stop_ids)
    write_jsonl(tmp_path, [{"prompt": word, "chosen": f"{word}{end}", "rejected": f"{word} {word}"}] * 5)
    done = spa_here("data", "data.jsonl", "--model", "model")
    assert "\n5 answers end with an end of turn of their own, which is removed\n" in done.out


def test_it_tells_the_use_by_the_form(spa_here: Any, tmp_path: Path) -> None:
    write_jsonl(tmp_path, [{"messages": CONVERSATION}])
    done = spa_here("data", "data.jsonl")
    assert "1 row, 1 conversation\n" in done.out
    assert yaml.safe_load(done.out.split("for a recipe:")[1]) == {"sft": {"data": {"source": "data.jsonl"}}}
    write_jsonl(tmp_path, [GOOD])
    assert "1 row, 1 prompt\n" in spa_here("data", "data.jsonl", "--as", "prompts").out


def test_judge_takes_the_same_settings(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [ROW])
    given = settings_of(
        ["columns.label=winner", "columns.positive=1", "columns.ignore=a,b", "max_skipped=0.5"], "--data"
    )
    model = str(make_model(tmp_path / "model"))
    request = JudgeRequest(
        model,
        model,
        str(tmp_path / "data.jsonl"),
        Path("out.jsonl"),
        columns={"prompt": "q", "chosen": None},
        data=given,
    )
    pairs = judge_job(request).pairs
    assert pairs.columns == Columns(prompt="q", label="winner", positive=1.0, ignore=["a", "b"])
    assert pairs.max_skipped == 0.5


def test_errors_are_one_line(spa_here: Any, tmp_path: Path) -> None:
    write_jsonl(tmp_path, [{"a": 1}])
    for arguments, code, words in (
        (["none.jsonl"], 3, "no such file"),
        (["data.jsonl"], 3, "columns of no known form"),
        (["data.jsonl", "--as", "x"], 2, "is no use of data"),
        (["data.jsonl", "--set", "nothing"], 2, "is no KEY=VALUE"),
        (["data.jsonl", "--set", "columns.nothing=a"], 2, "--set columns.nothing"),
        (["data.jsonl", "--chat-template", "t.jinja"], 2, "--chat-template: has no effect without a model"),
    ):
        done = spa_here("data", *arguments)
        assert done.code == code
        assert words in done.err
        assert len(done.err.splitlines()) == 1
