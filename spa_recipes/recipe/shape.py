"""The JSON Schema of a recipe or job as a plain tree: what may stand at a key, for messages about what stands there.

A node is the schema of one value. A section's node has `properties`; a section that is chosen by its `type` has one
node per type under `oneOf`; other alternatives stand under `anyOf`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from spa_recipes.recipe.schema import Document
from spa_recipes.recipe.text import Keys, Values

Node = dict[str, Any]


@lru_cache
def shape_of(document: type[Document]) -> Node:
    """The root of the tree: references are replaced by what they refer to, and `X | None` by X."""
    schema = document.model_json_schema()
    return _expanded(schema, schema.pop("$defs"))


def _expanded(node: Node, sections: dict[str, Node]) -> Node:
    if "$ref" in node:
        node = {**sections[node["$ref"].rpartition("/")[2]], **node}
    options = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
    if len(options) == 1:
        return _expanded(options[0], sections)
    node = {key: value for key, value in node.items() if key not in ("$ref", "discriminator")}
    if "properties" in node:
        node["properties"] = {key: _expanded(value, sections) for key, value in node["properties"].items()}
    if "items" in node:
        node["items"] = _expanded(node["items"], sections)
    for choice in ("anyOf", "oneOf"):
        if choice in node:
            node[choice] = [_expanded(option, sections) for option in node[choice]]
    return node


def types_of(node: Node) -> dict[str, Node]:
    """The sections that `type` chooses from, by type; none where a node is something else."""
    members = {member["properties"]["type"]["const"]: member for member in node.get("oneOf", ())}
    return dict(sorted(members.items()))


def options_of(node: Node) -> list[Node]:
    """The alternatives of a node that is not a choice by `type`."""
    return [{"type": "object"}] if types_of(node) else node.get("anyOf", [node])


def child(node: Node, key: str | int) -> Node:
    """The node of an entry of a section or list; empty where the key is unknown."""
    if isinstance(key, str):
        return dict(node.get("properties", {}).get(key, {}))
    return next((dict(option["items"]) for option in options_of(node) if "items" in option), {})


def locate(document: type[Document], loc: Iterable[str | int]) -> tuple[Keys, Node]:
    """The keys in the recipe, and the node, of pydantic's location, in which types stand between the keys."""
    node, keys = shape_of(document), []
    for part in loc:
        if types := types_of(node):
            node = types[str(part)]
        elif "anyOf" not in node or isinstance(part, int):
            keys.append(part)
            node = child(node, part)
    return tuple(keys), node


def section_at(document: type[Document], keys: Keys, values: Values) -> tuple[Node, Node]:
    """The node of a section, and that of the type which it has in this recipe, where there are several."""
    node = union = shape_of(document)
    for length, key in enumerate(keys, start=1):
        node = union = child(node, key)
        if types := types_of(union):
            optional = (kind for kind, member in types.items() if "type" not in member.get("required", ()))
            default = next(optional, "")
            node = types[values.get(keys[:length]).get("type", default)]
    return union, node


def homes_of(document: type[Document], name: str) -> list[str]:
    """The sections at the top that have a key of this name."""
    return [
        section
        for section, node in shape_of(document)["properties"].items()
        if any(name in member.get("properties", {}) for member in (*types_of(node).values(), node))
    ]
