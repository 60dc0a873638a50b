"""A pipeline that is killed again and again ends with the weights and predictions of one that was left alone."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from configs.load import check_config
from configs.schema import RunConfig
from scripts.pipeline import run_pipeline
from trainers.digits import DigitsSplit, write_digits


def config_of(folder: Path, out: Path) -> RunConfig:
    values = {
        "name": "tiny",
        "out": str(out),
        "data": {"source": str(folder / "table.csv"), "positive_label": "eight", "image_size": 16, "channels": 1},
        "folds": {"num_folds": 2},
        "augment": {"policy": "light"},
        "models": [{"backbone": "test_resnet"}],
        "train": {"steps": 6, "batch_size": 16, "warmup_steps": 1, "checkpoint_every_steps": 2, "log_every_steps": 2},
        "compute": {"device": "cpu", "decode_threads": 1},
    }
    return check_config(values, "test")


def test_kills_from_the_first_stage_to_the_last_change_no_weight_and_no_prediction(
    tmp_path: Path, killed_at: Callable[[int, Callable[[], object]], bool]
) -> None:
    """Each time some file operations further on, whatever they belong to."""
    write_digits(tmp_path, split=DigitsSplit(train=(12, 60), pool=(4, 8), test=(0, 0)))
    left_alone = run_pipeline(config_of(tmp_path, tmp_path / "alone"), until="predict").run_dir
    killed = config_of(tmp_path, tmp_path / "killed")
    operation = 50
    while killed_at(operation, lambda: run_pipeline(killed, until="predict")):
        operation += 20
    assert operation >= 50 + 4 * 20
    files = [
        path.relative_to(left_alone) for path in left_alone.rglob("*") if path.suffix in (".safetensors", ".parquet")
    ]
    assert sum(path.suffix == ".safetensors" for path in files) == 2
    assert sum("predictions" in path.parts for path in files) == 2
    for path in files:
        whole, resumed = left_alone / path, killed.run_dir / path
        if path.suffix == ".parquet":
            pd.testing.assert_frame_equal(pd.read_parquet(resumed), pd.read_parquet(whole), check_exact=True)
        else:
            assert resumed.read_bytes() == whole.read_bytes(), path
    leftovers = [path for path in killed.run_dir.rglob("*") if path.name.endswith(".tmp") or path.name == "checkpoints"]
    assert leftovers == []
