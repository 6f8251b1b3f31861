"""What a stage will need, before it runs: memory, disk, tokens and time, from sizes alone. Imports nothing heavy."""

from spa_recipes.estimates.memory import Memory, Sharding, training_memory
from spa_recipes.estimates.needs import Need, needs
from spa_recipes.estimates.shape import parameters_of

__all__ = ["Memory", "Need", "Sharding", "needs", "parameters_of", "training_memory"]
