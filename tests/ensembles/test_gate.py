"""The gate keeps an arm that earns it, is not fooled by several that do not, and says why."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from configs.pool import PoolConfig
from configs.schema import MetricsConfig
from ensembles import gate
from ensembles.gate import Verdict
from ensembles.predictions import read_predictions, write_predictions
from trainers.paired import paired_difference, paired_gains
from trainers.table import ImageTable

METRICS = MetricsConfig(replicates=300)


def toy_table(*, classes: tuple[str, ...] = ("no", "yes"), num_train: int = 600, num_pool: int = 5) -> ImageTable:
    ids = [f"image-{row:04d}" for row in range(num_train + num_pool)]
    if len(classes) == 2:
        labels = [classes[row % 10 == 0] for row in range(num_train)]
    else:
        labels = [classes[row % len(classes)] for row in range(num_train)]
    splits = ["train"] * num_train + ["pool"] * num_pool
    frame = pd.DataFrame({"id": ids, "path": ids, "label": labels + [None] * num_pool, "split": splits})
    folds = pd.array([row // 10 % 3 if row < num_train else None for row in range(len(ids))], dtype="Int64")
    frame = frame.assign(group=None, fold=folds, sha256=ids, width=8, height=8)
    return ImageTable(frame, list(classes), classes[1] if len(classes) == 2 else None)


def decide(tmp_path: Path, table: ImageTable, shifts: dict[str, float], *, seed: int = 0, **pool: float) -> Verdict:
    """The verdict on arms whose scores of the right class are higher by `shifts`, with noise that they share."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(len(table), table.num_outputs))
    for arm, shift in shifts.items():
        for model in ("a", "b"):
            own = rng.normal(size=shared.shape)
            for fold in range(table.num_folds):
                rows = np.concatenate([table.rows("train", fold=fold), table.rows("pool")])
                targets = table.targets[rows]
                signal = (targets == 1)[:, None] if table.is_binary else np.eye(len(table.classes))[targets]
                logits = shared[rows] + 0.5 * own[rows] + shift * signal
                path = tmp_path / str(seed) / arm / model / f"fold{fold}.parquet"
                write_predictions(path, table=table, rows=rows, logits=logits, arm=arm, model=model, fold=fold)
    return gate.run(
        read_predictions(tmp_path / str(seed), table=table),
        table=table,
        pool=PoolConfig(**pool),
        metrics=METRICS,
        scored=True,
        seed=seed,
        out=tmp_path / "out",
    )


def test_an_arm_that_gains_is_kept_with_the_gain_of_its_ensemble(tmp_path: Path) -> None:
    table = toy_table()
    verdict = decide(tmp_path, table, {"supervised": 1.5, "pretrained": 2.2})
    assert verdict.arm == "pretrained" and verdict.used
    predictions = read_predictions(tmp_path / "0", table=table)
    oof = predictions[predictions["kind"] == "oof"]
    means = oof.pivot_table(index="id", columns="arm", values="logit")  # over the two models
    targets = oof.groupby("id")["target"].first().loc[means.index].astype(int)
    aps = {arm: average_precision_score(targets, means[arm]) for arm in means}
    assert verdict.gain == pytest.approx(aps["pretrained"] - aps["supervised"], abs=1e-9)
    assert verdict.compared["pretrained"].ap == pytest.approx(aps["pretrained"], abs=1e-9)
    assert verdict.gain_ci is not None and 0 < verdict.gain_ci[0] < verdict.gain < verdict.gain_ci[1]
    assert verdict.reason.startswith(
        f"the pool helped, and arm 'pretrained' is kept: its gain in out-of-fold AP is {verdict.gain:+.3f} ["
    )
    bound = verdict.compared["pretrained"].bound
    assert 0 < bound < verdict.gain and verdict.reason.endswith(f"], 90% sure to be above {bound:+.3f}")
    written = json.loads((tmp_path / "out" / "gate.json").read_text())
    assert written["arm"] == "pretrained" and written["arms"] == ["supervised", "pretrained"]
    assert written["gain_ci"] == list(verdict.gain_ci)


@pytest.mark.parametrize("shift", [1.5, 1.0])
def test_an_arm_that_does_not_gain_is_not_kept(tmp_path: Path, shift: float) -> None:
    verdict = decide(tmp_path, toy_table(), {"supervised": 1.5, "pretrained": shift})
    assert verdict.arm == "supervised" and not verdict.used
    assert verdict.reason.startswith("no gain from the pool is shown, and arm 'supervised' is kept: ")
    assert f"AP of arm 'pretrained' is {verdict.gain:+.3f} [" in verdict.reason
    bound = verdict.compared["pretrained"].bound
    assert bound <= 0 and verdict.reason.endswith(f"], 90% sure only to be above {bound:+z.3f}")


def test_more_confidence_asks_for_more(tmp_path: Path) -> None:
    used = {
        confidence: decide(tmp_path, toy_table(), {"supervised": 1.5, "semi": 1.62}, confidence=confidence).used
        for confidence in (0.6, 0.9, 0.9999)
    }
    assert used[0.6] and not used[0.9999]


def test_several_classes_are_judged_by_their_mean(tmp_path: Path) -> None:
    table = toy_table(classes=("a", "b", "c"))
    assert decide(tmp_path, table, {"supervised": 1.0, "semi": 1.6}).arm == "semi"
    assert decide(tmp_path, table, {"supervised": 1.6, "semi": 1.0}, seed=1).arm == "supervised"


def test_without_another_arm_it_says_what_became_of_the_pool(tmp_path: Path) -> None:
    verdict = decide(tmp_path, toy_table(), {"supervised": 1.5})
    assert verdict.reason.startswith("the pool of 5 images was scored but not trained on: arm 'supervised' is the only")
    assert (verdict.used, verdict.gain, verdict.arms) == (False, None, ["supervised"])
    none = decide(tmp_path, toy_table(num_pool=0), {"supervised": 1.5}, seed=1)
    assert none.reason == "there is no pool of unlabelled images"


def noise(num_arms: int, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """Scorings of 400 rows, 40 positive, that differ by noise alone."""
    targets = (np.arange(400) % 10 == 0).astype(int)
    shared = rng.normal(size=400) + 1.5 * targets
    return targets, [(shared + 0.5 * rng.normal(size=400))[:, None] for _ in range(num_arms + 1)]


def share_kept(num_arms: int, *, corrected: bool) -> float:
    """How often the best of arms that gain nothing is kept, in 120 draws."""
    kept = 0
    for seed in range(120):
        targets, scorings = noise(num_arms, np.random.default_rng(seed))
        sets = [scorings] if corrected else [[scorings[0], other] for other in scorings[1:]]
        rng = np.random.default_rng(seed)
        kept += any(gain.better for each in sets for gain in paired_gains(targets, each, replicates=200, rng=rng))
    return kept / 120


def test_choosing_among_arms_that_gain_nothing_does_not_fool_it() -> None:
    # 10% is promised; 0.18 is three standard errors above it
    assert share_kept(1, corrected=True) <= 0.18
    assert share_kept(6, corrected=True) <= 0.18
    assert share_kept(6, corrected=False) > 0.25  # the control: each arm looked at as if it were the only one


def test_the_gain_has_the_interval_of_the_paired_difference() -> None:
    targets, scorings = noise(1, np.random.default_rng(3))
    (gain,) = paired_gains(targets, scorings, replicates=4000, rng=np.random.default_rng(0))
    alone = paired_difference(
        targets, scorings[1][:, 0], scorings[0][:, 0], replicates=4000, rng=np.random.default_rng(1)
    )
    assert gain.interval.estimate == pytest.approx(alone.estimate, abs=1e-12)
    assert gain.interval.low == pytest.approx(alone.low, abs=0.006)
    assert gain.interval.high == pytest.approx(alone.high, abs=0.006)


def test_why_only_supervised_was_trained_is_told_in_the_words_of_what_stopped_the_others(tmp_path: Path) -> None:
    """That too few pseudo-labels are right is one cause of several; without any the setting is."""
    table = toy_table()
    assert decide(tmp_path, table, {"supervised": 1.0}).reason.endswith("the only one that was trained (pool.arm)")
    settings = {"table": table, "pool": PoolConfig(arm="pseudo"), "metrics": METRICS, "scored": True, "seed": 0}
    stopped = "pseudo-1 is not trained: the teachers are not shown to be better than chance"
    predictions = read_predictions(tmp_path / "0", table=table)
    reason = gate.run(predictions, **settings, out=tmp_path / "out", stopped=stopped).reason
    assert reason.endswith(f"the only one that was trained; {stopped}") and "min_precision" not in reason


def test_what_is_undefined_is_never_better() -> None:
    (gain,) = paired_gains(np.zeros(10), [np.arange(10.0)[:, None]] * 2, rng=np.random.default_rng(0))
    assert not gain.better and np.isnan(gain.interval.estimate)
    targets, scorings = noise(0, np.random.default_rng(0))
    (same,) = paired_gains(targets, [scorings[0]] * 2, rng=np.random.default_rng(0))
    assert not same.better and same.interval.estimate == 0.0


def test_a_gain_that_no_resample_changes_is_as_sure_as_so_many_images_make_it() -> None:
    """A perfect ranking over scores that are all equal: its AP is 1 in every resample, theirs the prevalence."""
    rng = np.random.default_rng(0)
    for num_rows, better in ((2000, True), (4, False)):
        targets = (np.arange(num_rows) % 20 == 0).astype(int)
        constant = np.zeros((num_rows, 1))
        perfect = targets[:, None] + 0.0
        same, gain = paired_gains(targets, [constant, constant, perfect], replicates=200, rng=rng)
        assert gain.interval.sd == 0 and gain.interval.estimate == pytest.approx(1 - targets.mean())
        assert gain.better == (gain.bound > 0) == better, num_rows
        assert same.bound == 0 and not same.better
