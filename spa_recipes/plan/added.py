"""Labels that come in the middle of a run: what was shared out stays, and they join it in stages of their own."""

from collections.abc import Iterator

from spa_recipes.plan.stages import Builder, Input, StageOutput
from spa_recipes.recipe.schema import AddedLabels, Recipe

PAIRS = "pairs.jsonl"


def heldout_of(recipe: Recipe) -> StageOutput:
    """The held-out pairs of a recipe, with those that were added."""
    added = [stage for stage, _ in _joining("heldout", recipe)]
    return StageOutput(added[-1], PAIRS) if added else StageOutput("data", "heldout.jsonl")


def added_before(iteration: int, recipe: Recipe) -> StageOutput | None:
    """The labels that were added before an iteration and join the seed labels; None if there are none."""
    added = [stage for stage, labels in _joining("seed", recipe) if labels.after < iteration]
    return StageOutput(added[-1], PAIRS) if added else None


def add_labels(recipe: Recipe, build: Builder) -> None:
    """Add a stage for each source of added labels; it hands on what those before it have, too.

    A prompt of the held-out part is never trained on: labels that join the one part leave out the prompts of the other.
    """
    parts = ("seed.jsonl", *(f"prompts-{i}.jsonl" for i in range(1, recipe.iterations + 1)))
    taken: dict[str, Input] = {f"taken-{i}": StageOutput("data", part) for i, part in enumerate(parts)}
    _add(recipe, build, [*_joining("heldout", recipe)], StageOutput("data", "heldout.jsonl"), taken)
    seed = [*_joining("seed", recipe)]
    _add(recipe, build, seed, None, {"taken-0": heldout_of(recipe)})


def _add(
    recipe: Recipe,
    build: Builder,
    added: list[tuple[str, AddedLabels]],
    earlier: StageOutput | None,
    inputs: dict[str, Input],
) -> None:
    for stage, labels in added:
        key = f"data.added.{recipe.data.added.index(labels)}"
        build.add(
            stage,
            "added",
            "labels that join the held-out part"
            if labels.join == "heldout"
            else f"labels that join the seed labels after iteration {labels.after}",
            settings={"source": labels.dataset},
            inputs={
                "pairs": build.source(labels, key),
                **({} if earlier is None else {"earlier": earlier}),
                **inputs,
            },
        )
        earlier = StageOutput(stage, PAIRS)


def _joining(part: str, recipe: Recipe) -> Iterator[tuple[str, AddedLabels]]:
    """Stage and source of the labels that join a part, the earliest first."""
    numbered = [(f"labels-{i}", labels) for i, labels in enumerate(recipe.data.added, start=1) if labels.join == part]
    yield from sorted(numbered, key=lambda one: one[1].after)
