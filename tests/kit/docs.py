"""Tables of the documents that are made from the code.

python -m tests.kit.docs    writes the table of stages into spa_recipes/README.md
"""

import ast
import re
from pathlib import Path

from spa_recipes.plan.kinds import KINDS, Kind

ROOT = Path(__file__).parents[2]
MAP = ROOT / "spa_recipes" / "README.md"
STAGES = ROOT / "spa_recipes" / "stages"
_HEAD = "| kind, in `stages/` | what it does | reads | writes | model |\n|---|---|---|---|---|\n"
_TABLE = re.compile(re.escape(_HEAD) + r"(?:\|.*\n)+")


def stage_table() -> str:
    """A row for each kind of stage."""
    return _HEAD + "".join(
        f"| {' | '.join((_module(name, kind), _purpose(kind), _reads(kind), _code(kind.writes), _work(kind)))} |\n"
        for name, kind in KINDS.items()
    )


def stored_stage_table() -> str:
    """The table as the document has it; empty if it has none."""
    found = _TABLE.search(MAP.read_text())
    return found.group() if found else ""


def _module(name: str, kind: Kind) -> str:
    return f"`{name}`" if name == kind.module else f"`{name}` (`{kind.module}`)"


def _purpose(kind: Kind) -> str:
    """The first sentence of the module."""
    text = ast.get_docstring(ast.parse((STAGES / f"{kind.module}.py").read_text())) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def _reads(kind: Kind) -> str:
    maybe = f"perhaps {_code(tuple(kind.may_read))}" if kind.may_read else ""
    return ", ".join(part for part in (_code(tuple(kind.reads)), maybe) if part)


def _work(kind: Kind) -> str:
    return " and ".join(kind.work)


def _code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    MAP.write_text(MAP.read_text().replace(stored_stage_table() or "STAGE_TABLE\n", stage_table()))
