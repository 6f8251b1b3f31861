"""What the manifest of a finished stage holds."""

from typing import Any

FIELDS: dict[str, Any] = {
    "id": "judge-1",
    "kind": "judge",
    "key": "k" * 32,
    "material": {"kind": "judge"},
    "rows": 2,
    "tokens": 0,
    "seconds": 1.0,
    "metrics": {"ties": 0},
    "versions": {},
    "finished_at": "2026-01-01T00:00:00+00:00",
    "attempt": 1,
}
