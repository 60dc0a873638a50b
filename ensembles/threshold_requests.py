"""Requests for a threshold that the counts of a table show to be impossible, or without effect, before training."""

from configs.ensembling import CalibrationConfig, EnsembleConfig
from configs.errors import InputError
from configs.schema import GuaranteeConfig
from configs.thresholds import ThresholdConfig
from ensembles.threshold_words import precision_goal
from trainers.guarantee import PositiveUnits, highest_recall, positive_units, positives_needed
from trainers.table import ImageTable


def check_probabilities(
    config: ThresholdConfig, calibration: CalibrationConfig, ensemble: EnsembleConfig, table: ImageTable
) -> None:
    """Raise InputError for probabilities that cannot be had, or that a threshold by cost cannot be taken from."""
    if calibration.method == "beta" and not table.is_binary:
        raise InputError(
            f"calibration.method: beta is for two classes, here are {len(table.classes)}; use logistic or temperature"
        )
    if config.rule == "cost" and (refusal := cost_refusal(calibration, ensemble)):
        raise InputError(refusal)


def check_request(
    config: ThresholdConfig, guarantee: GuaranteeConfig, table: ImageTable, *, pool_is_scored: bool
) -> list[str]:
    """Warnings about a threshold that will be asked for, from the counts of a table whose folds are assigned.

    Raises InputError for one that is impossible, before hours of training.
    """
    if config.rule == "recall":
        warnings = []
    elif not table.is_binary:
        raise InputError(classes_refusal(config, len(table.classes)))
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


def classes_refusal(config: ThresholdConfig, num_classes: int) -> str:
    """What is wrong with a rule for two classes where there are more."""
    return (
        f"threshold.rule {config.rule} is for two classes, here are {num_classes}; remove it, or set "
        "data.positive_label if one class is to be found"
    )


def precision_refusal(config: ThresholdConfig, guarantee: GuaranteeConfig, units: PositiveUnits) -> str | None:
    """Why the floor cannot be shown with so many positives, and what could be; None when it can."""
    assert config.precision is not None
    needed, most = precision_needs(config, guarantee, units)
    if most >= needed:
        return None
    lower = highest_recall(most, confidence=guarantee.confidence)
    return (
        f"threshold.precision: to show {precision_goal(config.precision, guarantee.confidence)}, at least {needed} "
        f"flagged {units.noun} without a false alarm are needed, and {most} can judge it; label more, or set "
        f"threshold.precision to at most {lower:g}"
    )


def precision_warning(config: ThresholdConfig, guarantee: GuaranteeConfig, units: PositiveUnits) -> str | None:
    """That the positives held out are too few to certify the floor; None when they are not, or none is held out."""
    assert config.precision is not None
    needed, _ = precision_needs(config, guarantee, units)
    if not 0 < units.held_out < needed:
        return None
    return (
        "the precision will be an estimate out of fold, not a guarantee: to show "
        f"{precision_goal(config.precision, guarantee.confidence)}, at least {needed} flagged {units.noun} without a "
        f"false alarm must be among those held out, and {units.held_out} are there; raise guarantee.holdout or lower "
        "threshold.precision"
    )


def precision_needs(config: ThresholdConfig, guarantee: GuaranteeConfig, units: PositiveUnits) -> tuple[int, int]:
    """How many positives the floor takes, and how many can judge it: those held out, or all others."""
    assert config.precision is not None
    needed = positives_needed(recall=config.precision, confidence=guarantee.confidence)
    return needed, max(units.labelled - units.held_out, units.held_out)


def budget_refusal(config: ThresholdConfig, *, num_images: int, pool_is_scored: bool) -> str | None:
    """Why there is nothing to review; None where there is. `num_images` are those of the split `review`."""
    if not num_images:
        return (
            f"threshold.review {config.review}: there are no {config.review} images to review; set data.{config.review}"
            f", or threshold.review to {'pool' if config.review == 'test' else 'test'}"
        )
    if config.review == "pool" and not pool_is_scored:
        return "threshold.review pool: the pool is not scored; set predict.pool to true"
    return None


def budget_warning(config: ThresholdConfig, *, num_images: int) -> str | None:
    """That the budget is enough for all images; None where it is not."""
    assert config.max_reviewed is not None
    if config.max_reviewed < num_images:
        return None
    return (
        f"threshold.max_reviewed {config.max_reviewed}: there are but {num_images} {config.review} images, so all of "
        "them will be flagged; lower it"
    )


def cost_refusal(calibration: CalibrationConfig, ensemble: EnsembleConfig) -> str | None:
    """Why there are no probabilities to weigh costs by; None where there are."""
    if calibration.method != "none" or ensemble.method != "ranks":
        return None
    return (
        "threshold.rule cost takes probabilities, and with ensemble.method: ranks and calibration.method: none "
        "there are but ranks; set calibration.method to logistic"
    )


def _check_precision(config: ThresholdConfig, guarantee: GuaranteeConfig, table: ImageTable) -> list[str]:
    units = positive_units(table, holdout=guarantee.holdout)
    if refusal := precision_refusal(config, guarantee, units):
        raise InputError(refusal)
    warning = precision_warning(config, guarantee, units)
    return [] if warning is None else [warning]


def _check_budget(config: ThresholdConfig, table: ImageTable, *, pool_is_scored: bool) -> list[str]:
    num_images = len(table.rows(config.review))
    if refusal := budget_refusal(config, num_images=num_images, pool_is_scored=pool_is_scored):
        raise InputError(refusal)
    warning = budget_warning(config, num_images=num_images)
    return [] if warning is None else [warning]
