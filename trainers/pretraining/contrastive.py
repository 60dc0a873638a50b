"""SimCLR: two views of an image are to be more alike than views of any two images of the batch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.pretraining.method import Method, projector


class Contrastive(Method):
    """SimCLR with a two-layer projector (Chen et al. 2020, A Simple Framework for Contrastive Learning)."""

    def __init__(self, encoder: nn.Module, *, num_features: int, temperature: float, hidden: int, dim: int) -> None:
        super().__init__(encoder, projector([num_features, hidden, dim]))
        self.temperature = temperature

    def forward(self, views: Tensor) -> Tensor:
        return self.vectors(views)  # (batch, 2, dim)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nt_xent(outputs, temperature=self.temperature)


def nt_xent(projections: Tensor, *, temperature: float) -> Tensor:
    """The normalised temperature-scaled cross-entropy of pairs of views, (batch, 2, dim), batch at least 2.

    For view i and its partner j: -log(exp(cos(i, j) / t) / sum over k other than i of exp(cos(i, k) / t)), averaged
    over all 2 * batch views (Chen et al. 2020, equation 1).
    """
    num_pairs = len(projections)
    vectors = F.normalize(projections, dim=2).transpose(0, 1).flatten(0, 1)  # first views, then second ones
    similarities = vectors @ vectors.T / temperature  # (2 batch, 2 batch)
    itself = torch.eye(2 * num_pairs, dtype=torch.bool, device=vectors.device)
    similarities = similarities.masked_fill(itself, -torch.inf)
    partners = torch.arange(2 * num_pairs, device=vectors.device).roll(num_pairs)
    return F.cross_entropy(similarities, partners)
