"""What a recipe, a file name, a prompt or a server may put into a value, and what a terminal gets to see of it."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from spa_recipes import api
from spa_recipes.cli import progress
from spa_recipes.cli.plan import print_plan, print_plan_json, print_recipe
from spa_recipes.cli.progress import PlainReporter
from spa_recipes.cli.terminal import Output, print_errors, say, say_document, table, visible, yellow
from spa_recipes.errors import DataError, TryAgainError
from spa_recipes.plan import Plan
from spa_recipes.run.rundir import RunDir
from tests.kit.plans import plan_of

WIPES = "x\x1b[2A\x1b[2Ky\r\x08\x7f\x9b1A\u202eevil\u2066\u2028next\nerror: forged :smile: [red]z[/red]"
SHOWN = r"x\x1b[2A\x1b[2Ky\r\x08\x7f\x9b1A\u202eevil\u2066\u2028next\nerror: forged :smile: [red]z[/red]"


class Terminal(io.StringIO):
    """A stream that a person looks at."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Broken(Terminal):
    """A stream that cannot be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error = error

    def write(self, text: str) -> int:
        raise self._error


def named(name: str) -> Plan:
    plan = plan_of()
    return replace(plan, recipe=plan.recipe.model_copy(update={"name": name}))


def test_a_value_moves_no_cursor_and_forges_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"  {yellow('!')} {WIPES}")
    assert capsys.readouterr().out == f"  ! {SHOWN}\n"


def test_a_value_sets_no_colour_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    say(f"{yellow('warning')} \x1b[8mhidden\x1b[0m \x1b[31mred")
    assert terminal.getvalue() == "\x1b[33mwarning\x1b[0m \\x1b[8mhidden\\x1b[0m \\x1b[31mred\n"


def test_a_line_beside_the_bar_moves_no_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    reporter = PlainReporter()
    reporter._bar = progress._new_bar()
    stage = plan_of().stage("seed")
    reporter.noticed(stage, WIPES)
    reporter.progress(stage, 1, 2, "steps", WIPES)
    assert SHOWN in terminal.getvalue()
    (task,) = reporter._bar.tasks
    assert task.fields["note"] == SHOWN


def test_a_cell_of_a_table_stays_in_its_row() -> None:
    assert len(table(("run", "state", "note"), [(WIPES, "done", "")])) == 2


def test_an_error_about_a_file_with_a_hostile_name_is_one_clean_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_errors(DataError("no such file", where="a\x1b]0;title\x07\udcff.jsonl"))
    assert capsys.readouterr().err == "error: a\\x1b]0;title\\x07\\udcff.jsonl: no such file\n"


def test_a_recipe_cannot_wipe_the_warning_of_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared = api.Prepared(named(WIPES), RunDir(tmp_path / "a\x1b[2K\u202e"), "")
    print_plan(prepared, diff=False)
    print_plan_json(prepared)
    out = capsys.readouterr().out
    assert SHOWN in out
    assert all(visible(line) == line for line in out.split("\n"))


def test_the_whole_recipe_is_printed_clean_and_reads_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_recipe(api.Prepared(named(WIPES), RunDir(tmp_path), ""))
    out = capsys.readouterr().out
    assert all(visible(line) == line for line in out.split("\n"))
    assert yaml.safe_load(out)["name"] == WIPES


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", r"K\xf6ln \u2026"), ("latin-1", r"Köln \u2026")])
def test_what_an_encoding_cannot_show_is_replaced(monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding=encoding))
    say("Köln …")
    assert buffer.getvalue().decode(encoding) == shown + "\n"


def test_the_plan_for_scripts_is_json_in_every_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    plan = plan_of()
    print_plan_json(api.Prepared(plan, RunDir(tmp_path / "Köln"), ""))
    assert [stage["id"] for stage in json.loads(buffer.getvalue())] == [stage.id for stage in plan.stages]


def test_lines_that_nobody_reads_are_dropped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(BrokenPipeError(32, "Broken pipe")))
    say("one")
    say("two")
    say_document("{}\n")
    Output().flush()
    assert capsys.readouterr().err == ""


def test_a_full_output_is_told_once_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(OSError(28, "No space left on device")))
    say("one")
    say("two")
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(TryAgainError, match="standard output cannot be written"):
        say_document("{}\n")
