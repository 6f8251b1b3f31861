"""A default that changes raises the version of the kinds that read it: keys cannot see it."""

import copy
import json

from spa_recipes.recipe import schema
from tests.kit.defaults import STORE, changed, defaults


def test_no_default_changed_without_the_version_of_its_kind() -> None:
    lines = changed(json.loads(STORE.read_text()), defaults())
    assert not lines, f"raise the versions in spa_recipes/plan/kinds.py, then run python -m tests.kit.defaults: {lines}"


def test_the_store_is_up_to_date() -> None:
    assert json.loads(STORE.read_text()) == defaults(), "run python -m tests.kit.defaults"


def test_a_changed_default_is_named_until_the_version_is_raised() -> None:
    stored = defaults()
    now = copy.deepcopy(stored)
    now["refine"]["defaults"]["noise.alpha"] = 0.2
    assert changed(stored, now) == ["refine: noise.alpha: 0.1 -> 0.2"]
    now["refine"]["version"] += 1
    assert changed(stored, now) == []


def test_defaults_inside_unions_are_watched() -> None:
    of_refine, of_generate = (defaults()[kind]["defaults"] for kind in ("refine", "generate"))
    assert of_refine["noise.threshold[percentile].k"] == 10.0
    assert of_generate["sampling.backend[vllm].lora"] == "merged"
    assert of_generate["model.lora.lora_r"] == 16


def test_sections_are_built_when_they_are_used_and_their_defaults_are_valid() -> None:
    """A default stands in the schema without a validation, so it is compared with a validated one."""
    sections = [kind for kind in vars(schema).values() if isinstance(kind, type) and issubclass(kind, schema.Section)]
    defaults = [
        field.default
        for kind in sections
        for field in kind.model_fields.values()
        if isinstance(field.default, schema.Section)
    ]
    assert len(defaults) > 10
    for default in defaults:
        assert default == type(default).model_validate({})
