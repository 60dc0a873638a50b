"""A run folder and its report that several tests read."""

import shutil
from pathlib import Path

import pytest

from tests.ensembles.report_runs import make_report, read_truth, write_run


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that tests read; those that change it take `changed_run`."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    write_run(folder, curves=True)
    return folder


@pytest.fixture(scope="session")
def plain_page(plain_run: Path) -> str:
    """The report of the plain run, with everything there is."""
    return make_report(plain_run, truth=read_truth(plain_run))


@pytest.fixture
def changed_run(plain_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(plain_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def small_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of few trees and bags, which take most of the time and are tested as well by few."""
    monkeypatch.setattr("ensembles.heads.TREES", 15)
    monkeypatch.setattr("ensembles.heads.BAGS", 3)
    monkeypatch.setattr("ensembles.heads.BOOSTED_BAGS", 2)
