"""How often labels are right, by the agreement of members on the same pairs: reads no label of these pairs.

It describes the members, each of which learned from its own share of the seed labels, on answers of the policy. How
far they agree and how often they are right is known of held-out labelled pairs, and tells what agreement is worth.
"""

from collections.abc import Sequence

import pyarrow as pa

from spa_recipes.algo.members import accuracy_on_the_line, agreement
from spa_recipes.data import tables
from spa_recipes.data.rows import read_rows, write_jsonl
from spa_recipes.data.stage_rows import JudgmentRow, LabelMarginRow, MemberMarginsRow
from spa_recipes.stages.common import mean, share
from spa_recipes.stages.context import Context, Result
from spa_recipes.stages.member_tables import LogRatios, read_members


def run(context: Context) -> Result:
    """Write `margins.jsonl`: the members' margins of every judged pair."""
    completions = tables.read_table(context.input("completions"), tables.COMPLETIONS)
    reference = None
    if "reference_logps" in context.spec.inputs:
        reference = tables.read_values(context.input("reference_logps"), completions, tables.LOGPS)
    judgments = read_rows(context.input("judgments"), JudgmentRow)
    rows = _margins(judgments, completions, read_members(context, completions, reference))
    write_jsonl(context.draft / "margins.jsonl", rows)
    agreed = agreement([*zip(*(row["margins"] for row in rows), strict=True)])
    labelled = _labelled(context, len(rows[0]["margins"]))
    known = agreement(labelled)
    right_there = mean([0.5 if margin == 0 else float(margin > 0) for member in labelled for margin in member])
    metrics = {
        "member_agreement": agreed,
        "heldout_agreement": known,
        "reliability": accuracy_on_the_line(agreed, known, right_there),
    }
    gaps = [gold[j["chosen"]] - gold[j["rejected"]] if (gold := j["gold"]) else 0.0 for j in judgments]
    if any(gaps):
        right = [margin * gap > 0 for row, gap in zip(rows, gaps, strict=True) if gap for margin in row["margins"]]
        metrics["member_accuracy_vs_gold"] = share(right)
    return Result(len(rows), 0, metrics)


def _labelled(context: Context, members: int) -> list[list[float]]:
    """For each member its margins of the held-out labelled pairs: it is right where they are positive."""
    files = [context.input(f"member{m}_heldout") for m in range(1, members + 1)]
    return [[row["margin"] for row in read_rows(file, LabelMarginRow)] for file in files]


def _margins(
    judgments: Sequence[JudgmentRow], completions: pa.Table, members: Sequence[LogRatios]
) -> list[MemberMarginsRow]:
    ids = (completions[name].to_pylist() for name in ("item", "sample"))
    place = {key: i for i, key in enumerate(zip(*ids, strict=True))}
    rows: list[MemberMarginsRow] = []
    for judgment in judgments:
        chosen, rejected = (place[judgment["item"], judgment[side]] for side in ("chosen", "rejected"))
        margins = [member.values[chosen] - member.values[rejected] for member in members]
        rows.append({"item": judgment["item"], "prompt_id": judgment["prompt_id"], "margins": margins})
    return rows
