"""Lines and tables on the terminal: aligned, folded where the terminal ends, and without colours elsewhere."""

import io
import sys

import pytest

from spa_recipes.cli.terminal import PLAIN_WIDTH, print_errors, red, say, table
from spa_recipes.errors import RecipeError
from spa_recipes.recipe.problems import InvalidRecipeError


class Terminal(io.StringIO):
    """A stream that a person looks at."""

    def isatty(self) -> bool:
        return True


def test_columns_are_aligned_and_numbers_stand_to_the_right() -> None:
    lines = table(("run", "steps", "note"), [("mini", "7", ""), ("a-longer-one", "1,234", "done")], right=("steps",))
    assert lines[1:] == [
        "mini              7",
        "a-longer-one  1,234  done",
    ]


def test_the_last_column_is_folded_where_the_page_ends() -> None:
    lines = table(("stage", "figures"), [("judge-1", "some words " * 30)])
    assert len(lines) > 3
    assert max(map(len, lines[1:])) <= PLAIN_WIDTH
    assert all(line.startswith(" " * 9) for line in lines[2:])
    assert len(table(("a", "b"), [("c", "some words " * 30)], wrap=False)) == 2


def test_a_column_may_be_empty() -> None:
    assert table(("run", ""), [("mini", "")])[1] == "mini"


@pytest.mark.parametrize(("variable", "coloured"), [(None, True), ("NO_COLOR", False)])
def test_colours_reach_terminals_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str | None, coloured: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    if variable is not None:
        monkeypatch.setenv(variable, "1")
    say(red("[bold]text[/]"))
    assert capsys.readouterr().out == "[bold]text[/]\n"
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    say(red("text"))
    assert terminal.getvalue() == ("\x1b[31mtext\x1b[0m\n" if coloured else "text\n")


def test_every_problem_of_an_error_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    error = InvalidRecipeError("one", where="r.yaml:1")
    error.others = [RecipeError("two", fix="mend it")]
    print_errors(error)
    assert capsys.readouterr().err == "error: r.yaml:1: one\nerror: two; mend it\n"
