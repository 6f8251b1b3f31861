"""Did it harm: refusals by their openings, and the line that says how far the policies went."""

import pytest

from spa_recipes.data.refusals import is_refusal
from spa_recipes.report.answers import answers
from spa_recipes.state.stagedir import Manifest
from tests.kit.state import FIELDS

REFUSED = ["I'm sorry, but I can't help.", " I can\u2019t do that.", "As an AI language model, ...", '"I cannot say."']
ANSWERED = ["I'm sorry to hear that! Try a walk.", "I can help.", "Sure.", "", "He said: I cannot."]


@pytest.mark.parametrize(("text", "refused"), [*((t, True) for t in REFUSED), *((t, False) for t in ANSWERED)])
def test_an_answer_refuses_by_its_opening(text: str, refused: bool) -> None:
    assert is_refusal(text) == refused


def evaluation(name: str, **figures: float) -> Manifest:
    return Manifest(**{**FIELDS, "id": name, "kind": "evaluate", "metrics": figures}, files={})


def test_the_line_of_the_alignment_tax() -> None:
    found = {
        "evaluate-init": evaluation("evaluate-init", mean_tokens=40.0, refusals=0.02),
        "evaluate-0": evaluation("evaluate-0", mean_tokens=50.0, refusals=0.02, kl_to_init=0.5),
        "evaluate-1": evaluation("evaluate-1", mean_tokens=61.26, refusals=0.004, kl_to_init=2.0),
        "evaluate-control": evaluation("evaluate-control", mean_tokens=999.0, refusals=1.0, kl_to_init=9.0),
    }
    assert answers(found) == [
        "from pi_init to pi_1: KL to pi_init pi_0 0.50, pi_1 2.00 (nats per answer); tokens per answer 40.0 -> 61.3; "
        "refusals 2.0% -> 0.4%"
    ]
    assert answers({"evaluate-init": found["evaluate-init"]}) == []
