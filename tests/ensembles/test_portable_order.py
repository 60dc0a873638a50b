"""The order of saturated scores is kept, in a run's submission and by an exported ensemble."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit

from ensembles.portable import inference
from ensembles.portable.listing import Listing
from ensembles.portable.order import strictly_ordered
from ensembles.portable.scoring import Ensemble

LOGITS = [40.0, 50.0, 45.0, -800.0, 40.0]
CONFIG = {
    "blend": {"method": "logits", "num_outputs": 1},
    "calibration": None,
    "positive_label": "b",
    "threshold": 0.0,
    "images": {},
    "submission": [["image", None], ["target", 0]],
}


def test_values_are_moved_only_where_they_would_tie():
    scores = np.array([3.0, 1.0, 2.0])
    values = np.array([0.3, 0.1, 0.2])
    assert strictly_ordered(values, scores).tolist() == values.tolist()
    tied = strictly_ordered(np.array([1.0, 1.0, 1.0, 0.0, 0.0]), np.array([9.0, 8.0, 9.0, -9.0, -8.0]))
    assert tied[0] == tied[2] == 1.0 and tied[1] == np.nextafter(1.0, 0.0)
    assert tied[3] == 0.0 and tied[4] == np.nextafter(0.0, 1.0)


def test_a_submission_of_an_export_keeps_the_order_over_its_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [(f"i{number}", "") for number in range(len(LOGITS))]
    monkeypatch.setattr(inference, "read_pixels", lambda _, __, ___: np.zeros((2, 2, 1), np.uint8))
    found: dict[bool, list[float]] = {}
    for submission in (True, False):
        batches = iter([LOGITS[:2], LOGITS[2:4], LOGITS[4:]])
        monkeypatch.setattr(inference, "score_pixels", lambda *_, own=batches: np.array(next(own))[:, None])
        inference.score_to_csv(
            Ensemble(CONFIG, {}, torch.device("cpu")),
            Listing(tmp_path, images),
            tmp_path / "out.csv",
            batch_size=2,
            threads=1,
            skip=False,
            submission=submission,
        )
        with (tmp_path / "out.csv").open() as stream:
            rows = list(csv.reader(stream))[1:]
        assert [row[0] for row in rows] == [id_ for id_, _ in images]
        found[submission] = [float(row[1]) for row in rows]
    assert found[False][0] == found[False][1] == 1.0, "the control: as they are they tie"
    low, high, middle, lowest, same = found[True]
    assert lowest < low == same < middle < high == 1.0
    assert found[True] == strictly_ordered(expit(np.array(LOGITS)), np.array(LOGITS)).tolist()
