"""What the light commands cost before they do anything: against an empty Python, from one run.

python -m tests.benchmarks.bench_start [--repeats 5]
"""

import argparse
import subprocess
import sys
import tempfile

from tests.benchmarks.kit import take_turns, where

RECIPE = "recipes/quickstart.yaml"


def main() -> None:
    """Print the shortest time of each command and its multiple of an empty Python's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    spa = [sys.executable, "-m", "spa_recipes.cli"]
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import torch": [sys.executable, "-c", "import torch"],
            "spa --help": [*spa, "--help"],
            "spa validate": [*spa, "validate", RECIPE],
            "spa plan": [*spa, "plan", RECIPE, "--run-dir", f"{folder}/run"],
            "spa status": [*spa, "status", "--runs-dir", folder],
        }
        sides = {name: lambda c=command: subprocess.run(c, capture_output=True) for name, command in commands.items()}
        seconds = take_turns(sides, arguments.repeats)
    print(where(1))
    for name, best in seconds.items():
        print(f"  {name:15} {best:6.2f} s   {best / seconds['python -c pass']:5.1f}x")


if __name__ == "__main__":
    main()
