"""What a stage will need, before it runs: memory, disk, tokens and time, from sizes alone. Imports nothing heavy."""

from spa_recipes.estimates.checkpoints import Checkpoints, checkpoints_of, steps_of
from spa_recipes.estimates.hardware import Hardware, stated_hardware
from spa_recipes.estimates.memory import Memory, Sharding, training_memory
from spa_recipes.estimates.needs import Need, needs, processes_of, sharding_of
from spa_recipes.estimates.shape import parameters_of, shape_of_config
from spa_recipes.estimates.speed import SCORING, TRAINING, gpu_of, seconds_of

__all__ = [
    "SCORING",
    "TRAINING",
    "Checkpoints",
    "Hardware",
    "Memory",
    "Need",
    "Sharding",
    "checkpoints_of",
    "gpu_of",
    "needs",
    "parameters_of",
    "processes_of",
    "seconds_of",
    "shape_of_config",
    "sharding_of",
    "stated_hardware",
    "steps_of",
    "training_memory",
]
