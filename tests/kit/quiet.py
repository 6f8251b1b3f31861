"""A reporter that keeps silent."""

from pathlib import Path

from spa_recipes.plan import Stage
from spa_recipes.state.stagedir import Manifest


class Quiet:
    """A reporter that keeps silent."""

    def reused(self, stage: Stage, manifest: Manifest, *, adopted: bool) -> None:
        """See `Reporter`."""

    def damaged(self, stage: Stage, problems: list[str], aside: Path) -> None:
        """See `Reporter`."""

    def noticed(self, stage: Stage, text: str) -> None:
        """See `Reporter`."""

    def started(self, stage: Stage, attempt: int) -> None:
        """See `Reporter`."""

    def progress(self, stage: Stage, done: int, total: int, unit: str, note: str) -> None:
        """See `Reporter`."""

    def finished(self, stage: Stage, manifest: Manifest) -> None:
        """See `Reporter`."""
