"""The chains of policies that go through the iterations: the run's own, and with `judge.peers` that of its peer.

All that measures, ends and publishes a run reads its own chain.
"""

from __future__ import annotations

from typing import NamedTuple

from spa_recipes.plan.members import members_of
from spa_recipes.plan.models import Models, Named
from spa_recipes.plan.stages import Input
from spa_recipes.recipe.schema import ImplicitRewardJudge, Peers, Recipe

PEER = "-b"
"""Ends the ids of the peer's stages."""


class Chain(NamedTuple):
    """A chain of policies before an iteration i.

    Attributes:
        mark: ends the ids of its stages; nothing in the run's own chain.
        kind: of the stages that refine its policies.
        symbol: what pi_i is called, as for `str.format`.
        policy: pi_{i-1}.
        earlier: pi_{i-2}, and pi_init in the first iteration.
    """

    mark: str
    kind: str
    symbol: str
    policy: Named
    earlier: Named

    def after(self, policy: Named) -> Chain:
        """The chain before the next iteration, when this one has made a policy."""
        return self._replace(policy=policy, earlier=self.policy)


def chains_of(recipe: Recipe, policy: Input, models: Models) -> tuple[Chain, Chain | None]:
    """The chains before the first iteration: the run's own, which begins with `policy`, and its peer's if there is one.

    The peer's begins with the first member.
    """
    init = Named(models.init, "pi_init")
    own = Chain("", "refine", "pi_{}", Named(policy, "pi_0"), init)
    if peers_of(recipe) is None:
        return own, None
    return own, Chain(PEER, "peer", "pi_{}^(b)", members_of(recipe)[0], init)


def peers_of(recipe: Recipe) -> Peers | None:
    """`judge.peers`, which other judges than the implicit reward have not."""
    return recipe.judge.peers if isinstance(recipe.judge, ImplicitRewardJudge) else None
