"""`importlib.metadata`: its import takes a tenth of the time of a light command, which never calls it."""

import importlib.util
import sys
from types import ModuleType
from typing import Any

NAME = "importlib.metadata"


def read_when_called() -> None:
    """Put a stand-in in its place, from which `entry_points` can be imported, until something of it is used."""
    if NAME in sys.modules:
        return
    spec = importlib.util.find_spec(NAME)
    assert spec is not None
    stand_in = importlib.util.module_from_spec(spec)

    def real() -> ModuleType:
        if sys.modules.get(NAME) is stand_in:
            del sys.modules[NAME]
        return importlib.import_module(NAME)

    def entry_points(**chosen: str) -> Any:
        return real().entry_points(**chosen)

    stand_in.__dict__.update(entry_points=entry_points, __getattr__=lambda name: getattr(real(), name))
    sys.modules[NAME] = stand_in
    importlib.metadata = stand_in  # as an import does
