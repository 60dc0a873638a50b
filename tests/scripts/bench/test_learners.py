"""The table over seeds is made of what each seed's comparison says, and its choices of out-of-fold figures alone."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from configs.errors import InputError
from scripts.bench.learners import Name, _best, _config, _rows, _table, _write_data
from scripts.pipeline import run_pipeline
from tests.scripts.bench.fashion_files import write_idx_files


def comparison(**ways):
    """comparison.json of one seed: name=(out-of-fold AP, pool accuracy, gain on the pool or None)."""
    entries = []
    for name, (oof, accuracy, gain) in ways.items():
        method = {"net": "networks, supervised", "ours": "rarefind spreading", "other": "majority label"}.get(
            name, "scikit-learn spreading, knn"
        )
        entry = {"name": name, "method": method, "features": "f", "oof": {"ap": oof}}
        entry["pool"] = {"ap": accuracy - 0.1, "accuracy": accuracy, "macro_f1": accuracy, "ari": 0.5}
        if gain is not None:
            entry["gain"] = {"over": "recipe", "pool": {"accuracy": [gain, gain - 0.02, gain + 0.02]}}
        entries.append(entry)
    return {"entries": [*entries, {"name": "rbf", "method": "rbf", "not_possible": "too many images"}]}


def test_the_projects_best_is_chosen_out_of_fold_and_judged_on_the_pool():
    first = comparison(net=(0.9, 0.80, 0.01), ours=(0.8, 0.95, 0.16), other=(0.99, 0.7, -0.1), recipe=(0.7, 0.79, None))
    second = comparison(net=(0.7, 0.90, 0.11), ours=(0.8, 0.82, 0.03), other=(0.9, 0.7, -0.1), recipe=(0.7, 0.79, None))
    best = _best([first, second], key="accuracy")
    assert best["chosen"] == ["net", "ours"], "neither the better on the pool, nor the others' ways"
    assert best["gain"] == [0.01, 0.03] and best["mean"] == pytest.approx(0.02)
    assert best["ci_images"] == pytest.approx([0.0, 0.04]), "as wide as that of one seed: the pools overlap"
    half = 12.706 * np.std([0.01, 0.03], ddof=1) / np.sqrt(2)
    assert best["ci_seeds"] == pytest.approx([0.02 - half, 0.02 + half], abs=1e-4)
    assert "+0.020" in best["sentence"] and "net, ours" in best["sentence"]


def test_one_way_for_all_seeds_is_judged_where_asked_for():
    first = comparison(net=(0.9, 0.80, 0.01), ours=(0.8, 0.95, 0.16), recipe=(0.7, 0.79, None))
    second = comparison(net=(0.75, 0.90, 0.11), ours=(0.8, 0.82, 0.03), recipe=(0.7, 0.79, None))
    assert _rows([first, second])[0]["name"] == "net", "the best by the mean of out-of-fold AP"
    best = _best([first, second], key="accuracy", name="net")
    assert best["chosen"] == ["net", "net"] and best["gain"] == [0.01, 0.11]
    assert "(by mean over seeds: net) less the recipe (recipe): +0.060" in best["sentence"]


def test_a_way_that_a_seed_lacks_has_no_row():
    first, second = comparison(net=(0.9, 0.8, 0.0), ours=(0.8, 0.9, 0.1)), comparison(net=(0.7, 0.6, 0.0))
    rows = _rows([first, second])
    assert [row["name"] for row in rows] == ["net"]
    assert rows[0]["accuracy"] == [0.8, 0.6] and rows[0]["oof_ap"] == [0.9, 0.7]


def test_what_is_not_defined_is_an_empty_cell_and_no_zero():
    results = [comparison(net=(0.9, 0.8, 0.0), ours=(0.8, 0.9, 0.1)) for _ in range(2)]
    results[1]["entries"][0]["pool"] = {"ap": None, "accuracy": 0.6, "macro_f1": 0.6, "ari": 0.5}
    for result in results:
        del result["entries"][1]["pool"]
    table = _table(_rows(results), "", is_binary=False)
    cells = [list(column.cells) for column in table.columns]
    assert [own[0] for own in cells[:5]] == ["net", "0.900 ± 0.000", "", "0.700 ± 0.141", "0.700 ± 0.141"]
    assert [own[1] for own in cells[:5]] == ["ours", "0.800 ± 0.000", "", "", ""]


@pytest.mark.parametrize("pool", [None, {"ap": [None, None, None]}])
def test_a_gain_that_is_not_defined_is_told_with_its_seed(pool):
    first, second = (comparison(net=(0.9, 0.8, 0.0), recipe=(0.7, 0.79, None)) for _ in range(2))
    first["entries"][0]["gain"]["pool"]["ap"] = [0.1, 0.0, 0.2]
    second["entries"][0]["gain"] = {"over": "recipe"} | ({} if pool is None else {"pool": pool})
    with pytest.raises(InputError, match="seed 1: the gain of net in ap on the pool is not defined"):
        _best([first, second], key="ap")


def test_the_truth_of_tenth_is_of_images_of_its_run(tmp_path: Path):
    """The truth has the test set's rows, too: the run has to be given that set."""
    idx = write_idx_files(tmp_path / "idx", train=100, test=2)
    _write_data(Name.TENTH, tmp_path, 0, idx)
    config = _config(Name.TENTH, tmp_path, 0, [])
    run_pipeline(config, until="prepare")
    table = pd.read_parquet(config.run_dir / "table.parquet")
    assert table["split"].value_counts().to_dict() == {"pool": 900, "train": 100, "test": 20}
