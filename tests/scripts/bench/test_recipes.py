"""The paired interval is Student's, and a single pair has none."""

import numpy as np
import pytest
from scipy import stats

from scripts.bench.recipes import _paired


def test_the_interval_of_the_paired_difference_is_students_t() -> None:
    values, others = [0.64, 0.70, 0.61], [0.60, 0.68, 0.60]
    mean, interval = _paired(values, others)
    reference = stats.ttest_rel(values, others).confidence_interval(0.95)
    assert mean == pytest.approx(np.mean(values) - np.mean(others))
    assert interval == pytest.approx([reference.low, reference.high])


def test_one_pair_has_a_difference_and_no_interval() -> None:
    mean, interval = _paired([0.6], [0.5])
    assert mean == pytest.approx(0.1)
    assert interval is None
