"""What the light commands cost before they do anything, beside the imports that none of them can do without.

python -m tests.benchmarks.bench_start [--repeats 15]
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.kit import take_turns, where

RECIPES = ("quickstart", "ultrafeedback_3p3")
"""Recipes without local data, since reading rows takes what it takes."""
BASE = "import typer, pydantic, yaml"


def main() -> None:
    """Print the shortest time of each command, and its ratio to that of the imports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sides = {name: _process(command, Path(folder)) for name, command in _commands(folder).items()}
        for side in sides.values():
            side()  # compiles what it imports, which an installed package has done
        seconds = take_turns(sides, arguments.repeats)
    print(where(1))
    for name, best in seconds.items():
        print(f"  {name:32} {best:6.3f} s   {best / seconds[BASE]:5.2f}x")


def _commands(folder: str) -> dict[str, list[str]]:
    spa = [sys.executable, "-m", "spa_recipes.cli"]
    recipes = {name: f"recipes/{name}.yaml" for name in RECIPES}
    return {
        "an empty Python": [sys.executable, "-c", "pass"],
        BASE: [sys.executable, "-c", BASE],
        "import torch": [sys.executable, "-c", "import torch"],
        "spa --help": [*spa, "--help"],
        **{f"spa validate {name}": [*spa, "validate", path] for name, path in recipes.items()},
        **{f"spa plan {name}": [*spa, "plan", path, "--run-dir", f"{folder}/run"] for name, path in recipes.items()},
        "spa status": [*spa, "status", "--runs-dir", folder],
    }


def _process(command: list[str], folder: Path) -> Callable[[], object]:
    """Run a command with a cache of compiled modules, whatever this machine says of that."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
    return lambda: subprocess.run(command, capture_output=True, check=True, env=environment)


if __name__ == "__main__":
    main()
