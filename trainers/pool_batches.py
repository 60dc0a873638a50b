"""Training on labels and on the pool at once: batches of both, packed targets, and the loss of either kind of row.

Pool rows have soft targets that hold at the pool's class shares. What the network learns from labels is off by a
constant per class, because samplers and losses change the shares it sees; that constant is taken from its logits before
they are compared with a pool target, so that both kinds of row teach the same function. Rows of the pool may also be
drawn as those of the labels are, which brings rare classes into every batch (`drawn_like_labels`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trainers.losses import cross_entropy
from trainers.prior import shift_prevalence
from trainers.samplers import BatchSampler, Sampler, build_sampler

DRAWS_VERSION = 3  # of `drawn_like_labels`, by which students of earlier draws are known: 3 keeps to its bounds
PerSampleLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PoolData:
    """What a student learns of the pool.

    `rows` are table positions, `targets` float32 (rows,) probabilities of the positive class or (rows, classes),
    `weights` float32 (rows,), `prior` the class shares (classes,) that the targets hold at. A batch has `batch_size`
    of the rows, and their mean loss counts `loss_weight` times that of the labelled ones. With `like_labels` the rows
    of a batch are mixed as the labelled ones are.
    """

    rows: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    prior: np.ndarray
    batch_size: int
    loss_weight: float
    like_labels: bool = False


class LabelledAndPool:
    """A sampler whose batches are those of two samplers, shuffled together; pool positions come after the labelled."""

    def __init__(self, labelled: Sampler, pool: Sampler, *, num_labelled: int, seed: int) -> None:
        self.labelled, self.pool, self.num_labelled, self.seed = labelled, pool, num_labelled, seed
        self.batch_size = labelled.batch_size + pool.batch_size

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions and draws of batch `step`, as `BatchSampler.batch`."""
        parts = self.labelled.batch(step), self.pool.batch(step)
        positions = np.concatenate([parts[0][0], parts[1][0] + self.num_labelled])
        draws = np.concatenate([parts[0][1], parts[1][1]])
        order = np.random.default_rng([self.seed, step]).permutation(self.batch_size)
        return positions[order], draws[order]


class DrawnByWeight:
    """Batches that show each row in proportion to its weight (rows,), with replacement; made by `drawn_like_labels`.

    `order` (rows,) is a permutation of the rows, along which those of a batch are spread evenly (stratified sampling):
    rows next to each other are alike, so that every batch has some of all kinds. Weights must not all be 0.
    """

    def __init__(self, weights: np.ndarray, order: np.ndarray, *, batch_size: int, seed: int) -> None:
        self.batch_size = batch_size
        self._order, self._seed = order, seed
        self._ends = np.cumsum(weights[order], dtype=np.float64)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and draws of batch `step`, as `BatchSampler.batch`; a draw is a number that no other row ever has."""
        places = np.arange(self.batch_size)
        marks = (places + np.random.default_rng([self._seed, step]).random(self.batch_size)) / self.batch_size
        found = np.searchsorted(self._ends, marks * self._ends[-1], side="right")
        return self._order[np.minimum(found, len(self._order) - 1)], step * self.batch_size + places


def drawn_like_labels(
    pool: PoolData, class_shares: np.ndarray, *, most: np.ndarray, seed: int
) -> tuple[PoolData, DrawnByWeight]:
    """The pool as the labelled sampler would show it if it knew every row's class, and what draws its rows.

    A row whose targets are t is drawn in proportion to w = sum_c t_c often_c, with often_c = share_c / mean(t_c), so
    that a batch holds the classes by `class_shares` (classes,), those of the labelled batches. Its targets become t_c
    often_c / w (Bayes), and `prior` what becomes of it by the same factors. If targets are right, the mean loss is that
    of drawing rows by their true classes. `most` (classes,) bounds how often a row that is surely of a class comes in a
    step, so that the few images of a class that is hardly there do not fill the batches: images of the other classes
    do. Of a pool that cannot fill a batch within the bounds, all rows come more often than these, by one factor.
    """
    classes = pool.targets if pool.targets.ndim == 2 else np.stack([1.0 - pool.targets, pool.targets], axis=1)
    classes = classes.astype(np.float64)
    often = _showings(classes.sum(axis=0), pool.prior, class_shares, most, pool.batch_size)
    parts = classes * often
    weights = parts.sum(axis=1)
    shown = np.divide(parts, weights[:, None], out=classes.copy(), where=weights[:, None] > 0.0)
    targets = (shown if pool.targets.ndim == 2 else shown[:, 1]).astype(pool.targets.dtype)
    order = np.lexsort((shown.max(axis=1), shown.argmax(axis=1)))
    sampler = DrawnByWeight(weights, order, batch_size=pool.batch_size, seed=seed)
    prior = pool.prior * often
    return replace(pool, targets=targets, prior=prior / prior.sum()), sampler


def _showings(
    expected: np.ndarray, prior: np.ndarray, class_shares: np.ndarray, most: np.ndarray, batch_size: int
) -> np.ndarray:
    """How often a row that is surely of a class is to come in a step, (classes,), of `expected` rows of each.

    What a class at its bound lacks goes to those below theirs, by their shares. Where all are at their bounds and a
    batch is not full, no way of drawing heeds these; what is drawn in proportion exceeds all of them equally. A class
    without rows (hard labels of certain images alone) has the mean of the others by `prior`, so that its share stays.
    """
    often = np.minimum(batch_size * class_shares / np.maximum(expected, 1.0), most)
    for _ in range(len(often)):  # in each round but the last another class comes to its bound
        rows, free = often * expected, often < most
        if not rows[free].any():
            break
        often[free] *= (batch_size - rows[~free].sum()) / rows[free].sum()
        often = np.minimum(often, most)
    there = expected > 0
    often[~there] = np.average(often[there], weights=prior[there])
    return often


def drawn_evenly(num_pool: int, *, batch_size: int, seed: int) -> BatchSampler:
    """Batches of the pool alone, which show every row as often as the others."""
    return build_sampler(
        "natural",
        np.zeros(num_pool, dtype=np.int64),
        num_classes=1,
        batch_size=batch_size,
        seed=seed,
        balance=0.0,
        positives=1,
    )


def packed_targets(labelled: Tensor, pool: PoolData, *, batch_size: int) -> Tensor:
    """Targets of labelled and pool rows, (rows, outputs + 2): the last columns are each row's part in either loss.

    Their parts are such that the mean over a batch of any cut is the mean labelled loss plus `loss_weight` times the
    weighted mean pool loss. `batch_size` is that of the labelled rows.
    """
    total = batch_size + pool.batch_size
    targets = torch.cat([labelled, torch.from_numpy(pool.targets).to(labelled)])
    of_labelled = torch.zeros(len(targets))
    of_labelled[: len(labelled)] = total / batch_size
    of_pool = torch.zeros(len(targets))
    of_pool[len(labelled) :] = pool.loss_weight * total / pool.batch_size * torch.from_numpy(pool.weights)
    columns = targets[:, None] if targets.ndim == 1 else targets
    return torch.cat([columns, of_labelled[:, None], of_pool[:, None]], dim=1)


def loss_of_both(of_labelled: PerSampleLoss, shift: np.ndarray) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a batch of `packed_targets`: `of_labelled`, and cross-entropy of the logits less `shift`.

    `shift` (outputs,) is what brings the network's logits to the pool's class shares.
    """
    offset = torch.from_numpy(np.asarray(shift, dtype=np.float32))

    def mean_loss(logits: Tensor, packed: Tensor) -> Tensor:
        targets = packed[:, 0] if logits.ndim == 1 else packed[:, :-2]
        at_pool = logits - (offset[0].item() if logits.ndim == 1 else offset.to(logits))
        losses = packed[:, -2] * of_labelled(logits, targets) + packed[:, -1] * cross_entropy(at_pool, targets)
        return losses.mean()

    return mean_loss


def shift_to_pool(log_odds_shift: np.ndarray, class_counts: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """What a network's logits exceed those at the pool's class shares by, (outputs,).

    `log_odds_shift` brings them to the shares of the labelled rows, `class_counts` (classes,); `prior` are the pool's.
    """
    labelled = class_counts / class_counts.sum()
    if len(log_odds_shift) == 1:
        moved = shift_prevalence(np.zeros(1), float(labelled[1]), float(prior[1]))
    else:
        moved = shift_prevalence(np.zeros((1, len(prior))), labelled, prior)[0]
    shift: np.ndarray = log_odds_shift - moved
    return shift
