"""Tables of models beside the policy: what each says of every answer, and what members say together."""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from spa_recipes.algo.members import ensemble
from spa_recipes.data import tables
from spa_recipes.stages.context import Context


class LogRatios(NamedTuple):
    """log pi(y|x) - log pi_ref(y|x) of every completion in nats, under a model or under all members as one.

    Attributes:
        errors: standard errors; empty where they were not measured.
    """

    values: Sequence[float]
    errors: Sequence[float]


def log_ratios_of(
    name: str, context: Context, completions: pa.Table, reference: Sequence[float] | None
) -> LogRatios | None:
    """What a stage's inputs say under a model: its table of log-ratios, or its log-probs less those of the reference.

    Args:
        name: the model's, before `_log_ratios` or `_logps`.
        reference: log-probs of the completions under the reference, where the models' tables hold log-probs.

    Returns:
        None where no table of that name is among the inputs.
    """
    logps, ratios = f"{name}_logps", f"{name}_log_ratios"
    if ratios in context.spec.inputs:
        table = tables.read_log_ratios(context.input(ratios), completions)
        return LogRatios(table.values, table.errors)
    if logps not in context.spec.inputs:
        return None
    assert reference is not None
    values = tables.read_values(context.input(logps), completions, tables.LOGPS)
    return LogRatios([ours - theirs for ours, theirs in zip(values, reference, strict=True)], ())


def read_members(context: Context, completions: pa.Table, reference: Sequence[float] | None) -> list[LogRatios]:
    """The tables of the members among a stage's inputs, in the members' order; see `log_ratios_of`."""
    numbered = (f"member{number}" for number in range(1, len(context.spec.inputs) + 1))
    found = (log_ratios_of(name, context, completions, reference) for name in numbered)
    return [table for table in found if table is not None]


def ensemble_of(members: Sequence[LogRatios], penalty: float) -> LogRatios:
    """The members' rewards as one, over beta: mean minus `penalty` times their standard deviation."""
    values = zip(*(member.values for member in members), strict=True)
    if not members[0].errors:
        return LogRatios([ensemble(row, penalty).value for row in values], ())
    errors = zip(*(member.errors for member in members), strict=True)
    both = [ensemble(row, penalty, error) for row, error in zip(values, errors, strict=True)]
    return LogRatios([one.value for one in both], [one.error for one in both])
