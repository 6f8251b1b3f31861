"""The package's page on PyPI, which has no files beside it: hatchling calls this when it builds.

With the address of the repository in SPA_REPOSITORY (`make dist REPOSITORY=https://github.com/OWNER/spa-recipes`),
links and the picture of README.md lead there, to the tag of this version. The page
lists the addresses of the repository.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PAPER = "https://arxiv.org/abs/2406.04412"
_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?!https?:|#)(?P<to>[^)]+)\)")


class PackagePage(MetadataHookInterface):
    """Fills in `readme` and `urls`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling with the `[project]` table.

        Raises:
            ValueError: SPA_REPOSITORY is no https address.
        """
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = os.environ.get("SPA_REPOSITORY", "").rstrip("/")
        if repository and not repository.startswith("https://"):
            raise ValueError(f"SPA_REPOSITORY must be an https address, not {repository!r}")
        tag = f"v{metadata['version']}"
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute(text, repository, tag) if repository else text,
        }
        metadata["urls"] = {**(urls(repository, tag) if repository else {}), "Paper": PAPER}


def urls(repository: str, tag: str) -> dict[str, str]:
    """Addresses of the repository by the labels that PyPI knows."""
    return {
        "Homepage": repository,
        "Documentation": f"{repository}/blob/{tag}/recipes/README.md",
        "Changelog": f"{repository}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }


def absolute(text: str, repository: str, tag: str) -> str:
    """Markdown whose relative links and pictures lead to a tag of the repository."""

    def link(found: re.Match[str]) -> str:
        place = f"{repository}/{'raw' if found['picture'] else 'blob'}/{tag}/{found['to']}"
        return f"{found['picture']}[{found['text']}]({place})"

    return _LINK.sub(link, text)
