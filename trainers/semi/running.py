"""What semi-supervised training remembers of the pool from step to step, and when that is not credible.

Plain tensors in a dictionary, so that a resume point can keep them.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor

from configs.errors import InputError
from trainers.prior import estimate_prevalence_em

EM_SETTINGS: dict[str, Any] = {"tolerance": 1e-6, "max_iterations": 1000}  # a tenth of a second, while training
WINDOW = 4096  # newest opinions that the pool's class shares are estimated from
ESTIMATE_EVERY = 50  # steps
ALARM_ROWS = 1000  # fewer rows say little of a rate
ALARM_FACTOR = 2.0  # beyond what is credible by the labels, because a network's probabilities are not calibrated
SUMS = ("weight", "positive", "rows", "agree")  # of the figures, and of the watch


class Running:
    """The pool's class shares, running averages of the teacher's opinion, and sums that the figures are made of.

    `values` is empty at the start of a training, and filled by a resume. `labelled` are the class shares (classes,) of
    the labelled rows.
    """

    def __init__(self, values: dict[str, Tensor], *, labelled: Tensor, momentum: float) -> None:
        self.values, self.labelled, self.momentum = values, labelled, momentum
        if not values:
            values["prior"] = labelled.clone()
            values["mean"] = labelled.clone()
            values["confidence"] = torch.full((), 1.0 / len(labelled), device=labelled.device)
            values["balanced_confidence"] = values["confidence"].clone()
            values["estimates"] = torch.zeros((), device=labelled.device)
            values["window"] = torch.full((WINDOW, len(labelled)), float("nan"), device=labelled.device)
            self._clear("figures")
            self._clear("watch")

    @property
    def prior(self) -> Tensor:
        """The pool's class shares (classes,), as far as they are known."""
        return self.values["prior"]

    @property
    def mean(self) -> Tensor:
        """The running mean of the teacher's probabilities at those shares, (classes,)."""
        return self.values["mean"]

    @property
    def confidence(self) -> Tensor:
        """The running mean of its highest probabilities, a scalar."""
        return self.values["confidence"]

    @property
    def rarest(self) -> int:
        """The class whose share is watched: the positive one, or the rarest of several."""
        return int(self.labelled.argmin()) if len(self.labelled) > 2 else 1

    def follow(self, probabilities: Tensor) -> None:
        """Move the running mean and the running confidence towards those of a batch, (rows, classes)."""
        self.mean.lerp_(probabilities.mean(dim=0), 1 - self.momentum)
        self.confidence.lerp_(probabilities.max(dim=1).values.mean(), 1 - self.momentum)

    def follow_balanced(self, probabilities: Tensor) -> None:
        """Move the running confidence of the balanced head towards that of a batch."""
        self.values["balanced_confidence"].lerp_(probabilities.max(dim=1).values.mean(), 1 - self.momentum)

    def estimate_prior(self, natural: Tensor, step: int) -> None:
        """Keep a batch's probabilities at the labelled class shares, and estimate the pool's from the newest of them.

        By EM (trainers.prior), from a full window on, every ESTIMATE_EVERY steps. Where the scores cannot tell, the
        newest estimate stays.
        """
        kept = self.values["window"][len(natural) :]
        self.values["window"] = window = torch.cat([kept, natural[-WINDOW:]])
        if step % ESTIMATE_EVERY or bool(window.isnan().any()):
            return
        probabilities, labelled = (_summing_to_one(values) for values in (window, self.labelled))
        try:
            if len(labelled) == 2:
                share = float(estimate_prevalence_em(probabilities[:, 1], float(labelled[1]), **EM_SETTINGS))
                estimate = torch.tensor([1 - share, share])
            else:
                estimate = torch.as_tensor(estimate_prevalence_em(probabilities, labelled, **EM_SETTINGS))
        except InputError:
            return
        if float(estimate.min()) * WINDOW >= 1:
            self.values["prior"] = estimate.to(self.prior)
            self.values["estimates"] += 1

    def count(self, targets: Tensor, weights: Tensor, agrees: Tensor) -> None:
        """Add pool rows to the sums: targets (rows, classes), their weights, and whether the student says the same."""
        added = {
            "weight": weights.sum(),
            "positive": (weights * targets[:, self.rarest]).sum(),
            "rows": torch.tensor(float(len(targets))),
            "agree": (weights * agrees).sum(),
        }
        for name, value in added.items():
            for use in ("figures", "watch"):
                self.values[f"{use}_{name}"] += value.to(self.labelled.device)

    def take_figures(self) -> dict[str, float | None]:
        """Since they were taken last: share of the rarest class in the targets, of rows that teach, of those agreed on.

        A row teaches by its weight; agreed on is a row of which the student says the same as its target.
        """
        weight, positive, rows, agree = self._take("figures")
        return {
            "positive_rate": positive / weight if weight else None,
            "mask_rate": weight / rows if rows else None,
            "agreement": agree / weight if weight else None,
        }

    def forget_watch(self) -> None:
        """Begin to count anew for `watch`: what was taught before counts no more."""
        self._clear("watch")

    def watch(self, class_counts: Tensor, prevalence: Literal["labelled", "estimate"], step: int) -> str | None:
        """Why the positive rate of the rows since the last look is not credible, the first time it is not, else None.

        It looks when there are ALARM_ROWS or more.

        `class_counts` (classes,) are the labelled rows.
        """
        if float(self.values["watch_rows"]) < ALARM_ROWS:
            return None
        weight, positive, _, _ = self._take("watch")
        if not weight or "alarm" in self.values:
            return None
        rate = positive / weight
        share = float(self.prior[self.rarest]) if prevalence == "estimate" else None
        low, high = credible_range(class_counts[self.rarest].item(), class_counts.sum().item(), share)
        if low <= rate <= high:
            return None
        self.values["alarm"] = torch.tensor([float(step), rate, low, high])
        return alarm_text(self.values["alarm"].tolist())

    def _take(self, use: str) -> list[float]:
        sums = [float(self.values[f"{use}_{name}"]) for name in SUMS]
        self._clear(use)
        return sums

    def _clear(self, use: str) -> None:
        for name in SUMS:
            self.values[f"{use}_{name}"] = torch.zeros((), device=self.labelled.device)


def credible_range(rows: float, total: float, estimated: float | None) -> tuple[float, float]:
    """Where the share of a class in the targets may lie, given `rows` of `total` labelled rows of it.

    Jeffreys' 95% interval of that share, or the share that was `estimated`, widened by ALARM_FACTOR on both sides.
    """
    low, high = (
        beta.ppf([0.025, 0.975], rows + 0.5, total - rows + 0.5) if estimated is None else (estimated, estimated)
    )
    return float(low) / ALARM_FACTOR, min(1.0, float(high) * ALARM_FACTOR)


def alarm_text(alarm: Sequence[float]) -> str:
    """What a positive rate outside its range means, in the user's words; `alarm` is step, rate, low and high."""
    step, rate, low, high = alarm
    return (
        f"by step {step:.0f} {rate:.3f} of what the pool teaches is of the rarest class, where {low:.3f} to {high:.3f} "
        f"is credible: the teacher sees too {'much' if rate > high else 'little'} of it. Try semi.align: true, "
        "semi.targets: soft, or a longer training"
    )


def _summing_to_one(values: Tensor) -> np.ndarray:
    wide = values.cpu().double().numpy()
    normalised: np.ndarray = wide / wide.sum(axis=-1, keepdims=True)
    return normalised
