"""A run whose teachers have scored the pool, made once for the tests of this folder."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.schema import RunConfig
from configs.sections import merged
from scripts.pipeline import run_pipeline
from tests.scripts.tiny_runs import tiny_config
from trainers.digits import DigitsSplit, write_digits


@pytest.fixture(scope="package")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, split=DigitsSplit(train=(44, 52), pool=(6, 24), test=(6, 30)))
    return folder


def config_of(folder: Path, out: Path, **pseudo: Any) -> RunConfig:
    section = merged({"batch_size": 8, "min_precision": 0.0}, pseudo)
    # teachers that know nothing cannot be calibrated
    longer = {"train": {"steps": 60}} if "inner_holdout" in pseudo else {}
    return tiny_config(folder, out, {"pool": {"arm": "pseudo"}, "pseudo": section}, longer)


@pytest.fixture(scope="package")
def supervised(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose teachers have scored the pool."""
    return run_pipeline(config_of(data, tmp_path_factory.mktemp("runs")), until="predict").run_dir


@pytest.fixture
def run(data: Path, supervised: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """The config of a copy of the run `supervised`, with settings of `pseudo`."""
    shutil.copytree(supervised, tmp_path / "tiny")
    return lambda **pseudo: config_of(data, tmp_path, **pseudo)
