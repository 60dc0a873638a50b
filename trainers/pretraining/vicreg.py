"""VICReg: views of an image are to be alike, while every dimension varies and no two tell the same."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.pretraining.method import Method, projector

TARGET_STD = 1.0  # the hinge leaves dimensions alone that vary more
EPSILON = 1e-4


class Vicreg(Method):
    """VICReg with a three-layer expander (Bardes, Ponce and LeCun 2022, VICReg)."""

    def __init__(
        self,
        encoder: nn.Module,
        *,
        num_features: int,
        invariance: float,
        variance: float,
        covariance: float,
        dim: int,
    ) -> None:
        super().__init__(encoder, projector([num_features, dim, dim, dim]))
        self.weights = {"invariance": invariance, "variance": variance, "covariance": covariance}

    def forward(self, views: Tensor) -> Tensor:
        return self.vectors(views)  # (batch, 2, dim)

    def head_spread(self, vectors: Tensor) -> float:
        """The mean standard deviation of the dimensions, each counted up to what the loss asks for."""
        return float(vectors.std(dim=0).clamp(max=TARGET_STD).mean() / TARGET_STD)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return vicreg_loss(outputs[:, 0], outputs[:, 1], **self.weights)


def vicreg_loss(first: Tensor, second: Tensor, *, invariance: float, variance: float, covariance: float) -> Tensor:
    """The weighted sum of three terms over two views' embeddings, each (batch, dim), batch at least 2.

    The mean squared difference of the views; for each view the mean over dimensions of max(0, 1 - standard deviation);
    for each view the sum of squared off-diagonal covariances divided by dim (Bardes et al. 2022, equations 1 to 6, and
    algorithm 1, which like us takes the mean over dimensions where equation 5 takes the sum).
    """
    spread = _variance_hinge(first) + _variance_hinge(second)
    overlap = _off_diagonal_covariance(first) + _off_diagonal_covariance(second)
    return invariance * F.mse_loss(first, second) + variance * spread + covariance * overlap


def _variance_hinge(embeddings: Tensor) -> Tensor:
    return F.relu(TARGET_STD - torch.sqrt(embeddings.var(dim=0) + EPSILON)).mean()


def _off_diagonal_covariance(embeddings: Tensor) -> Tensor:
    num, dim = embeddings.shape
    centred = embeddings - embeddings.mean(dim=0)
    covariances = centred.T @ centred / (num - 1)  # (dim, dim)
    return (covariances.square().sum() - covariances.diagonal().square().sum()) / dim
