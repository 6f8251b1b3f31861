"""Commands that name a model which is not there: one line on stderr, soon, and nothing else."""

import time
from pathlib import Path

import pytest

from tests.kit.cli import Answer, one_error, run_spa

REFUSING = "http://127.0.0.1:9"
COMMANDS = {
    "sample": ["sample", "MODEL", "--prompts", "p.jsonl", "--out", "o.jsonl"],
    "judge": ["judge", "--policy", "MODEL", "--reference", "MODEL", "--pairs", "p.jsonl", "--out", "o.jsonl"],
    "chat": ["chat", "MODEL"],
    "export": ["export", "MODEL"],
}


def spa(folder: Path, command: str, model: str) -> Answer:
    (folder / "p.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    arguments = [model if argument == "MODEL" else argument for argument in COMMANDS[command]]
    variables = {"HF_ENDPOINT": REFUSING, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0"}
    done = run_spa(folder, *arguments, **variables)
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("command", ["sample", "chat"])
def test_the_hub_cannot_be_reached(tmp_path: Path, command: str) -> None:
    begin = time.monotonic()
    line = one_error(spa(tmp_path, command, "org/model"), 75)
    assert "org/model: the Hub cannot be reached" in line
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("command", ["judge", "export"])
def test_a_misspelt_path_is_told_without_the_hub(tmp_path: Path, command: str) -> None:
    (tmp_path / "models").mkdir()
    line = one_error(spa(tmp_path, command, "models/typo"), 3)
    assert "models/typo: no such model folder; check the path, which is relative to" in line


def test_sample_looks_at_its_prompts_first(tmp_path: Path) -> None:
    arguments = ["sample", "org/model", "--prompts", "none.jsonl", "--out", "o.jsonl"]
    done = run_spa(tmp_path, *arguments, HF_ENDPOINT=REFUSING, HF_HUB_OFFLINE="0")
    line = one_error(Answer(done.returncode, done.stdout, done.stderr), 3)
    assert "--prompts: none.jsonl: no such file or folder" in line
