"""Requests for a threshold that the counts of a table show to be impossible, or without effect, before training."""

from configs.ensembling import CalibrationConfig, EnsembleConfig
from configs.errors import InputError
from configs.schema import GuaranteeConfig
from configs.thresholds import ThresholdConfig
from ensembles.threshold_words import precision_goal
from trainers.guarantee import highest_recall, positive_units, positives_needed
from trainers.table import ImageTable


def check_probabilities(
    config: ThresholdConfig, calibration: CalibrationConfig, ensemble: EnsembleConfig, table: ImageTable
) -> None:
    """Raise InputError for probabilities that cannot be had, or that a threshold by cost cannot be taken from."""
    if calibration.method == "beta" and not table.is_binary:
        raise InputError(
            f"calibration.method: beta is for two classes, here are {len(table.classes)}; use logistic or temperature"
        )
    if config.rule == "cost" and calibration.method == "none" and ensemble.method == "ranks":
        raise InputError(
            "threshold.rule cost takes probabilities, and with ensemble.method: ranks and calibration.method: none "
            "there are but ranks; set calibration.method to logistic"
        )


def check_request(
    config: ThresholdConfig, guarantee: GuaranteeConfig, table: ImageTable, *, pool_is_scored: bool
) -> list[str]:
    """Warnings about a threshold that will be asked for, from the counts of a table whose folds are assigned.

    Raises InputError for one that is impossible, before hours of training.
    """
    if config.rule == "recall":
        warnings = []
    elif not table.is_binary:
        raise InputError(
            f"threshold.rule {config.rule} is for two classes, here are {len(table.classes)}; remove it, or set "
            "data.positive_label if one class is to be found"
        )
    elif config.rule == "precision":
        warnings = _check_precision(config, guarantee, table)
    elif config.rule == "budget":
        warnings = _check_budget(config, table, pool_is_scored=pool_is_scored)
    else:
        warnings = []
    if config.unused:
        names = ", ".join(f"threshold.{name}" for name in config.unused)
        warnings.append(f"{names}: no effect with threshold.rule {config.rule}")
    return warnings


def _check_precision(config: ThresholdConfig, guarantee: GuaranteeConfig, table: ImageTable) -> list[str]:
    assert config.precision is not None
    units = positive_units(table, holdout=guarantee.holdout)
    needed = positives_needed(recall=config.precision, confidence=guarantee.confidence)
    most = max(units.labelled - units.held_out, units.held_out)
    goal = precision_goal(config.precision, guarantee.confidence)
    if most < needed:
        lower = highest_recall(most, confidence=guarantee.confidence)
        raise InputError(
            f"threshold.precision: to show {goal}, at least {needed} flagged {units.noun} without a false alarm are "
            f"needed, and {most} can judge it; label more, or set threshold.precision to at most {lower:g}"
        )
    if units.held_out and units.held_out < needed:
        return [
            f"the precision will be an estimate out of fold, not a guarantee: to show {goal}, at least {needed} "
            f"flagged {units.noun} without a false alarm must be among those held out, and {units.held_out} are there; "
            "raise guarantee.holdout or lower threshold.precision"
        ]
    return []


def _check_budget(config: ThresholdConfig, table: ImageTable, *, pool_is_scored: bool) -> list[str]:
    assert config.max_reviewed is not None
    number = len(table.rows(config.review))
    if not number:
        raise InputError(
            f"threshold.review {config.review}: there are no {config.review} images to review; set data.{config.review}"
            f", or threshold.review to {'pool' if config.review == 'test' else 'test'}"
        )
    if config.review == "pool" and not pool_is_scored:
        raise InputError("threshold.review pool: the pool is not scored; set predict.pool to true")
    if config.max_reviewed >= number:
        return [
            f"threshold.max_reviewed {config.max_reviewed}: there are but {number} {config.review} images, so all of "
            "them will be flagged; lower it"
        ]
    return []
