"""The recipes that come with the package. A name such as `quickstart` stands for one wherever a recipe is asked for.

The folder `recipes/` of the repository is their only source. The build puts it into the package as `shipped/`.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def shipped_folder() -> Path:
    """The folder of the recipes: that of an installed package, or the one beside the package in a checkout."""
    installed = _PACKAGE / "shipped"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def shipped_names() -> list[str]:
    """Names of all shipped recipes; `quickstart`, which needs nothing, comes first."""
    names = sorted(path.stem for path in shipped_folder().glob("*.yaml"))
    return sorted(names, key=lambda name: name != "quickstart")


def shipped_file(given: Path, suffix: str = ".yaml") -> Path | None:
    """The shipped file of this name, with or without its suffix; a path with folders names none."""
    if given.name != str(given) or given.suffix not in ("", suffix):
        return None
    path = shipped_folder() / f"{given.stem}{suffix}"
    return path if path.is_file() else None


def find_recipe(given: Path) -> Path:
    """The recipe that a path or name stands for. A file of the user's comes before a shipped recipe of its name."""
    return given if given.is_file() else shipped_file(given) or given


def find_template(given: str) -> Path:
    """The chat template that a path or name stands for, found as recipes are."""
    path = Path(given)
    return path if path.is_file() else shipped_file(path, ".jinja") or path
