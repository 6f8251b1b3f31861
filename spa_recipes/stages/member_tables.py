"""The members' tables: what each says of every answer, and what they say together where they judge."""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from spa_recipes.algo.members import ensemble
from spa_recipes.data import tables
from spa_recipes.stages.context import Context


class LogRatios(NamedTuple):
    """log pi(y|x) - log pi_init(y|x) of every completion in nats, under a member or under all as one.

    Attributes:
        errors: standard errors; empty where they were not measured.
    """

    values: Sequence[float]
    errors: Sequence[float]


def read_members(context: Context, completions: pa.Table, reference: Sequence[float] | None) -> list[LogRatios]:
    """The tables of the members among a stage's inputs, in the members' order.

    Args:
        reference: log-probs of the completions under pi_init, where the tables hold log-probs.
    """
    found = []
    for number in range(1, len(context.spec.inputs) + 1):
        logps, ratios = f"member{number}_logps", f"member{number}_log_ratios"
        if ratios in context.spec.inputs:
            table = tables.read_log_ratios(context.input(ratios), completions)
            found.append(LogRatios(table.values, table.errors))
        elif logps in context.spec.inputs:
            assert reference is not None
            values = tables.read_values(context.input(logps), completions, tables.LOGPS)
            found.append(LogRatios([ours - theirs for ours, theirs in zip(values, reference, strict=True)], ()))
    return found


def ensemble_of(members: Sequence[LogRatios], penalty: float) -> LogRatios:
    """The members' rewards as one, over beta: mean minus `penalty` times their standard deviation."""
    values = zip(*(member.values for member in members), strict=True)
    if not members[0].errors:
        return LogRatios([ensemble(row, penalty).value for row in values], ())
    errors = zip(*(member.errors for member in members), strict=True)
    both = [ensemble(row, penalty, error) for row, error in zip(values, errors, strict=True)]
    return LogRatios([one.value for one in both], [one.error for one in both])
