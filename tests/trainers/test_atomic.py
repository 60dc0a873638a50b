"""A file is the old one or the new one, whatever happens while it is written."""

from pathlib import Path

import pandas as pd
import pytest

from trainers import atomic


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    atomic.write_json(path, {"ap": 0.5})
    with pytest.raises(ValueError, match="Out of range float values"):
        atomic.write_json(path, {"ap": float("nan")})

    def half_written() -> None:
        with atomic.replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half_written()
    assert path.read_text() == '{\n  "ap": 0.5\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.json"]


def test_parquet_keeps_metadata_and_text(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    frame = pd.DataFrame({"id": ["00123", "NA", "1e5"]})
    atomic.write_parquet(path, frame, metadata={"classes": ["0", "1"]})
    assert pd.read_parquet(path)["id"].tolist() == ["00123", "NA", "1e5"]
    assert atomic.read_parquet_metadata(path) == {"classes": ["0", "1"]}
    atomic.write_parquet(path, frame)
    assert atomic.read_parquet_metadata(path) == {}
