"""What a node of a cluster is and sees, as a line of JSON.

python -m spa_recipes.run.probe FOLDER TOKEN
"""

import importlib.util
import json
import os
import socket
import sys
from pathlib import Path

from spa_recipes.run.devices import visible_gpus
from spa_recipes.run.lifeline import end_with_starter
from spa_recipes.state import lock
from spa_recipes.state.patience import look_again
from spa_recipes.state.versions import library_versions

CANARY = ".canary"


def main() -> None:
    """Look around and say it."""
    end_with_starter()
    folder, token = Path(sys.argv[1]), sys.argv[2]
    look_again(folder)
    try:
        sees = (folder / CANARY).read_text() == token
    except OSError:
        sees = False
    versions = library_versions()
    said = {
        "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "versions": {name: versions.get(name, "(none)") for name in ("spa-recipes", "torch")},
        "vllm": importlib.util.find_spec("vllm") is not None,
        "gpus": len(visible_gpus()),
        "sees": sees,
        "held": sees and lock.is_held(folder),
    }
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
