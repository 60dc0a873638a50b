"""Arms side by side: the equal-weight ensemble of each, and what arms gain over another one on the same images.

The gate compares arms with `supervised`, rounds of pseudo-labels compare students with their teachers.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from configs.schema import MetricsConfig
from ensembles.blending import blend_scores, fit_logits, score_columns
from ensembles.predictions import VOICES, members_of, numbered
from trainers.metrics import one_vs_rest_log_odds
from trainers.paired import Gain, TrainingErrors, paired_gains
from trainers.provenance import derive_seed
from trainers.retraining import FoldScores, training_errors
from trainers.table import ImageTable


def learns_from_pool(arm: str) -> bool:
    """Whether the networks of an arm took pool images for something of a class, and know them better than new ones.

    >>> [learns_from_pool(arm) for arm in ("supervised", "pretrained", "semi", "combined", "pseudo-1")]
    [False, False, True, True, True]
    """
    return arm in ("semi", "combined") or arm.startswith("pseudo-")


def ensemble_scores(predictions: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Scores of an arm's equal-weight ensemble on rows of a kind, by id: of the positive class, or of every class.

    `predictions` are those of the arm in the prediction table; higher scores are more of the class.
    """
    rows = predictions[predictions["kind"] == kind]
    blend = fit_logits(rows)
    scores = blend_scores(blend, rows)
    values = blend.class_scores(scores[score_columns(blend.num_outputs)].to_numpy(dtype=np.float64))
    return pd.DataFrame(values, index=scores["id"])


def gains_over(
    baseline: str,
    arms: Sequence[str],
    predictions: pd.DataFrame,
    *,
    table: ImageTable,
    metrics: MetricsConfig,
    keep_confidence: float = 0.9,
    seed: int,
) -> dict[str, Gain]:
    """The gain in out-of-fold AP (several classes: macro) of each arm's ensemble over that of the baseline.

    With the spread over other images and over training anew; `better` as in `trainers.paired.paired_gains`.
    """
    oof = {arm: ensemble_scores(members_of(predictions, arm), "oof") for arm in (baseline, *arms)}
    ids = oof[baseline].index
    rows = pd.Index(table.frame["id"]).get_indexer(ids)
    gains = paired_gains(
        table.targets[rows],
        [scores.loc[ids].to_numpy() for scores in oof.values()],
        groups=table.units[rows],
        replicates=metrics.replicates,
        confidence=metrics.confidence,
        keep_confidence=keep_confidence,
        training=[_training_errors(predictions, arm, baseline, table, seed) for arm in arms],
        rng=np.random.default_rng(derive_seed(seed, "gate")),
    )
    return dict(zip(arms, gains, strict=True))


def _training_errors(
    predictions: pd.DataFrame, arm: str, baseline: str, table: ImageTable, seed: int
) -> TrainingErrors:
    """How far other seeds of an arm's networks and of those of the baseline may move its gain.

    Voices are as they are whatever the seed, so each network is looked at beside them, with the weight of all networks.
    """
    columns = numbered(list(predictions.columns), "logit")
    of_oof = predictions[predictions["kind"] == "oof"]
    oof = of_oof[of_oof["arm"].isin([baseline, arm])]
    voices = {name: own.set_index("id")[columns] for name, own in of_oof[of_oof["arm"] == VOICES].groupby("model")}
    position = pd.Series(np.arange(len(table)), index=table.frame["id"])
    folds = []
    for _, of_fold in oof.groupby("fold", sort=True):
        ids = of_fold["id"].drop_duplicates().sort_values()
        rows = position.loc[ids].to_numpy()
        pairs = []
        beside = [_log_probabilities(own.loc[ids]) for own in voices.values()]
        num_models = of_fold["model"].nunique()
        for _, of_model in of_fold.groupby("model", sort=True):
            of_arm = {
                name: [*[_log_probabilities(own.set_index("id").loc[ids, columns])] * num_models, *beside]
                for name, own in of_model.groupby("arm")
            }
            pairs.append((_ranking_scores(of_arm[arm]), _ranking_scores(of_arm[baseline])))
        folds.append(FoldScores(table.targets[rows], pairs, groups=table.units[rows]))
    return training_errors(folds, rng=np.random.default_rng(derive_seed(seed, "retraining", arm)))


def _log_probabilities(frame: pd.DataFrame) -> np.ndarray:
    """What a mean is taken of, (rows, outputs): the logits of two classes, log-probabilities of several."""
    logits = frame.to_numpy(dtype=np.float64)
    return logits if logits.shape[1] == 1 else np.asarray(log_softmax(logits, axis=1))


def _ranking_scores(members: Sequence[np.ndarray]) -> np.ndarray:
    """Scores of the mean of members that rank rows within each output, (rows, outputs)."""
    mean = np.mean(members, axis=0)
    return mean if mean.shape[1] == 1 else one_vs_rest_log_odds(log_softmax(mean, axis=1))
