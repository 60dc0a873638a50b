"""The paired interval is Student's, a single pair has none, and figures are taken from where runs write them."""

import numpy as np
import pytest
from scipy import stats

from scripts.bench.recipes import _summary
from scripts.bench.spread import paired


def test_the_interval_of_the_paired_difference_is_students_t() -> None:
    values, others = [0.64, 0.70, 0.61], [0.60, 0.68, 0.60]
    mean, interval = paired(values, others)
    reference = stats.ttest_rel(values, others).confidence_interval(0.95)
    assert mean == pytest.approx(np.mean(values) - np.mean(others))
    assert interval == pytest.approx([reference.low, reference.high])


def test_one_pair_has_a_difference_and_no_interval() -> None:
    mean, interval = paired([0.6], [0.5])
    assert mean == pytest.approx(0.1)
    assert interval is None


def test_a_summary_takes_each_figure_from_its_place() -> None:
    def result(ap: float, recall: float) -> dict[str, object]:
        figures = {"ap": ap, "worst_recall": {"class": "shirt", "recall": recall}}
        test = {"ensemble": {"ap": ap + 0.1, "worst_recall": {"class": "coat", "recall": recall + 0.1}}}
        models = {"small": {"supervised": {"ap": ap - 0.1}}}
        return {"ensemble": figures, "test": test, "models": models, "wall_seconds": 120.0}

    summary = _summary([result(0.5, 0.2), result(0.6, 0.3)])
    assert summary["ap"] == [0.5, 0.6]
    assert summary["models"]["small"] == pytest.approx([0.4, 0.5])
    assert summary["test_ap"] == pytest.approx([0.6, 0.7])
    assert (summary["worst_recall"], summary["minutes"]) == ([0.2, 0.3], [2.0, 2.0])
    assert summary["test_worst_recall"] == pytest.approx([0.3, 0.4])
    binary = {"ensemble": {"ap": 0.5}, "models": {}, "wall_seconds": 60.0}
    assert _summary([binary])["worst_recall"] == _summary([binary])["test_ap"] == []
