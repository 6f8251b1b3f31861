"""Tables of the documents that are made from the code.

python -m tests.kit.docs    writes the table of stages into spa_recipes/README.md, that of forms into recipes/README.md
"""

import ast
import re
from pathlib import Path

from spa_recipes.data import sources
from spa_recipes.data.forms.answers import SCORES
from spa_recipes.data.forms.form import Form
from spa_recipes.plan.kinds import KINDS, Kind

ROOT = Path(__file__).parents[2]
MAP = ROOT / "spa_recipes" / "README.md"
STAGES = ROOT / "spa_recipes" / "stages"
_HEAD = "| kind, in `stages/` | what it does | reads | writes | model |\n|---|---|---|---|---|\n"
GUIDE = ROOT / "recipes" / "README.md"
_FORMS_HEAD = "| form | columns that it needs | columns that it may have | for |\n|---|---|---|---|\n"
_FORMS_TABLE = re.compile(re.escape(_FORMS_HEAD) + r"(?:\|.*\n)+")
_TABLE = re.compile(re.escape(_HEAD) + r"(?:\|.*\n)+")


def stage_table() -> str:
    """A row for each kind of stage."""
    return _HEAD + "".join(
        f"| {' | '.join((_module(name, kind), _purpose(kind), _reads(kind), _code(kind.writes), _work(kind)))} |\n"
        for name, kind in KINDS.items()
    )


def form_table() -> str:
    """A row for each form of labelled pairs, of answers to judge and of demonstrations."""
    labelled = [form.name for form in sources.PAIRS.forms]
    rows = [(form, "pairs") for form in sources.PAIRS.forms]
    rows += [(form, "`spa judge`") for form in sources.CANDIDATES.forms if form.name not in labelled]
    rows += [(form, "`sft`") for form in sources.CONVERSATIONS.forms if form.name not in labelled]
    alone = [form for form in sources.PROMPTS.forms if not form.name.startswith("prompts of ")]
    known = {form.name for form, _ in rows}
    rows += [(form, "prompts") for form in alone if form.name not in known]
    return _FORMS_HEAD + "".join(f"| {form.name} | {_needs(form)} | {_may(form)} | {use} |\n" for form, use in rows)


def stored_form_table() -> str:
    """The table as the guide has it; empty if it has none."""
    found = _FORMS_TABLE.search(GUIDE.read_text())
    return found.group() if found else ""


def _needs(form: Form) -> str:
    return ", ".join("/".join(f"`{name}`" for name in slot.names) for slot in form.needs.values())


def _may(form: Form) -> str:
    """Columns that are read where they are there; scores, which all pairs may have, are a line below the table."""
    may = {name: slot for name, slot in form.may.items() if slot.names and name not in SCORES}
    return ", ".join("/".join(f"`{name}`" for name in slot.names) for slot in may.values())


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
    GUIDE.write_text(GUIDE.read_text().replace(stored_form_table() or "FORM_TABLE\n", form_table()))
    MAP.write_text(MAP.read_text().replace(stored_stage_table() or "STAGE_TABLE\n", stage_table()))
