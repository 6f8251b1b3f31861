"""Co-teaching: two chains of policies, each of which chooses the pairs that the other one learns from."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spa_recipes.algo.judgment import largest_margins, smallest_losses
from spa_recipes.errors import StageError
from spa_recipes.label_job import LastIteration
from spa_recipes.plan import KINDS, Plan, Stage, StageOutput
from spa_recipes.recipe.schema import Peers
from spa_recipes.run.schedule import ruled_out
from spa_recipes.stages.judge_rewards import Answer, Judged
from spa_recipes.stages.peer_review import PeerReview
from spa_recipes.state.stagedir import Manifest
from tests.kit.finished_runs import make_run
from tests.kit.plans import plan_of
from tests.kit.stages import judged
from tests.kit.state import FIELDS

BOOT: dict[str, Any] = {"seed_training": {"members": {"count": 2, "share": "bootstrap"}}}
HALVES: dict[str, Any] = {"seed_training": {"members": {"count": 2}}}
PEERS: dict[str, Any] = {"judge": {"peers": {}}}
MARGINS = st.lists(st.integers(-80, 80).map(lambda n: n / 4), min_size=1, max_size=25)
RATE = st.floats(0.0, 0.95)

# --- the choice


def plain_choice(peer_margins: list[float], forget_rate: float) -> list[int]:
    """The pair with the smallest loss under the peer, again and again; of equal ones the first."""
    losses = [math.log1p(math.exp(-margin)) for margin in peer_margins]
    count = max(1, round((1.0 - forget_rate) * len(losses)))
    chosen: list[int] = []
    for _ in range(count):
        best = None
        for i in range(len(losses)):
            if i not in chosen and (best is None or losses[i] < losses[best]):
                best = i
        assert best is not None
        chosen.append(best)
    return sorted(chosen)


@given(margins=MARGINS, forget_rate=RATE)
def test_the_pairs_with_the_smallest_loss_under_the_peer_are_chosen(margins: list[float], forget_rate: float) -> None:
    assert smallest_losses(margins, forget_rate) == plain_choice(margins, forget_rate)


@given(margins=MARGINS)
def test_a_peer_that_forgets_nothing_chooses_all(margins: list[float]) -> None:
    assert smallest_losses(margins, 0.0) == [*range(len(margins))]


@given(margins=MARGINS, forget_rate=RATE)
def test_a_peer_that_is_the_chain_itself_chooses_its_largest_margins(margins: list[float], forget_rate: float) -> None:
    own = [abs(margin) for margin in margins]  # a chain's margin of its own label is never below 0
    assert smallest_losses(own, forget_rate) == largest_margins(own, 1.0 - forget_rate)


def test_the_share_that_is_left_out_rises_linearly() -> None:
    rates = [Peers(forget_rate=0.3, num_gradual=3).forget_rate_in(t) for t in range(1, 6)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3])
    assert [Peers(forget_rate=0.3, num_gradual=1).forget_rate_in(t) for t in (1, 2)] == [0.3, 0.3]


# --- the stage

DRAW = random.Random(6)
TEXTS = [["a", "b", "c"] for _ in range(9)]
A_ON_A, B_ON_A, A_ON_B, B_ON_B, REFERENCE = (
    [[DRAW.uniform(-9, -3) for _ in range(3)] for _ in TEXTS] for _ in range(5)
)
BETA = 0.1


def plain_reviewed(own: list[list[float]], peer: list[list[float]], forget_rate: float, a: float = 0.0) -> list[str]:
    """Names of the prompts whose pairs a chain learns from, by plain loops; the k-th answer has k + 1 tokens."""
    margins = []
    for ours, theirs, refs in zip(own, peer, REFERENCE, strict=True):
        rewards = [BETA * (logp - ref) - a * (k + 1) for k, (logp, ref) in enumerate(zip(ours, refs, strict=True))]
        by_peer = [BETA * (logp - ref) - a * (k + 1) for k, (logp, ref) in enumerate(zip(theirs, refs, strict=True))]
        chosen, rejected = rewards.index(max(rewards)), rewards.index(min(rewards))
        margins.append(by_peer[chosen] - by_peer[rejected])
    return [f"p{i}" for i in plain_choice(margins, forget_rate)]


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "stage").rglob("*.jsonl")}


def test_each_chain_learns_from_the_pairs_that_the_other_one_chooses(tmp_path: Path) -> None:
    """Swapping the chains swaps what they learn from."""
    of_a, pairs, metrics = judged(
        tmp_path / "a", TEXTS, A_ON_A, REFERENCE, also={"peer_logps": B_ON_A}, forget_rate=0.4
    )
    of_b, _, _ = judged(tmp_path / "b", TEXTS, B_ON_B, REFERENCE, also={"peer_logps": A_ON_B}, forget_rate=0.4)
    assert [row["prompt_id"] for row in of_a] == plain_reviewed(A_ON_A, B_ON_A, 0.4)
    assert [row["prompt_id"] for row in of_b] == plain_reviewed(B_ON_B, A_ON_B, 0.4)
    assert [row["prompt_id"] for row in pairs] == [row["prompt_id"] for row in of_a]
    assert len(of_a) == 5
    assert metrics["dropped_by_peer"] == 4
    assert 0.0 < metrics["peer_agreement"] < 1.0
    every, _, _ = judged(tmp_path / "all", TEXTS, A_ON_A, REFERENCE)
    assert [row for row in every if row["prompt_id"] in plain_reviewed(A_ON_A, B_ON_A, 0.4)] == of_a


def test_a_peer_that_forgets_nothing_leaves_the_method_as_it_is_byte_for_byte(tmp_path: Path) -> None:
    _, _, before = judged(tmp_path / "spa", TEXTS, A_ON_A, REFERENCE)
    _, _, metrics = judged(tmp_path / "0", TEXTS, A_ON_A, REFERENCE, also={"peer_logps": B_ON_A}, forget_rate=0.0)
    assert written(tmp_path / "0") == written(tmp_path / "spa")
    assert {*written(tmp_path / "0")} >= {"judgments.jsonl", "pairs.jsonl"}
    assert metrics["dropped_by_peer"] == 0
    assert {name: metrics[name] for name in before} == before


def test_a_chain_that_is_its_own_peer_filters_by_its_own_margin_byte_for_byte(tmp_path: Path) -> None:
    keep = {"type": "implicit_reward", "beta": BETA, "keep": 0.6}
    judged(tmp_path / "keep", TEXTS, A_ON_A, REFERENCE, judge=keep)
    _, _, metrics = judged(tmp_path / "peer", TEXTS, A_ON_A, REFERENCE, also={"peer_logps": A_ON_A}, forget_rate=0.4)
    assert written(tmp_path / "peer") == written(tmp_path / "keep")
    assert metrics["peer_agreement"] == 1.0


def test_the_peers_reward_has_the_same_length_penalty(tmp_path: Path) -> None:
    rule = {"type": "implicit_reward", "beta": BETA, "length_penalty": 0.15}
    rows, _, _ = judged(tmp_path, TEXTS, A_ON_A, REFERENCE, also={"peer_logps": B_ON_A}, judge=rule, forget_rate=0.5)
    chosen = plain_reviewed(A_ON_A, B_ON_A, 0.5, a=0.15)
    assert [row["prompt_id"] for row in rows] == chosen != plain_reviewed(A_ON_A, B_ON_A, 0.5)


def reviewed(*cases: tuple[list[float], list[float]], forget_rate: float) -> PeerReview:
    """Pairs of two answers, the first of them chosen, by the peer's log-ratios and the gold rewards."""
    review = PeerReview(forget_rate)
    for ratios, gold in cases:
        answers = [Answer(0, k, "a", 1, None, None, None, None, None, peer=ratio) for k, ratio in enumerate(ratios)]
        row: Any = {"prompt_id": "p7", "chosen": 0, "rejected": 1, "gold": gold}
        review.note(row, Judged({"beta": 1.0}, {"prompt_id": "p7", "prompt": []}, answers, "key", 0.0))
    return review


def test_the_accuracy_of_the_labels_that_are_left_out_is_told() -> None:
    review = reviewed(
        ([3.0, 0.0], [1.0, 0.0]), ([0.0, 2.0], [0.0, 1.0]), ([0.0, 1.0], [1.0, 0.0]), ([1.0, 1.0], [1.0, 1.0]),
        forget_rate=0.75,
    )  # fmt: skip
    assert review.chosen() == [0]
    assert review.metrics([0]) == {
        "dropped_by_peer": 3,
        "peer_agreement": (1 + 0 + 0 + 0.5) / 4,
        "dropped_accuracy_vs_gold": 0.5,  # the last one is tied in truth
    }
    assert "dropped_accuracy_vs_gold" not in review.metrics([0, 1, 2, 3])


def test_a_peer_whose_reward_is_no_number_is_refused() -> None:
    with pytest.raises(StageError, match="p7: the peer's margin is nan: the pair cannot be reviewed"):
        reviewed(([math.nan, 0.0], []), forget_rate=0.5)


# --- the plan


def keys(plan: Plan) -> dict[str, str]:
    return {stage.id: stage.key for stage in plan.stages}


def test_the_peer_costs_its_seed_training_and_all_iterations_but_the_last() -> None:
    """In the last one nobody reads what it would learn. Of bootstraps, the first member alone is read."""
    method, plan = plan_of(), plan_of(**BOOT, **PEERS)
    theirs = ["generate-1-b", "score-1-reference-b", "score-1-peer-b", "judge-1-b", "refine-1-b"]
    assert keys(plan).keys() - keys(method).keys() == {"seed-member1", "score-1-peer", "score-2-peer", *theirs}
    changed = [name for name, key in keys(method).items() if keys(plan)[name] != key]
    assert changed[:3] == ["judge-1", "refine-1", "evaluate-1"]
    once = plan_of(**BOOT, **PEERS, data={"prompts_per_iteration": [8]})
    assert not [stage.id for stage in once.stages if stage.id.endswith("-b")]
    assert once.stage("judge-1").inputs["peer_logps"] == StageOutput("score-1-peer", "logps.parquet")


def test_the_plan_says_who_chooses_and_how_many() -> None:
    plan = plan_of(**BOOT, judge={"peers": {"forget_rate": 0.5}})
    assert plan.stage("judge-1").role == (
        "pi_0 labels its own answers; the 75% whose labels pi_0^(1) finds most probable are kept"
    )
    assert plan.stage("judge-1-b").role == (
        "pi_0^(1) labels its own answers; the 75% whose labels pi_0 finds most probable are kept"
    )
    assert plan.stage("judge-2").role == (
        "pi_1 labels its own answers; the 50% whose labels pi_1^(b) finds most probable are kept"
    )
    assert plan.stage("refine-1-b").role.startswith(
        "pi_1^(b): refined DPO on the judged pairs, from pi_0^(1), reference pi_0^(1)"
    )
    assert [plan.stage(f"refine-{i}").rows for i in (1, 2)] == [24, 24]
    assert plan.stage("score-2-peer").role == "log-probs of the answers under pi_1^(b), the peer"


def swapped(value: str) -> str:
    """The same of the other chain: what stands for pi_0 there is the member."""
    starts = {"seed": "seed-member1", "seed-member1": "seed"}
    own = ("data", "sft", "base")
    if value in starts or value in own:
        return starts.get(value, value)
    return value.removesuffix("-b") if value.endswith("-b") else f"{value}-b"


def test_swapping_the_chains_swaps_their_stages() -> None:
    plan = plan_of(**BOOT, **PEERS, data={"prompts_per_iteration": [8, 8, 8]})
    peers = [stage for stage in plan.stages if stage.id.endswith("-b")]
    assert len(peers) == 10
    for stage in peers:
        other = plan.stage(swapped(stage.id))
        inputs = {
            name: StageOutput(swapped(value.stage), value.path)
            for name, value in stage.inputs.items()
            if isinstance(value, StageOutput)
        }
        assert other.inputs == inputs
        assert other.settings == stage.settings
        assert other.rows == stage.rows


def test_a_label_depends_on_the_share_that_is_left_out_and_not_on_its_schedule() -> None:
    one = plan_of(**BOOT, judge={"peers": {"forget_rate": 0.2, "num_gradual": 2}})
    other = plan_of(**BOOT, judge={"peers": {"forget_rate": 0.1, "num_gradual": 1}})
    assert one.stage("judge-1").key == other.stage("judge-1").key
    assert one.stage("judge-2").key != other.stage("judge-2").key


def test_members_that_tell_reliability_are_read_once() -> None:
    """The peer of the first iteration is one of them. They say nothing of the peer's own answers."""
    plan = plan_of(**HALVES, **PEERS)
    assert plan.stage("judge-1").inputs["peer_logps"] == StageOutput("score-1-member1", "logps.parquet")
    assert not {"score-1-peer", "score-1-member1-b", "reliability-1-b"} & keys(plan).keys()
    assert {"seed-member2", "reliability-2", "score-2-peer"} <= keys(plan).keys()
    assert len({*keys(plan).values()}) == len(plan.stages)


def test_in_half_precision_and_with_qlora_peers_are_read_as_policies_are() -> None:
    plan = plan_of(**BOOT, **PEERS, model={"dtype": "bfloat16"})
    table = plan.stage("log-ratios-2-peer")
    assert (table.inputs["policy"], table.inputs["reference"]) == (
        StageOutput("refine-1-b", "model"), StageOutput("sft", "model"),
    )  # fmt: skip
    assert plan.stage("judge-2").inputs["peer_log_ratios"] == StageOutput("log-ratios-2-peer", "log_ratios.parquet")
    assert plan.stage("refine-1-b").inputs["log_ratios"] == StageOutput("log-ratios-1-b", "log_ratios.parquet")
    adapters = plan_of(**BOOT, **PEERS, model={"dtype": "bfloat16", "lora": {"load_in_4bit": True}})
    assert adapters.stage("log-ratios-2-peer").inputs["adapter"] == StageOutput("refine-1-b", "adapter")
    assert adapters.stage("refine-1-b").inputs["adapter"] == StageOutput("seed-member1", "adapter")


def test_the_peer_is_no_policy_of_the_run() -> None:
    assert not KINDS["peer"].policy
    plan = plan_of(**BOOT, **PEERS)
    assert plan.newest_model(keys(plan).keys() - {"refine-2"}) == plan.stage("refine-1")
    assert plan.newest_model(keys(plan).keys() - {"refine-1", "refine-2"}) == plan.stage("seed")
    for measured in ("evaluate-1", "evaluate-2"):
        assert plan.stage(measured).inputs["policy"] == StageOutput(measured.replace("evaluate", "refine"), "model")


def test_what_a_stop_rule_forbids_the_peer_does_not_do_either() -> None:
    plan = plan_of(**HALVES, **PEERS, evaluation={"min_judge_reliability": 0.6, "max_judge_decay": 0.01})
    waits = {stage.id: stage.after for stage in plan.stages if stage.id.endswith("-b") and stage.after}
    assert waits == {"generate-1-b": ("generate-1",), "refine-1-b": ("refine-1",)}

    def stops(**metrics: dict[str, Any]) -> set[str]:
        found = {n.replace("_", "-"): m for n, m in metrics.items()}
        return ruled_out(plan, {n: Manifest(**{**FIELDS, "id": n, "metrics": m}, files={}) for n, m in found.items()})

    unreliable = stops(evaluate_0={"heldout_accuracy": 0.8}, reliability_1={"reliability": 0.5})
    assert {"refine-1", "refine-1-b"} <= unreliable
    assert not {"generate-1-b", "judge-1-b"} & unreliable
    longer = plan_of(**HALVES, **PEERS, evaluation={"max_judge_decay": 0.01}, data={"prompts_per_iteration": [8, 8, 8]})
    fallen = {"evaluate-0": 0.8, "evaluate-1": 0.7}
    left = ruled_out(
        longer,
        {n: Manifest(**{**FIELDS, "id": n, "metrics": {"heldout_accuracy": v}}, files={}) for n, v in fallen.items()},
    )
    assert {"generate-2", "generate-2-b", "judge-2-b", "refine-2-b"} <= left
    assert not {"generate-1-b", "refine-1-b"} & left


# --- what is told


def test_card_and_labels_are_of_the_runs_own_chain(tmp_path: Path) -> None:
    plan = plan_of(**BOOT, **PEERS)
    run = make_run(tmp_path / "mini", plan)
    card = (run.final / "README.md").read_text()
    assert "This is pi_2, the model that the stage `refine-2`" in card
    assert "keeps those whose labels a second chain of policies, trained beside it, doubts least (co-teaching)" in card
    assert "DPO on the seed labels and then 2 iterations" in card
    assert "| pi_2 | 16 | 10 |" in card  # the steps of its own trainings

    def empty(stage: Stage, name: str) -> None:
        (run.stage_dir(stage, plan).output / name).write_text("")

    for stage, name in (("judge-2", "judgments.jsonl"), ("generate-2", "completions.parquet")):
        empty(plan.stage(stage), name)
    empty(plan.stage("data"), "prompts-2.jsonl")
    assert LastIteration(run).number == 2
