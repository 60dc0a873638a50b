"""Distillation: match what a frozen, stronger network sees in an image, from a varied view of it."""

from torch import Tensor, nn
from torch.nn import functional as F

from trainers.pretraining.method import Method, projector

MIN_HIDDEN = 256


class Distill(Method):
    """The cosine of a two-layer head's output with the teacher's embedding of the plain image.

    The teacher sees every image once, before the training: asking it about every view (Beyer et al. 2022) would cost
    more than the training itself. Its embeddings come centred and of unit length (`teacher_targets`).
    """

    num_views = 1

    def __init__(self, encoder: nn.Module, *, num_features: int, dim: int) -> None:
        super().__init__(encoder, projector([num_features, max(num_features, MIN_HIDDEN), dim]))

    def forward(self, views: Tensor) -> Tensor:
        return self.vectors(views)[:, 0]  # (batch, dim)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cosine_distance(outputs, targets)


def cosine_distance(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over the batch of 1 - cosine, both (batch, dim)."""
    return (1 - F.cosine_similarity(outputs, targets, dim=1)).mean()


def teacher_targets(embeddings: Tensor) -> Tensor:
    """Embeddings (images, dim) about their mean, each of unit length: what all images share says nothing about one."""
    centred = embeddings - embeddings.mean(dim=0)
    return F.normalize(centred, dim=1)
