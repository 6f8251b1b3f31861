"""What precision does to labels, in the words and figures of the stage that labels."""

from pathlib import Path
from typing import Any

import pytest

from spa_recipes.data import tables
from spa_recipes.stages import judge
from tests.kit.stages import context_of, judged

MARGINS = [0.1 * (k + 1) for k in range(10)]
"""Log-ratios in nats; every second answer has 0."""


def noise(folder: Path, error: float, *, iteration: int = 1, **choice: Any) -> tuple[dict[str, Any], Path]:
    """Metrics and progress of a stage that reads log-ratios with a standard error."""
    texts = [["one", "other"]] * len(MARGINS)
    judged(folder, texts, [[0.0, 0.0]] * len(MARGINS), [[0.0, 0.0]] * len(MARGINS))  # writes prompts and completions
    completions = tables.read_table(folder / "completions.parquet", tables.COMPLETIONS)
    values = [value for margin in MARGINS for value in (margin, 0.0)]
    said = {"method": "difference in bfloat16", "asked": "auto", "error_check": None, **choice}
    table = tables.LogRatioTable(values, [error / 2**0.5] * len(values), said)
    tables.write_log_ratios(folder / "log_ratios.parquet", completions, table)
    settings = {
        "judge": {"type": "implicit_reward", "beta": 1.0},
        "seed": 1,
        "iteration": iteration,
        "gold_audit": False,
    }
    inputs = {
        "prompts": folder / "prompts.jsonl",
        "completions": folder / "completions.parquet",
        "log_ratios": folder / "log_ratios.parquet",
    }
    context = context_of(folder / "noisy", "judge", settings=settings, inputs=inputs)
    return judge.run(context).metrics, context.attempt_dir / "progress.jsonl"


def test_labels_in_the_noise_are_counted(tmp_path: Path) -> None:
    metrics, told = noise(tmp_path, 0.04, error_check=1.2)
    assert metrics["standard_error"] == pytest.approx(0.04)
    assert metrics["labels_in_noise"] == 0.0
    assert 0 < metrics["labels_by_noise"] < 0.001
    assert metrics["error_check"] == 1.2
    assert not told.exists()


@pytest.mark.parametrize(
    ("asked", "iteration", "remedy"),
    [
        ("difference", 1, "set judge.method to auto"),
        ("difference", 0, "set --method to auto"),
        ("auto", 1, "judge.min_margin_in_noise: 2 leaves them out"),
        ("tangent", 0, "--min-margin-in-noise 2 leaves them out"),
    ],
)
def test_more_than_half_of_the_labels_in_the_noise_are_warned_of_with_the_remedy(
    tmp_path: Path, asked: str, iteration: int, remedy: str
) -> None:
    metrics, told = noise(tmp_path, 0.34, asked=asked, iteration=iteration)
    assert metrics["labels_in_noise"] == 0.6
    assert "error_check" not in metrics
    assert (
        "60.0% of the margins are within two standard errors of 0 (0.34 on average, by difference in bfloat16): "
        in (text := told.read_text())
    )
    assert text.endswith(f'of the labels; {remedy}"}}\n')
