"""The data of a study's runs: a benchmark of one seed, beside it the oracle's table and the truth of the test rows."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainers.fashion import Settings

TABLE, ORACLE_TABLE, TEST = "table.csv", "table-oracle.csv", "test.csv"
TEST_TRUTH = "truth-test.csv"
SETTINGS_FILE = "settings.json"


def write_benchmark(folder: Path, settings: "Settings", *, idx: Path | None = None) -> None:
    """Write the benchmark below `folder` unless it is there; `idx` is the folder of the IDX files, default Debian's.

    Raises InputError when the folder has one of other settings, which runs may have been trained on.
    """
    import pandas as pd

    from configs.errors import InputError
    from trainers import atomic, fashion

    stored = folder / SETTINGS_FILE
    if (folder / TEST_TRUTH).exists():
        if stored.exists():
            other = json.loads(stored.read_text(encoding="utf-8"))
            now = json.loads(json.dumps(asdict(settings)))  # tuples become lists
            differing = [f"{key}: was {other.get(key)}, is now {now[key]}" for key in now if other.get(key) != now[key]]
            if differing:
                raise InputError(
                    f"{folder} was written with other settings ({'; '.join(differing)}); name another --out, or remove "
                    f"{folder.parent} with the runs on these data"
                )
        return
    fashion.BENCHMARKS[type(settings)].write(folder, settings, idx=idx or fashion.DEBIAN_FOLDER)
    texts = {"dtype": str, "keep_default_na": False}
    table, truth = (pd.read_csv(folder / name, **texts) for name in (TABLE, "truth.csv"))  # type: ignore[call-overload]
    known = table["label"].where(table["label"] != "", table["id"].map(truth.set_index("id")["label"]))
    atomic.write_csv(folder / ORACLE_TABLE, table.assign(label=known, split="train"))
    atomic.write_json(stored, asdict(settings))
    atomic.write_csv(folder / TEST_TRUTH, truth[truth["id"].str.startswith("test-")])  # last: now all of it is there
