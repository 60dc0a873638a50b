"""What is odd about the scores of an ensemble, told to its user: scales of folds, better members, probabilities."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from configs.schema import MetricsConfig
from ensembles.arms import learns_from_pool
from ensembles.blending import score_columns
from ensembles.calibrated_scores import MIN_POOL_IMAGES, SCALE_RANGE, EnsembleCalibration
from ensembles.calibration_figures import extra_loss
from ensembles.ensemble import StoredEnsemble
from ensembles.known_rows import KnownRows
from ensembles.predictions import VOICES
from trainers import metrics as metric
from trainers.paired import paired_difference
from trainers.provenance import derive_seed
from trainers.resampling import Interval

MIN_SCALE_GAIN = 0.01  # AP that ranking every fold by itself must gain before the folds' scales are worth a warning

MIN_EXTRA_LOSS = 0.1  # of the other log-loss: fitting a map to few labels costs some where nothing was to be mended
STANDARD_ERRORS = 2.0  # that a mean loss must be above another one to be called higher


def score_warnings(
    stored: StoredEnsemble,
    scorings: Mapping[tuple[str, str], Any],
    known: KnownRows,
    metrics: MetricsConfig,
    *,
    seed: int,
) -> list[str]:
    """All lines there are, from the out-of-fold rows; `scorings` are the models' own (`evaluation.model_scorings`)."""
    watch = _Watch(known, metrics, seed)
    return [
        *watch.scale_warnings(stored),
        *watch.member_warnings(stored, scorings),
        *calibration_warnings(stored.calibration),
        *watch.probability_warnings(stored),
    ]


class _Watch:
    def __init__(self, known: KnownRows, metrics: MetricsConfig, seed: int) -> None:
        self.known, self.table, self.metrics, self.seed = known, known.table, metrics, seed

    def scale_warnings(self, stored: StoredEnsemble) -> list[str]:
        """A line when the fold models' scores are on different scales, which hurts only rows of different folds."""
        if not self.table.is_binary or stored.blend.method != "logits":
            return []
        rows, targets = self.known.of("oof", stored.scores)
        ranks = rows.groupby(rows["fold"].to_numpy(dtype=np.int64))["score"].rank(pct=True).to_numpy()
        gain = self._gain(rows, targets, ranks, confidence=self.metrics.confidence, stream="scales")
        if not (gain.low > 0 and gain.estimate > MIN_SCALE_GAIN):  # false for nan, too
            return []
        of_ranks = metric.average_precision(targets, ranks)
        return [
            f"the fold models' scores are on different scales: the out-of-fold AP is {of_ranks - gain.estimate:.3f}, "
            f"and {of_ranks:.3f} when the images are ranked within their folds; the pooled figure understates the "
            "ensemble, and no one threshold fits all folds; ensemble.method: ranks removes the difference"
        ]

    def member_warnings(self, stored: StoredEnsemble, scorings: Mapping[tuple[str, str], Any]) -> list[str]:
        """A line for each model of the arm whose out-of-fold AP is above that of the ensemble, beyond chance.

        A tuned blend of two models leaves the others out; that one of these is better is worth a line, too.
        """
        members = [(model, scoring) for (model, arm), scoring in scorings.items() if arm in (stored.arm, VOICES)]
        if not self.table.is_binary or len(members) == 1:
            return []
        rows, targets = self.known.of("oof", stored.scores)
        # of several models the best is looked at
        confidence = 1.0 - (1.0 - self.metrics.confidence) / len(members)
        warnings = []
        for model, scoring in members:
            columns = score_columns(scoring["blend"].num_outputs)
            own = self.known.of("oof", scoring["scores"])[0].set_index("id").loc[rows["id"]]
            values = scoring["blend"].class_scores(own[columns].to_numpy(dtype=np.float64))[:, 0]
            gain = self._gain(rows, targets, values, confidence=confidence, stream="members")
            if gain.low > 0:
                is_in = model in stored.blend.weights
                which = "" if is_in else ", which leaves it out"
                remedy = (
                    "look at the training of the others, or leave them out of `models` or ensemble.voices"
                    if is_in
                    else "set ensemble.tune: false, or leave others out of `models` or ensemble.voices"
                )
                warnings.append(
                    f"{model} alone ranks better than the ensemble{which}: its out-of-fold AP is higher by "
                    f"{gain.estimate:.3f} [{gain.low:.3f}, {gain.high:.3f}] on the same images ({100 * confidence:.3g}"
                    f"% interval: the best of {len(members)} is looked at); {remedy}"
                )
        return warnings

    def probability_warnings(self, stored: StoredEnsemble) -> list[str]:
        """A line when calibrating has made out-of-fold probabilities worse, beyond chance, or worse than a guess."""
        if stored.calibration.deployed is None:
            return []
        rows, targets = self.known.of("oof", stored.scores)
        outputs = stored.blend.num_outputs
        plain = stored.blend.probabilities(rows[score_columns(outputs)].to_numpy(dtype=np.float64))
        shares = np.bincount(targets, minlength=len(self.table.classes)) / len(targets)
        references = {"the shares of the classes, given to every image": np.tile(shares, (len(targets), 1))}
        if not stored.blend.knows_labels:  # which are better on the very images
            references = {"those of the scores as they are": _of_all_classes(plain), **references}
        calibrated = _of_all_classes(rows[score_columns(outputs, "probability")].to_numpy(dtype=np.float64))
        worse = []
        for name, reference in references.items():
            extra, error, loss = extra_loss(targets, calibrated, reference, groups=self.known.units(rows))
            if extra > max(MIN_EXTRA_LOSS * loss, STANDARD_ERRORS * error):
                worse.append(f"{name} (log-loss {loss + extra:.3f} instead of {loss:.3f})")
        if not worse:
            return []
        blend = stored.blend
        remedies = ["ensemble.method: ranks"] if self.table.is_binary and blend.method != "ranks" else []
        known = stored.calibration.levels is not None or learns_from_pool(stored.arm)  # or cannot be
        if not known and len(self.table.rows("pool")) >= MIN_POOL_IMAGES:
            remedies.append("a pool that is scored (predict.pool)")
        advice = [f"{' and '.join(remedies)} can bring fold models together"] if remedies else []
        return [
            f"the calibrated probabilities are worse out of fold than {' and than '.join(worse)}: the fold models' "
            "scores do not mean the same, or the labels are too few; rely on the order alone, not on probabilities"
            f"{' or on the threshold of a cost' if self.table.is_binary else ''}; "
            f"{', '.join([*advice, 'calibration.method: none leaves the scores as they are'])}"
        ]

    def _gain(
        self, rows: pd.DataFrame, targets: np.ndarray, values: np.ndarray, *, confidence: float, stream: str
    ) -> Interval:
        """AP that other values give the rows, less that of their scores."""
        return paired_difference(
            targets,
            values,
            rows["score"].to_numpy(),
            groups=self.known.units(rows),
            replicates=self.metrics.replicates,
            confidence=confidence,
            rng=np.random.default_rng(derive_seed(self.seed, stream)),
        )


def calibration_warnings(calibration: EnsembleCalibration) -> list[str]:
    """A line when probabilities are not calibrated as asked for, one when those of new images may be far off."""
    warnings = []
    if calibration.instead_of is not None:
        done = "the probabilities are not calibrated" if calibration.deployed is None else "another method is used"
        warnings.append(f"calibration.method {calibration.instead_of}: {done}: {calibration.reason}")
    if calibration.spread is not None and calibration.spread.scale in SCALE_RANGE:
        warnings.append(
            "the probabilities of new images may be far off: how much the mean of the fold models differs from each of "
            f"them on the pool is beyond what can be mended (a factor of {calibration.spread.scale:g}, at its limit)"
        )
    return warnings


def _of_all_classes(probabilities: np.ndarray) -> np.ndarray:
    """(rows, classes) from (rows, outputs)."""
    return np.hstack([1.0 - probabilities, probabilities]) if probabilities.shape[1] == 1 else probabilities
