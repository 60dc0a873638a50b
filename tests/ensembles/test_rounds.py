"""When rounds of pseudo-labels end, and what a round gained."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from configs.schema import MetricsConfig
from ensembles.predictions import read_predictions
from ensembles.rounds import gain_in_words, gain_over_teacher, too_imprecise, without_gain
from tests.ensembles.test_pseudo_labels import toy_table, write_scores
from trainers.metrics import average_precision
from trainers.paired import paired_gains
from trainers.provenance import derive_seed

ABOVE, AROUND, BELOW, UNKNOWN = [0.1, 0.05, 0.15], [0.01, -0.05, 0.07], [-0.1, -0.2, -0.01], [None, None, None]


@pytest.mark.parametrize(
    ("gains", "stops"),
    [
        ([], False),
        ([ABOVE, ABOVE, ABOVE], False),
        ([AROUND], False),
        ([ABOVE, AROUND, ABOVE], False),
        ([AROUND, ABOVE, AROUND], True),  # twice, not twice in a row
        ([BELOW, BELOW], True),
        ([AROUND, UNKNOWN], True),
        ([ABOVE, BELOW], False),
        ([[0.1, 0.0, 0.2], AROUND], True),  # an end at zero includes it
    ],
)
def test_rounds_stop_at_the_second_gain_that_is_not_above_zero(gains: list, stops: bool) -> None:
    named = {f"pseudo-{number}": gain for number, gain in enumerate(gains, 1)}
    why = without_gain(named)
    assert (why is not None) == stops
    if why is not None:
        without = [arm for arm, gain in named.items() if gain != ABOVE]
        assert all(arm in why and gain_in_words(named[arm]) in why for arm in without) and "+0.100 [+0.050" not in why


def test_the_positive_class_of_two_counts_and_the_worst_of_more() -> None:
    both = {"no": [0.2, 0.1, 0.3], "yes": [0.6, 0.4, 0.8]}
    assert too_imprecise(both, classes=["no", "yes"], floor=0.5) is None
    why = too_imprecise(both, classes=["no", "yes"], floor=0.61)
    assert why is not None and "'yes' an estimated 60.0% [40.0%, 80.0%] are right" in why and "61.0%" in why
    assert too_imprecise(both, classes=["no", "yes"], floor=0.6) is None, "the estimate counts, not its interval"
    three = {"a": [0.9, 0.8, 1.0], "b": [0.4, 0.3, 0.5], "c": [0.45, 0.3, 0.6]}
    why = too_imprecise(three, classes=list("abc"), floor=0.5)
    assert why is not None and "'b'" in why
    unknown = {**three, "b": [None, None, None]}
    why = too_imprecise(unknown, classes=list("abc"), floor=0.5)
    assert why is not None and "'c'" in why
    assert too_imprecise({"no": [0.1, 0.0, 0.2], "yes": [None] * 3}, classes=["no", "yes"], floor=1.0) is None


@pytest.mark.parametrize("classes", [("no", "yes"), ("a", "b", "c")])
def test_a_gain_is_that_of_equal_weight_ensembles_on_the_same_rows(tmp_path: Path, classes: tuple[str, ...]) -> None:
    table, truth = toy_table(classes=classes)
    arms = {}
    for arm, signal in (("weak", 1.0), ("strong", 2.0)):
        write_scores(tmp_path / arm, table, truth, signal=signal)
        predictions = read_predictions(tmp_path / arm, table=table)
        arms[arm] = predictions.sample(frac=1.0, random_state=1)  # the order of rows means nothing
    metrics = MetricsConfig(replicates=300)
    gain = gain_over_teacher(arms["strong"], arms["weak"], table=table, metrics=metrics, seed=3)
    rows = table.rows("train")
    scorings = [_mean_scores(arms[arm], table.frame["id"].iloc[rows]) for arm in ("weak", "strong")]
    rng = np.random.default_rng(derive_seed(3, "round"))
    expected = paired_gains(table.targets[rows], scorings, replicates=300, rng=rng)[0].interval
    if table.is_binary:
        aps = [average_precision(table.targets[rows], scoring[:, 0]) for scoring in scorings]
        assert gain.estimate == pytest.approx(aps[1] - aps[0])
    assert gain.estimate == pytest.approx(expected.estimate) and gain.low > 0
    assert gain.sd == pytest.approx(expected.sd, rel=0.2)
    back = gain_over_teacher(arms["weak"], arms["strong"], table=table, metrics=metrics, seed=3)
    assert back.estimate == pytest.approx(-gain.estimate) and back.high < 0


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
