"""`spa doctor`: what this machine can do, and what is missing. The one command that may import torch to look."""

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple, get_args

from packaging.requirements import Requirement

from spa_recipes.cli.terminal import red, say
from spa_recipes.errors import RecipeError
from spa_recipes.recipe.schema import Tracking
from spa_recipes.run.devices import check_supported
from spa_recipes.units import human_bytes


class Finding(NamedTuple):
    """One line of the report; `problem` says what to do, empty if all is well."""

    what: str
    value: str
    problem: str = ""


def findings() -> Iterator[Finding]:
    """Everything that is worth a line."""
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    yield from _packages()
    yield from _trackers()
    yield from _devices()
    yield from _hub()
    yield Finding("disk", f"{human_bytes(shutil.disk_usage(Path.cwd()).free)} free here")


def _packages() -> Iterator[Finding]:
    """Each declared requirement: installed, missing, or outside the bounds that this version was tested with."""
    try:
        declared = requires("spa-recipes") or []
    except PackageNotFoundError:
        yield Finding("spa-recipes", "not installed", "its requirements cannot be looked at: pip install spa-recipes")
        return
    by_name: dict[str, list[Requirement]] = {}
    for line in declared:
        requirement = Requirement(line)
        by_name.setdefault(requirement.name, []).append(requirement)
    for name, requirements in by_name.items():
        extras = sorted(filter(None, map(_extra, requirements)))
        if extras != ["dev"]:
            yield _package(name, requirements[0], [extra for extra in extras if extra != "dev"])


def _extra(requirement: Requirement) -> str:
    """The extra that a requirement belongs to; empty for what is always needed."""
    return str(requirement.marker).partition("extra == ")[2].strip("\"'") if requirement.marker else ""


def _package(name: str, requirement: Requirement, extras: Sequence[str]) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        if extras:
            return Finding(name, f"not installed (optional: extra {' or '.join(f'`{extra}`' for extra in extras)})")
        return Finding(name, "not installed", f"pip install '{name}{requirement.specifier}'")
    fits = requirement.specifier.contains(found, prereleases=True)
    return Finding(name, found, "" if fits else f"needs {requirement.specifier}")


def _trackers() -> Iterator[Finding]:
    """What `tracking.report_to` can name."""
    for name in get_args(get_args(Tracking.model_fields["report_to"].annotation)[0]):
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            yield Finding(name, f"not installed (optional: for `tracking.report_to: [{name}]`)")


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except ImportError:
        yield Finding("devices", "unknown", "install torch")
        return
    yield Finding("cpu threads", str(torch.get_num_threads()))
    if not torch.cuda.is_available():
        problem = ""
        try:
            check_supported()
        except RecipeError as error:
            problem = str(error)
        yield Finding("gpu", "none", problem)
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        yield Finding(f"gpu {index}", f"{facts.name}, {human_bytes(facts.total_memory)}, {bf16}")


def _hub() -> Iterator[Finding]:
    offline = [name for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE") if os.environ.get(name, "0") not in ("0", "")]
    yield Finding("hub", "offline: " + ", ".join(offline) if offline else "online mode")
    cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
    yield Finding("hub cache", cache)
    token = "HF_TOKEN" in os.environ or (Path(cache).expanduser() / "token").exists()
    yield Finding("hub token", "found" if token else "none (needed for gated models only: `hf auth login`)")


def print_report() -> int:
    """Print the findings; problems stand out. Returns the exit code: 1 with problems."""
    problems = 0
    for what, value, problem in findings():
        say(f"{red('!') if problem else ' '} {what:<16} {value}" + (f"  {red(problem)}" if problem else ""))
        problems += bool(problem)
    said = f"{problems} problem{'s' if problems > 1 else ''}"
    say("", said if problems else "ready: try `spa run quickstart`")
    return 1 if problems else 0
