"""Reward models, for training and for judging: a score per sequence, and the loss of a labelled pair."""

import torch

READS_TURNS = "spa_reads_turns"
"""Set in the configuration of a reward model that this package trained. It reads a rendered prompt and a rendered
response, which ends with the end of its turn; what a chat template may write after that is left out."""


class ScoreHead(torch.nn.Linear):
    """A linear layer that computes in float32, as many rewards would be equal in half precision."""

    def forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Scores, (B, T, 1), of hidden states in any precision."""
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return torch.nn.functional.linear(hidden_BTD.float(), self.weight.float(), bias)


def use_score_head(model: torch.nn.Module) -> None:
    """Give a sequence-classification model a `ScoreHead` with its own weights, where its head is a linear `score`.

    The names of the weights stay as they are. Call this before the model is wrapped in anything.
    """
    head = getattr(model, "score", None)
    if type(head) is torch.nn.Linear:
        head.__class__ = ScoreHead


def pairwise_loss(chosen_B: torch.Tensor, rejected_B: torch.Tensor) -> torch.Tensor:
    """-log sigmoid(r_w - r_l) of each pair, (B,): the Bradley-Terry loss; TRL's RewardTrainer takes its mean."""
    return -torch.nn.functional.logsigmoid(chosen_B - rejected_B)
