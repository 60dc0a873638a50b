"""What a student is taught: by whom, of which images, at which class shares, and never from its own fold's labels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from configs.errors import InputError
from configs.pool import PseudoConfig
from ensembles.predictions import read_predictions, write_predictions
from ensembles.pseudo_labels import (
    LEDGER_COLUMNS,
    SELECTIONS,
    Ledger,
    NothingToTeach,
    make_ledger,
    pool_targets,
)
from trainers.table import ImageTable

NUM_TRAIN, NUM_POOL = 600, 2000


def toy_table(*, classes: tuple[str, ...] = ("no", "yes"), seed: int = 0) -> tuple[ImageTable, np.ndarray]:
    """A table whose pool has twice the share of positives of its labels (10% and 20%); the truth of every row."""
    rng = np.random.default_rng(seed)
    if len(classes) == 2:
        truth = np.concatenate([np.arange(NUM_TRAIN) % 10 == 0, np.arange(NUM_POOL) % 5 == 0]).astype(np.int64)
    else:
        truth = np.concatenate([np.arange(NUM_TRAIN) % 3, rng.choice(3, NUM_POOL, p=[0.6, 0.3, 0.1])])
    ids = [f"image-{row:05d}" for row in range(len(truth))]
    labels = [classes[target] for target in truth[:NUM_TRAIN]] + [None] * NUM_POOL
    frame = pd.DataFrame({"id": ids, "path": ids, "label": labels})
    frame["split"] = ["train"] * NUM_TRAIN + ["pool"] * NUM_POOL
    folds = pd.array([row // 10 % 3 if row < NUM_TRAIN else None for row in range(len(ids))], dtype="Int64")
    hashes = [f"{number:06d}" for number in rng.permutation(len(ids))]
    frame = frame.assign(group=None, fold=folds, sha256=hashes, width=8, height=8)
    return ImageTable(frame, list(classes), classes[1] if len(classes) == 2 else None), truth


def write_scores(folder: Path, table: ImageTable, truth: np.ndarray, *, signal: float = 4.0) -> None:
    """Two models of each fold: calibrated at the labels' class shares, if `signal` and noise are as they are drawn."""
    rng = np.random.default_rng(7)
    shares = np.bincount(truth[:NUM_TRAIN]) / NUM_TRAIN
    for model in ("a", "b"):
        for fold in range(3):
            rows = np.concatenate([table.rows("train", fold=fold), table.rows("pool")])
            noise = rng.normal(size=(len(rows), table.num_outputs))
            if table.is_binary:  # x ~ N(+-m, 1): its log-odds are 2 m x
                m = signal / 2
                x = noise + m * (2 * truth[rows] - 1)[:, None]
                logits = 2 * m * x + logit(shares[1])
            else:
                logits = signal * np.eye(3)[truth[rows]] + noise + np.log(shares)
            path = folder / "supervised" / model / f"fold{fold}.parquet"
            write_predictions(path, table=table, rows=rows, logits=logits, arm="supervised", model=model, fold=fold)


def make(folder: Path, table: ImageTable, **settings: Any) -> Ledger:
    predictions = read_predictions(folder, table=table)
    return make_ledger(predictions, table=table, teacher="supervised", config=PseudoConfig(**settings), seed=0)


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImageTable, np.ndarray]:
    folder = tmp_path_factory.mktemp("binary")
    table, truth = toy_table()
    write_scores(folder, table, truth, signal=2.5)
    return folder, table, truth


def test_soft_targets_are_the_teachers_mean_at_the_pools_prevalence(
    binary: tuple[Path, ImageTable, np.ndarray],
) -> None:
    folder, table, _ = binary
    ledger = make(folder, table)
    assert tuple(ledger.frame.columns) == LEDGER_COLUMNS
    assert len(ledger.frame) == 3 * NUM_POOL and not ledger.frame.duplicated(["id", "student_fold"]).any()
    predictions = read_predictions(folder, table=table)
    pool = predictions[predictions["kind"] == "pool"]
    for fold in range(3):
        prior = ledger.priors[fold][1]
        labelled = table.targets[table.rows("train", not_fold=fold)].mean()
        means = pool[pool["fold"] == fold].groupby("id")["logit"].mean()
        expected = expit(means - logit(labelled) + logit(prior))
        own = ledger.frame[ledger.frame["student_fold"] == fold].set_index("id")["target"]
        np.testing.assert_allclose(own.loc[expected.index], expected, rtol=1e-9)


def test_the_pools_prevalence_is_estimated_or_taken_from_the_labels(
    binary: tuple[Path, ImageTable, np.ndarray],
) -> None:
    folder, table, _ = binary
    # The mean of two models' logits of independent views is too unsure, which draws the estimate a little.
    estimated = [prior[1] for prior in make(folder, table, prevalence="estimate").priors.values()]
    assert all(0.16 < prior < 0.24 for prior in estimated)
    labelled = [prior[1] for prior in make(folder, table).priors.values()]
    assert labelled == pytest.approx([0.1] * 3)


def test_scores_that_are_no_probabilities_do_not_estimate_a_prevalence(tmp_path: Path) -> None:
    """Logits drawn together, as a focal loss draws them, say that the pool has no positives at all."""
    table, truth = toy_table()
    write_scores(tmp_path, table, truth, signal=2.5)
    predictions = read_predictions(tmp_path, table=table)
    predictions["logit"] *= 0.3
    for select in ("soft", "threshold"):
        with pytest.raises(InputError, match=r"pseudo.prevalence estimate: .*set pseudo.prevalence to labelled"):
            config = PseudoConfig(select=select, prevalence="estimate")
            make_ledger(predictions, table=table, teacher="supervised", config=config, seed=0)


def test_no_label_of_its_own_fold_reaches_a_student(binary: tuple[Path, ImageTable, np.ndarray]) -> None:
    """Every label of fold 1 the other way round: the student of fold 1 is taught the very same, the others are not."""
    folder, table, _ = binary
    frame = table.frame.copy()
    own = (frame["fold"] == 1).fillna(False).to_numpy(dtype=bool)
    frame.loc[own, "label"] = np.where(frame.loc[own, "label"] == "yes", "no", "yes")
    flipped = replace(table, frame=frame)
    predictions = read_predictions(folder, table=table).drop(columns="target")
    for select in SELECTIONS:
        config = PseudoConfig(select=select, prevalence="estimate", threshold=0.8)
        ledgers = [
            make_ledger(predictions, table=each, teacher="supervised", config=config, seed=0).frame
            for each in (table, flipped)
        ]
        parts = [[ledger[ledger["student_fold"] == fold] for ledger in ledgers] for fold in range(3)]
        pd.testing.assert_frame_equal(*(part.reset_index(drop=True) for part in parts[1]), check_exact=True)
        # the control: other folds' class shares did change, and with them what their students are taught
        changed = [not np.array_equal(*(part["target"].to_numpy() for part in parts[fold])) for fold in (0, 2)]
        assert all(changed) or select in ("quota", "agreement")


def test_confident_images_are_taught_as_labels_and_the_precision_is_told(
    binary: tuple[Path, ImageTable, np.ndarray],
) -> None:
    folder, table, truth = binary
    positions = pd.Series(np.arange(len(table)), index=table.frame["id"])
    for select in ("threshold", "quota", "agreement"):
        ledger = make(folder, table, select=select, threshold=0.9, quota=0.7, prevalence="estimate")
        frame = ledger.frame
        assert set(frame["target"]) == {0.0, 1.0} and len(frame) < 3 * NUM_POOL
        right = truth[positions.loc[frame["id"]].to_numpy()] == frame["target"]
        for number, name in enumerate(table.classes):
            real = right[frame["target"] == number].mean()
            told = ledger.precision[name]
            assert told.low - 0.03 <= real <= told.high + 0.03, (select, name, real, told)
            assert told.low <= told.share <= told.high
    assert set(make(folder, table, select="threshold", threshold=0.9).frame["reason"]) == {"threshold 0.9"}


def test_a_quota_takes_the_most_certain_of_each_class(binary: tuple[Path, ImageTable, np.ndarray]) -> None:
    folder, table, _ = binary
    soft, hard = make(folder, table), make(folder, table, select="quota", quota=0.5)
    for fold in range(3):
        own = hard.frame[hard.frame["student_fold"] == fold]
        probability = soft.frame[soft.frame["student_fold"] == fold].set_index("id")["target"]
        positives = own.loc[own["target"] == 1, "id"]
        assert len(positives) == round(0.5 * hard.priors[fold][1] * NUM_POOL)
        assert probability.loc[positives].min() >= probability.drop(positives).max()
        assert (own["target"] == 0).sum() == round(0.5 * hard.priors[fold][0] * NUM_POOL)


def test_agreement_leaves_out_what_the_models_do_not_agree_on(binary: tuple[Path, ImageTable, np.ndarray]) -> None:
    folder, table, _ = binary
    ledger = make(folder, table, select="agreement", prevalence="labelled")
    predictions = read_predictions(folder, table=table)
    pool = predictions[(predictions["kind"] == "pool") & (predictions["fold"] == 2)]
    signs = pool.assign(says=pool["logit"] > 0).groupby("id")["says"].agg(["min", "max"])
    agreed = signs[signs["min"] == signs["max"]]["min"].astype(float)
    own = ledger.frame[ledger.frame["student_fold"] == 2].set_index("id")["target"]
    assert set(own.index) == set(agreed.index)
    assert (own.loc[agreed.index] == agreed).all()


@pytest.mark.parametrize("select", list(SELECTIONS))
def test_several_classes(tmp_path: Path, select: str) -> None:
    table, truth = toy_table(classes=("a", "b", "c"))
    write_scores(tmp_path, table, truth, signal=5.0)
    ledger = make(tmp_path, table, select=select, prevalence="estimate")
    targets = ledger.frame[["target_0", "target_1", "target_2"]].to_numpy()
    np.testing.assert_allclose(targets.sum(axis=1), 1.0)
    positions = pd.Series(np.arange(len(table)), index=table.frame["id"]).loc[ledger.frame["id"]].to_numpy()
    assert (targets.argmax(axis=1) == truth[positions]).mean() > 0.93
    np.testing.assert_allclose(ledger.priors[0], [0.6, 0.3, 0.1], atol=0.05)
    assert set(ledger.precision) == {"a", "b", "c"}
    rows, taught, weights = pool_targets(ledger.frame, 1, table)
    assert taught.shape == (len(rows), 3) and taught.dtype == weights.dtype == np.float32


def test_what_training_takes_is_in_the_order_of_the_images_content(
    binary: tuple[Path, ImageTable, np.ndarray],
) -> None:
    folder, table, _ = binary
    ledger = make(folder, table).frame
    rows, targets, weights = pool_targets(ledger.sample(frac=1.0, random_state=0), 0, table)
    hashes = table.frame["sha256"].to_numpy()[rows]
    assert list(hashes) == sorted(hashes) and (weights == 1).all()
    expected = ledger[ledger["student_fold"] == 0].set_index("id")["target"].loc[table.frame["id"].to_numpy()[rows]]
    np.testing.assert_allclose(targets, expected, rtol=1e-6)


def test_what_cannot_be_taught_is_told(binary: tuple[Path, ImageTable, np.ndarray]) -> None:
    folder, table, _ = binary
    message = r"pseudo.select threshold: no image .* student of fold {fold}; lower pseudo.threshold"
    with pytest.raises(InputError, match=message.format(fold=0)):
        make(folder, table, select="threshold", threshold=1 - 1e-15)
    unsure = read_predictions(folder, table=table)
    unsure.loc[unsure["fold"] == 2, "logit"] *= 1e-3  # the teachers of one fold alone
    with pytest.raises(InputError, match=message.format(fold=2)):
        make_ledger(unsure, table=table, teacher="supervised", config=PseudoConfig(select="threshold"), seed=0)
    predictions = read_predictions(folder, table=table)
    without = predictions[predictions["kind"] != "pool"]
    with pytest.raises(InputError, match="arm 'supervised' has no scores of the pool for fold 0"):
        make_ledger(without, table=table, teacher="supervised", config=PseudoConfig(), seed=0)


def test_in_co_training_a_student_learns_from_the_others_alone(binary: tuple[Path, ImageTable, np.ndarray]) -> None:
    folder, table, _ = binary
    predictions = read_predictions(folder, table=table)
    config = PseudoConfig(prevalence="estimate")

    def taught(scores: pd.DataFrame) -> Ledger:
        return make_ledger(scores, table=table, teacher="supervised", models=["b"], config=config, seed=0)

    def changed(model: str) -> pd.DataFrame:
        return predictions.assign(logit=predictions["logit"] + 0.1 * (predictions["model"] == model))

    ledger, by_a, by_b = (taught(scores) for scores in (predictions, changed("a"), changed("b")))
    pd.testing.assert_frame_equal(ledger.frame, by_a.frame, check_exact=True)
    assert ledger.precision == by_a.precision
    assert (ledger.frame["target"] < by_b.frame["target"]).all()
    assert set(ledger.frame["teacher"]) == {"supervised/b"}
    own = predictions[(predictions["model"] == "b") & (predictions["kind"] == "pool") & (predictions["fold"] == 0)]
    labelled = table.targets[table.rows("train", not_fold=0)].mean()
    expected = expit(own.set_index("id")["logit"] - logit(labelled) + logit(ledger.priors[0][1]))
    targets = ledger.frame[ledger.frame["student_fold"] == 0].set_index("id")["target"]
    np.testing.assert_allclose(targets.loc[expected.index], expected, rtol=1e-9)


def bent(folder: Path, table: ImageTable, truth: np.ndarray) -> pd.DataFrame:
    """Predictions with all evidence drawn together, and rows of kind `inner`: every third one outside each fold.

    Of two classes the whole logit is, which a logistic mends; of three what is added to the log of the class shares.
    """
    predictions = read_predictions(folder, table=table)
    rng = np.random.default_rng(11)
    shares = np.bincount(truth[:NUM_TRAIN]) / NUM_TRAIN
    parts = [predictions]
    for (model, fold), _ in predictions.groupby(["model", "fold"]):
        rows = table.rows("train", not_fold=fold)[::3]
        part = pd.DataFrame({"id": table.frame["id"].to_numpy()[rows], "kind": "inner", "model": model, "fold": fold})
        noise = rng.normal(size=(len(rows), table.num_outputs))
        if table.is_binary:
            part["logit"] = 2.5 * (noise[:, 0] + 1.25 * (2 * truth[rows] - 1)) + logit(shares[1])
        else:
            logits = 5.0 * np.eye(3)[truth[rows]] + noise + np.log(shares)
            part[[f"logit_{number}" for number in range(3)]] = logits
        parts.append(part.assign(arm="supervised"))
    everything = pd.concat(parts, ignore_index=True)
    columns = [column for column in everything.columns if column.startswith("logit")]
    log_shares = 0.0 if table.is_binary else np.log(shares)
    everything[columns] = 0.3 * (everything[columns] - log_shares) + log_shares
    return everything


def test_an_inner_holdout_makes_bent_scores_probabilities(binary: tuple[Path, ImageTable, np.ndarray]) -> None:
    folder, table, truth = binary
    scores = bent(folder, table, truth)
    config = PseudoConfig(prevalence="estimate", select="threshold", threshold=0.9)

    def ledger_of(predictions: pd.DataFrame) -> Ledger:
        return make_ledger(predictions, table=table, teacher="supervised", config=config, seed=0)

    with pytest.raises(InputError, match=r"pseudo.prevalence estimate"):
        ledger_of(scores[scores["kind"] != "inner"])
    ledger = ledger_of(scores)
    assert all(own.slope > 0.9 / 0.3 for own in ledger.calibrations.values())
    assert all(0.15 < prior[1] < 0.25 for prior in ledger.priors.values())
    soft = make_ledger(
        scores, table=table, teacher="supervised", config=config.model_copy(update={"select": "soft"}), seed=0
    ).frame
    real = truth[pd.Series(np.arange(len(table)), index=table.frame["id"]).loc[soft["id"]].to_numpy()]
    for low, high in ((0.0, 0.1), (0.2, 0.8), (0.9, 1.0)):
        own = soft["target"].between(low, high).to_numpy()
        assert own.sum() > 100 and abs(real[own].mean() - soft["target"][own].mean()) < 0.08
    taken = ledger.frame["target"] == 1
    positions = pd.Series(np.arange(len(table)), index=table.frame["id"]).loc[ledger.frame["id"][taken]].to_numpy()
    told = ledger.precision["yes"]
    assert told.low - 0.03 <= truth[positions].mean() <= told.high + 0.03


def test_the_calibration_of_a_fold_reads_no_label_of_it(binary: tuple[Path, ImageTable, np.ndarray]) -> None:
    folder, table, truth = binary
    scores = bent(folder, table, truth).drop(columns="target")
    frame = table.frame.copy()
    # Not all, or the teachers of other folds would rank their inner holdout the wrong way round.
    own = (frame["fold"] == 1).fillna(False).to_numpy(dtype=bool) & (np.arange(len(frame)) % 4 == 0)
    frame.loc[own, "label"] = np.where(frame.loc[own, "label"] == "yes", "no", "yes")
    flipped = replace(table, frame=frame)
    config = PseudoConfig(prevalence="labelled")
    before, after = (
        make_ledger(scores, table=each, teacher="supervised", config=config, seed=0) for each in (table, flipped)
    )
    changed = [
        fold
        for fold in range(3)
        if not np.array_equal(
            *(ledger.frame.loc[ledger.frame["student_fold"] == fold, "target"].to_numpy() for ledger in (before, after))
        )
    ]
    assert changed == [0, 2] and before.calibrations[1] == after.calibrations[1]
    assert before.calibrations[0] != after.calibrations[0]


def test_several_classes_get_a_temperature(tmp_path: Path) -> None:
    table, truth = toy_table(classes=("a", "b", "c"))
    write_scores(tmp_path, table, truth, signal=5.0)
    config = PseudoConfig(prevalence="estimate")
    scores = bent(tmp_path, table, truth)
    ledger = make_ledger(scores, table=table, teacher="supervised", config=config, seed=0)
    assert all(own.slope > 2 for own in ledger.calibrations.values())
    np.testing.assert_allclose(ledger.priors[0], [0.6, 0.3, 0.1], atol=0.05)


def test_teachers_that_know_nothing_are_not_calibrated(binary: tuple[Path, ImageTable, np.ndarray]) -> None:
    folder, table, truth = binary
    scores = bent(folder, table, truth)
    inner = (scores["kind"] == "inner") & (scores["fold"] == 2)
    scores.loc[inner, "logit"] *= -1
    with pytest.raises(InputError, match=r"pseudo.inner_holdout, fold 2: on \d+ positives .* set pseudo.inner_holdout"):
        make_ledger(scores, table=table, teacher="supervised", config=PseudoConfig(), seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"select": "threshold", "threshold": 0.9999999}, r"no image .* is certain enough .* lower pseudo.threshold"),
        (
            {"select": "agreement"},
            r"no image .* is agreed on by all teachers to be taught as 'yes' .* use select: soft",
        ),
    ],
)
def test_without_a_positive_there_is_nothing_to_teach(
    binary: tuple[Path, ImageTable, np.ndarray], settings: dict[str, Any], message: str
) -> None:
    folder, table, _ = binary
    predictions = read_predictions(folder, table=table)
    if settings["select"] == "agreement":
        predictions.loc[predictions["model"] == "b", "logit"] = -9.0
    else:
        predictions["logit"] = predictions["logit"].clip(-4, 4)
    with pytest.raises(NothingToTeach, match=message):
        make_ledger(predictions, table=table, teacher="supervised", config=PseudoConfig(**settings), seed=0)
