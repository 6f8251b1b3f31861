"""The order of a plan as a graph: for each stage those that it waits for."""

from collections.abc import Collection, Mapping

Graph = Mapping[str, Collection[str]]
"""For each node the nodes that it waits for; all of them are keys, too. Nodes come after those that they wait for."""


def ancestors(graph: Graph, node: str) -> set[str]:
    """All nodes that have to be done before `node`, which is not among them."""
    found = set[str]()
    left = [*graph[node]]
    while left:
        if (before := left.pop()) not in found:
            found.add(before)
            left += graph[before]
    return found


def descendants(graph: Graph, node: str) -> set[str]:
    """All nodes that cannot be done before `node`, which is not among them."""
    found = {node}
    for name, waits_for in graph.items():
        if not found.isdisjoint(waits_for):
            found.add(name)
    return found - {node}
