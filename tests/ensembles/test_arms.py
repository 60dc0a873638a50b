"""What an arm gains over another one: paired, of equal-weight ensembles, on the same rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from configs.schema import MetricsConfig
from ensembles.arms import _training_errors, ensemble_scores, gains_over
from ensembles.predictions import VOICES, members_of, read_predictions
from tests.ensembles.test_pseudo_labels import toy_table, write_scores
from trainers.metrics import average_precision
from trainers.paired import Gain, TrainingErrors, paired_gains
from trainers.provenance import derive_seed


@pytest.mark.parametrize("classes", [("no", "yes"), ("a", "b", "c")])
def test_a_gain_is_that_of_equal_weight_ensembles_on_the_same_rows(tmp_path: Path, classes: tuple[str, ...]) -> None:
    table, truth = toy_table(classes=classes)
    arms = {}
    for arm, signal in (("weak", 1.0), ("strong", 2.0)):
        write_scores(tmp_path / arm, table, truth, signal=signal)
        predictions = read_predictions(tmp_path / arm, table=table).assign(arm=arm)
        arms[arm] = predictions.sample(frac=1.0, random_state=1)  # the order of rows means nothing
    metrics = MetricsConfig(replicates=300)
    both = pd.concat(arms.values())
    gain = gains_over("weak", ["strong"], both, table=table, metrics=metrics, seed=3)["strong"].interval
    rows = table.rows("train")
    scorings = [_mean_scores(arms[arm], table.frame["id"].iloc[rows]) for arm in ("weak", "strong")]
    rng = np.random.default_rng(derive_seed(3, "gate"))
    expected = paired_gains(table.targets[rows], scorings, replicates=300, rng=rng)[0].interval
    if table.is_binary:
        aps = [average_precision(table.targets[rows], scoring[:, 0]) for scoring in scorings]
        assert gain.estimate == pytest.approx(aps[1] - aps[0])
    assert gain.estimate == pytest.approx(expected.estimate) and gain.low > 0
    assert gain.sd >= 0.9 * expected.sd  # and what training adds
    back = gains_over("strong", ["weak"], both, table=table, metrics=metrics, seed=3)["weak"].interval
    assert back.estimate == pytest.approx(-gain.estimate) and back.high < 0


@pytest.mark.parametrize("classes", [("no", "yes"), ("a", "b", "c")])
def test_voices_beside_the_networks_are_in_every_arm_and_are_not_trained_anew(
    tmp_path: Path, classes: tuple[str, ...]
) -> None:
    table, truth = toy_table(classes=classes)
    frames = []
    for arm, signal in (("weak", 1.0), ("strong", 2.0), (VOICES, 2.0)):
        write_scores(tmp_path / arm, table, truth, signal=signal)
        frames.append(read_predictions(tmp_path / arm, table=table).assign(arm=arm))
    frames[-1]["model"] = "voice " + frames[-1]["model"]
    columns = [name for name in frames[-1].columns if name.startswith("logit")]
    settings: dict[str, Any] = {"metrics": MetricsConfig(replicates=300), "seed": 3}

    def gain(*parts: pd.DataFrame) -> Gain:
        return gains_over("weak", ["strong"], pd.concat(parts), table=table, **settings)["strong"]

    alone, beside = gain(*frames[:2]), gain(*frames)
    drowned = gain(*frames[:2], frames[2].assign(**{name: 1e3 * frames[2][name] for name in columns}))
    assert 0 < beside.interval.estimate < alone.interval.estimate
    assert drowned.interval.estimate == pytest.approx(0, abs=0.02) and drowned.interval.sd < alone.interval.sd / 2
    errors = [_training_errors(pd.concat(parts), "strong", "weak", table, 3) for parts in (frames[:2], frames)]
    assert errors[1].sds.size and _mean_sd(errors[1]) < _mean_sd(errors[0])
    scores = ensemble_scores(members_of(pd.concat(frames), "weak"), "oof")
    expected = _mean_scores(pd.concat([frames[0], frames[2]]), scores.index.to_series())
    np.testing.assert_allclose(scores.to_numpy(), expected)


def _mean_sd(errors: TrainingErrors) -> float:
    return float(errors.sds @ errors.weights)


def _mean_scores(predictions: pd.DataFrame, ids: pd.Series) -> np.ndarray:
    """Mean logits of the models, or the log-odds of each class by their mean log-softmax."""
    oof = predictions[predictions["kind"] == "oof"]
    columns = [column for column in oof.columns if column.startswith("logit")]
    values = oof[columns].to_numpy()
    if len(columns) > 1:
        values = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    means = pd.DataFrame(values, index=oof["id"].to_numpy()).groupby(level=0).mean().loc[ids].to_numpy()
    if len(columns) == 1:
        return means
    shares = np.exp(means) / np.exp(means).sum(axis=1, keepdims=True)
    return np.log(shares) - np.log1p(-shares)
