"""`spa doctor` says what it cannot look at."""

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
