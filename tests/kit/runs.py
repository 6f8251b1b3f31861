"""What a run has left in its folder, by the names of its stages."""

import json
from collections import Counter
from pathlib import Path
from typing import Any


def stage_dir(home: Path, stage: str, run: str = "mini") -> Path:
    """Folder of a stage of a run in `home`."""
    (found,) = (home / "runs" / run / "stages").glob(f"[0-9][0-9]-{stage}-????????")
    return found


def output(home: Path, stage: str, name: str, run: str = "mini") -> Path:
    """Path of an output file of a stage."""
    return stage_dir(home, stage, run) / "output" / name


def metrics(home: Path, stage: str, run: str = "mini") -> dict[str, Any]:
    """Figures of a finished stage."""
    found: dict[str, Any] = json.loads((stage_dir(home, stage, run) / "manifest.json").read_text())["metrics"]
    return found


def attempts(home: Path, run: str = "mini") -> dict[str, int]:
    """How often each stage was tried, by the name of its folder; stages that were never tried are left out."""
    return Counter(path.parts[-3] for path in (home / "runs" / run / "stages").glob("*/attempts/*"))


def outputs(home: Path, run: str = "mini") -> dict[str, bytes]:
    """Content of all output files of a run but of damaged stages, by path below its stages."""
    stages = home / "runs" / run / "stages"
    return {
        str(path.relative_to(stages)): path.read_bytes()
        for path in stages.glob("*/output/**/*")
        if path.is_file() and ".damaged" not in str(path)
    }
