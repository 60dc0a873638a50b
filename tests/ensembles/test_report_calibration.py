"""The section on probabilities of the report."""

from pathlib import Path

import numpy as np
import pytest

from ensembles.calibration_figures import reliability_bins
from ensembles.report_calibration import reliability_figure
from tests.ensembles.report_runs import Page, Sizes, make_report, read_truth, write_run


def section(text: str) -> str:
    start = text.index('<section id="probabilities">')
    return Page(text[start : text.index("</section>", start)]).text


def test_the_section_has_picture_counts_and_figures(tmp_path: Path) -> None:
    write_run(tmp_path / "run", sizes=Sizes(train=600, positives=60, test=300, pool=120))
    words = section(make_report(tmp_path / "run", truth=read_truth(tmp_path / "run")))
    assert "Calibrated (logistic)" in words and "10 of " in words and "Are the probabilities right?" in words
    assert "out of fold, not calibrated" in words and "test, not calibrated" in words
    assert "5 of 100 images with a probability of 5% are positive" in words


def test_too_few_positives_have_no_picture_and_no_pool_is_told(plain_page: str) -> None:
    words = section(plain_page)
    assert "30 pool images are scored, and 100 are needed" in words
    assert "Are the probabilities right?" not in words and "out of fold" in words


def test_several_classes_have_a_row_each(tmp_path: Path) -> None:
    write_run(tmp_path / "run", binary=False, classes=("a", "b", "c"))
    words = section(make_report(tmp_path / "run", truth=read_truth(tmp_path / "run")))
    assert all(f"out of fold: {name}" in words for name in "abc")


@pytest.mark.filterwarnings("error")
def test_the_picture_bears_shares_of_nothing_and_of_all() -> None:
    targets, probabilities = np.repeat([0, 1], [5000, 40]), np.r_[np.linspace(0, 0.01, 5000), np.linspace(0.5, 1, 40)]
    bins = reliability_bins(targets, probabilities, groups=np.arange(5040), confidence=0.95)
    text = reliability_figure(bins, bins, bins)
    assert "99%" in text and "nan" not in text
