"""The options of every command, frozen: what a command can be asked belongs in its recipe or job file."""

import pytest
import typer
from typer.core import TyperArgument

from spa_recipes.cli.app import _COMMANDS, app

OPTIONS = {
    "": {"--debug", "--version"},
    "run": {"--run-dir", "--set", "--until", "--accept", "--trust", "--rehearse", "--with-control"},
    "resume": {"--runs-dir", "--set", "--until", "--accept", "--trust"},
    "submit": {"--run-dir", "--set", "--until", "--accept", "--trust", "--rehearse", "--dry-run"},
    "cancel": {"--runs-dir"},
    "judge": {
        "--policy", "--reference", "--pairs", "--out", "--beta", "--length-penalty", "--dtype", "--max-length",
        "--max-prompt-length", "--split", "--prompt-column", "--chosen-column", "--rejected-column", "--on-bad-row",
        "--data", "--seed", "--overwrite", "--trust-remote-code", "--chat-template", "--method",
        "--chat-template-kwargs", "--min-margin-in-noise", "--judge", "--set",
    },
    "export": {"--format", "--out", "--runs-dir"},
    "chat": {"--against", "--system", "--temperature", "--max-tokens", "--runs-dir"},
    "label": {
        "--model", "--prompts", "--out", "--pick", "--limit", "--repeats", "--by", "--port", "--seed", "--runs-dir",
        "--set",
    },
    "sample": {"--prompts", "--out", "--n", "--overwrite", "--set"},
    "evaluate": {"--benchmark", "--against", "--prompts", "--out", "--annotations", "--backend", "--set", "--trust"},
    "validate": {"--set", "--show-example"},
    "data": {"--model", "--as", "--set", "--chat-template", "--chat-template-kwargs"},
    "plan": {"--run-dir", "--set", "--diff", "--verbose", "--json", "--resolved"},
    "status": {"--runs-dir", "--follow"},
    "gc": {"--runs-dir", "--yes", "--models"},
    "report": {"--runs-dir", "--out"},
    "push": {"--repo-id", "--runs-dir", "--private", "--revision", "--commit-message", "--dry-run"},
    "compare": {"--runs-dir", "--json"},
    "schema": {"--job", "--sweep"},
    "sweep": {"--plan", "--out", "--accept", "--trust"},
    "recipes": set(),
    "init": {"--model", "--pairs", "--prompts"},
    "doctor": set(),
}  # fmt: skip
"""Commands and their options; the first one's stand before any command."""


def options_of(command: typer.main.Typer | object) -> set[str]:
    """Long names of a command's own options."""
    given = [option for option in getattr(command, "params", []) if not isinstance(option, TyperArgument)]
    names = {max(option.opts, key=len) for option in given}
    return names - {"--help", "--install-completion", "--show-completion"}


def test_no_command_has_another_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "registered_commands", list(_COMMANDS))  # a call in this process leaves its own only
    group = typer.main.get_command(app)
    commands = {"": group, **getattr(group, "commands", {})}
    assert {name: options_of(command) for name, command in commands.items()} == OPTIONS


def test_evaluate_has_eight_at_most_with_its_argument_besides_the_users_trust() -> None:
    assert len(OPTIONS["evaluate"] - {"--trust"}) + 1 <= 8
