"""Images that are there twice, in the report; the pages with pairs are in tests/scripts/test_neighbours.py."""

from pathlib import Path

import numpy as np
import pytest

from ensembles.neighbours import write_pairs
from tests.ensembles.report_runs import make_report
from trainers.duplicates import Looks, look_at
from trainers.table import ImageTable, read_table


def looks_of(table: ImageTable, *, repeated: bool) -> Looks:
    """Of random images, all of them different, or with one that is there twice."""
    images = np.random.default_rng(0).integers(0, 256, (len(table), 32, 32, 1), dtype=np.uint8)
    if repeated:
        images[1] = images[0]
    return look_at(images.__getitem__, np.arange(len(table)))


@pytest.mark.parametrize("repeated", [False, True])
def test_a_search_that_found_no_pair_has_a_section_too(changed_run: Path, repeated: bool) -> None:
    table = read_table(changed_run / "table.parquet")
    pairs, _ = write_pairs(table, looks_of(table, repeated=repeated), embeddings={}, out=changed_run)
    assert len(pairs) == repeated
    assert 'id="duplicates"' in make_report(changed_run)
