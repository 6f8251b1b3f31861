"""`spa doctor` says what it cannot look at."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError

import pytest

from spa_recipes.cli import doctor


def test_without_the_packages_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "requires", requires)
    (finding,) = doctor._packages()
    assert finding.what == "spa-recipes"
    assert finding.problem == "its requirements cannot be looked at: pip install spa-recipes"


def test_a_package_of_several_extras_has_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["torch>=2", "peft>=0.18; extra == 'lora'", "peft>=0.18; extra == 'qlora'", "ruff>=0.12; extra == 'dev'"]
    monkeypatch.setattr(doctor, "requires", lambda name: declared)
    monkeypatch.setattr(doctor, "version", versions(torch="2.13"))
    assert [*doctor._packages()] == [
        doctor.Finding("torch", "2.13"),
        doctor.Finding("peft", "not installed (optional: extra `lora` or `qlora`)"),
    ]


def test_trackers_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", versions(wandb="0.20"))
    found = {finding.what: finding.value for finding in doctor._trackers()}
    assert found["wandb"] == "0.20"
    assert found["mlflow"] == "not installed (optional: for `tracking.report_to: [mlflow]`)"


@pytest.mark.parametrize(("problems", "last", "code"), [(0, "ready: try `spa run quickstart`", 0), (1, "1 problem", 1)])
def test_the_exit_code_tells_of_problems(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], problems: int, last: str, code: int
) -> None:
    monkeypatch.setattr(doctor, "findings", lambda: [doctor.Finding("torch", "1.0", "needs >=2")] * problems)
    assert doctor.print_report() == code
    assert capsys.readouterr().out.splitlines()[-1] == last


def versions(**installed: str) -> Callable[[str], str]:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    return version
