"""How embeddings are doing, told without labels: spread, effective rank, alignment and uniformity."""

import torch
from torch import Tensor
from torch.nn import functional as F


def spread(embeddings: Tensor) -> float:
    """0 when all embeddings (images, dim) point the same way, 1 when they point evenly around.

    The root of the summed variances of embeddings scaled to unit length, which is sqrt(1 - |their mean|^2).
    """
    return float(F.normalize(embeddings.double(), dim=1).var(dim=0, correction=0).sum().sqrt())


def effective_rank(embeddings: Tensor) -> float:
    """How many dimensions embeddings (images, dim) really use, 1 to dim: exp of the entropy of their singular values.

    Of the embeddings about their mean, each singular value divided by the sum of all (Roy and Vetterli 2007; as a
    measure of representations: Garrido et al. 2023, RankMe). Constant embeddings use none: 0.
    """
    values = torch.linalg.svdvals(embeddings.double() - embeddings.double().mean(dim=0))
    if values[0] <= 1e-9 * embeddings.double().norm():
        return 0.0
    shares = values / values.sum()
    return float(torch.exp(torch.special.entr(shares).sum()))


def alignment(first: Tensor, second: Tensor) -> float:
    """The mean squared distance of two views' embeddings, (images, dim), at unit length; 0 is best.

    Wang and Isola 2020, Understanding Contrastive Representation Learning through Alignment and Uniformity, alpha 2.
    """
    distances = F.normalize(first.double(), dim=1) - F.normalize(second.double(), dim=1)
    return float(distances.square().sum(dim=1).mean())


def uniformity(embeddings: Tensor) -> float:
    """log of the mean of exp(-2 |x - y|^2) over pairs of embeddings (images, dim) at unit length; lower is better.

    Wang and Isola 2020, t 2. Equal embeddings have 0.
    """
    distances = torch.pdist(F.normalize(embeddings.double(), dim=1)).square()
    return float(distances.mul(-2).exp().mean().log())
