"""Whether the cluster that a recipe names is there, before anything of the run starts."""

from collections.abc import Sequence

from spa_recipes.plan import KINDS, Stage
from spa_recipes.recipe.schema import Executor, RayExecutor, SlurmExecutor
from spa_recipes.run.ray_cluster import check_head
from spa_recipes.run.slurm import check_allocation


def check_cluster(stages: Sequence[Stage], executor: Executor) -> None:
    """Look for the cluster, if one of these stages runs on it.

    Raises:
        RecipeError: this is not inside of a Slurm job, or it is too small.
        TryAgainError: no Ray cluster answers.
    """
    if not any(KINDS[stage.kind].loads_model for stage in stages):
        return
    if isinstance(executor, SlurmExecutor):
        check_allocation(executor)
    if isinstance(executor, RayExecutor):
        check_head(executor)
