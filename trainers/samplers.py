"""Batch samplers without state: batch `step` is a function of the seed and `step` alone, so a resume cannot go astray.

The rows of a class form an endless stream of permutations: every pass shows each row once. A batch takes the next few
rows of every stream, and how many were taken before is known for any step without drawing the batches before it.
`build_sampler(...)` makes one; `StepBatches` hands its batches to a DataLoader.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from configs.errors import InputError, listed

BLOCK_STEPS = 1024  # the counts of this many steps are drawn at once
_COUNTS, _PASSES, _ORDER = range(3)  # random streams of one seed


class BatchSampler:
    """Batches that take an expected number of rows from each of several streams. Made by `build_sampler`.

    `streams` are positions into the training rows; `expected` (streams,) are rows per batch and sum to `batch_size`;
    `class_shares` (classes,) is the expected share of each class in a batch.
    """

    def __init__(
        self, streams: list[np.ndarray], expected: np.ndarray, class_shares: np.ndarray, *, batch_size: int, seed: int
    ) -> None:
        self.class_shares = class_shares
        self.batch_size = batch_size
        self._streams = streams
        self._seed = seed
        # The last bound is written, not summed: a rounding error there would lose a row.
        self._bounds = np.array([0.0, *np.cumsum(expected)[:-1], batch_size])
        self._taken_before_block = [np.zeros(len(streams), dtype=np.int64)]
        self._block_counts = lru_cache(maxsize=2)(self._draw_counts)
        self._permutation = lru_cache(maxsize=2 * len(streams))(self._draw_permutation)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions into the training rows and draws, both int64 (batch,), of batch `step`, counted from 0.

        The draw is how often that row was shown before: no (position, draw) comes twice in the whole stream.
        """
        starts, counts = self._taken(step)
        parts = [self._take(stream, starts[stream], counts[stream]) for stream in np.flatnonzero(counts).tolist()]
        # Shuffled, so that each device and each micro-batch gets a mixture of the classes.
        order = self._rng(_ORDER, step).permutation(self.batch_size)
        positions = np.concatenate([positions for positions, _ in parts])
        draws = np.concatenate([draws for _, draws in parts])
        return positions[order], draws[order]

    def _taken(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows taken from each stream before `step`, and by it."""
        block, within = divmod(step, BLOCK_STEPS)
        while len(self._taken_before_block) <= block:
            latest = len(self._taken_before_block) - 1
            self._taken_before_block.append(self._taken_before_block[-1] + self._block_counts(latest).sum(axis=0))
        counts = self._block_counts(block)
        return self._taken_before_block[block] + counts[:within].sum(axis=0), counts[within]

    def _draw_counts(self, block: int) -> np.ndarray:
        # Systematic sampling: the streams' shares lie end to end on a line, and one random offset per step marks it at
        # every whole number. Counts add up, are within 1 of what is expected, and right on average. Multiples of 2^-32
        # keep the sums below exact.
        offsets = self._rng(_COUNTS, block).integers(2**32, size=(BLOCK_STEPS, 1)) / 2**32
        return np.diff(np.floor(self._bounds + offsets).astype(np.int64), axis=1)  # (steps, streams)

    def _take(self, stream: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        passes, places = np.divmod(np.arange(start, start + count), len(self._streams[stream]))
        rows = [self._permutation(stream, number)[places[passes == number]] for number in np.unique(passes).tolist()]
        return np.concatenate(rows), passes

    def _draw_permutation(self, stream: int, number: int) -> np.ndarray:
        return self._rng(_PASSES, stream, number).permutation(self._streams[stream])

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=key))


def build_sampler(
    name: str, targets: np.ndarray, *, num_classes: int, batch_size: int, seed: int, balance: float, positives: int
) -> BatchSampler:
    """The named sampler over training rows with the given targets, int64 (rows,), each in 0 .. `num_classes` - 1.

    `natural` is one stream over all rows; `balanced` draws class c in proportion to (its rows) ** (1 - `balance`);
    `positives_per_batch` puts exactly `positives` rows of class 1 into every batch (two classes). Raises InputError for
    an unknown name, for a class without rows (with the counts), and for positives that cannot fill a batch as asked.
    """
    if name not in SAMPLERS:
        raise InputError(f"train.sampler.name: expected one of {', '.join(SAMPLERS)}, got {name!r}")
    class_counts = np.bincount(targets, minlength=num_classes)
    if len(class_counts) > num_classes:
        raise ValueError(f"expected targets below {num_classes}, got {targets.max()}")
    _require_rows(class_counts)
    classes = [np.flatnonzero(targets == target) for target in range(num_classes)]
    plan = SAMPLERS[name](classes, batch_size=batch_size, balance=balance, positives=positives)
    return BatchSampler(plan.streams, plan.expected, plan.class_shares, batch_size=batch_size, seed=seed)


class Sampler(Protocol):
    """What batches come from: positions and draws by step, the same every time they are asked for."""

    batch_size: int

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]: ...


class StepBatches:
    """Lists of (position, draw) for the steps `start_step` .. `stop_step` - 1, for a DataLoader's `batch_sampler`.

    Rank r of w takes every w-th row of a batch, from the r-th on, so the batch over all devices is the same for any w.
    """

    def __init__(
        self, sampler: Sampler, *, start_step: int, stop_step: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if sampler.batch_size % world_size:
            raise InputError(
                f"train.batch_size ({sampler.batch_size}) must be a multiple of the number of devices ({world_size}), "
                "because their gradients are averaged with equal weight"
            )
        self.sampler = sampler
        self.start_step = start_step
        self.stop_step = stop_step
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return max(0, self.stop_step - self.start_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        mine = slice(self.rank, None, self.world_size)
        for step in range(self.start_step, self.stop_step):
            positions, draws = self.sampler.batch(step)
            yield list(zip(positions[mine].tolist(), draws[mine].tolist(), strict=True))


class _Plan(NamedTuple):
    streams: list[np.ndarray]
    expected: np.ndarray
    class_shares: np.ndarray


def _natural(classes: list[np.ndarray], *, batch_size: int, balance: float, positives: int) -> _Plan:
    counts = np.array([len(rows) for rows in classes])
    return _Plan([np.sort(np.concatenate(classes))], np.array([batch_size]), counts / counts.sum())


def _balanced(classes: list[np.ndarray], *, batch_size: int, balance: float, positives: int) -> _Plan:
    if not 0.0 <= balance <= 1.0:
        raise InputError(f"train.sampler.balance: expected 0 (natural) to 1 (classes equally often), got {balance}")
    weights = np.array([float(len(rows)) ** (1.0 - balance) for rows in classes])
    shares = weights / weights.sum()
    return _Plan(classes, batch_size * shares, shares)


def _positives_per_batch(classes: list[np.ndarray], *, batch_size: int, balance: float, positives: int) -> _Plan:
    if len(classes) != 2:
        raise InputError(
            f"train.sampler.name: positives_per_batch is for two classes, got {len(classes)}; use balanced"
        )
    if not 0 < positives < batch_size:
        raise InputError(
            f"train.sampler.positives: expected 1 to {batch_size - 1} in a batch of {batch_size}, got {positives}"
        )
    expected = np.array([batch_size - positives, positives])
    return _Plan(classes, expected, expected / batch_size)


SAMPLERS: dict[str, Callable[..., _Plan]] = {
    "natural": _natural,
    "balanced": _balanced,
    "positives_per_batch": _positives_per_batch,
}


def _require_rows(class_counts: np.ndarray) -> None:
    empty = np.flatnonzero(class_counts == 0).tolist()
    if not empty:
        return
    if len(class_counts) == 2:
        problem = f"the training rows have {class_counts[1]} positives and {class_counts[0]} negatives"
    else:
        rows = [f"class {number}: 0 of {class_counts.sum()} rows" for number in empty]
        problem = f"{len(empty)} of {len(class_counts)} classes have no training rows\n{listed(rows)}\n "
    raise InputError(f"{problem}; label some, or use fewer folds or a smaller guarantee.holdout")
