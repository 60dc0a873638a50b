"""What every method of self-supervised pretraining is: a backbone, what is put on it, and a loss."""

from abc import ABC, abstractmethod
from itertools import pairwise

import torch
from torch import Tensor, nn

from configs.errors import InputError
from trainers.pretraining.spread import spread


class Method(nn.Module, ABC):
    """A timm backbone without classifier and what is trained on top of it and thrown away afterwards.

    `forward` takes views (batch, num_views, channels, height, width), normalised, and gives one tensor whose first
    dimension is the batch; `loss(outputs, targets)` makes a scalar of it. `targets` (batch, target_dim) are what a
    frozen teacher says of the images; without one they have no columns. What is random in either comes from torch's
    global generator, which the loop seeds by the step.
    """

    num_views = 2

    def __init__(self, encoder: nn.Module, head: nn.Module | None) -> None:
        """`head` makes of features (images, features) what the loss compares, if it compares vectors."""
        super().__init__()
        self.encoder = encoder
        self.head = head

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss over the batch."""

    def head_spread(self, vectors: Tensor) -> float:
        """How much the vectors (images, dim) that the head gives still differ, 0 to 1, as the loss sees them."""
        return spread(vectors)

    def vectors(self, views: Tensor) -> Tensor:
        """What the head gives for every view, (batch, views, dim)."""
        assert self.head is not None, "asked only of methods that have one"
        vectors: Tensor = self.head(self.encoder(views.flatten(0, 1)))
        return vectors.unflatten(0, views.shape[:2])


def projector(widths: list[int]) -> nn.Sequential:
    """Linear layers of the given widths with batch normalisation and ReLU between them, none after the last."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


@torch.no_grad()
def num_features(encoder: nn.Module, *, channels: int, image_size: int) -> int:
    """Width of the pooled features. Raises InputError when the network does not give one vector per image."""
    was_training = encoder.training
    features = encoder.eval()(torch.zeros(2, channels, image_size, image_size))
    encoder.train(was_training)
    if features.ndim != 2:
        raise InputError(f"pretrain: expected one vector per image from the backbone, got {tuple(features.shape)}")
    return int(features.shape[1])
