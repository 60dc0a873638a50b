"""Features of images that were embedded before are copied, whatever row they had, and only the others are read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.trainers.test_embedding import SIZE, Killed, Watched, images_of, table_of, tiny_network
from trainers import embedding
from trainers.embedding_files import (
    KnownFeatures,
    complete_older,
    images_path,
    known_features,
    open_embeddings,
    values_path,
)
from trainers.table import ImageTable

OTHERS = [5, 0, 22, 7]  # images that the first table has not


def tables() -> tuple[list[int], list[int]]:
    """The images of a first table, and of a second one, in which some are gone, some new, and all elsewhere."""
    everything = np.random.default_rng(1).permutation(len(images_of())).tolist()
    return [image for image in everything if image not in OTHERS], [image for image in everything[::-1] if image != 9]


def table_with(images: list[int]) -> ImageTable:
    table = table_of()
    return ImageTable(table.frame.iloc[images].reset_index(drop=True), table.classes, table.positive_label)


def embed(out: Path, images: list[int], **changes: Any) -> Watched:
    pixels = Watched(images_of()[images], until=changes.pop("until", None))
    settings: dict[str, Any] = {"image_size": SIZE, "batch_size": 3, "workers": 0, "shard_rows": 2}
    embedding.run(tiny_network(), pixels, table_with(images), out=out, **settings | changes)
    return pixels


@pytest.fixture
def before(tmp_path: Path) -> Path:
    embed(tmp_path / "before", tables()[0])
    return tmp_path / "before"


@pytest.mark.parametrize("copied_at_a_time", [2, 4096])
def test_only_images_that_are_new_are_read_and_the_others_keep_their_bytes(
    before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied_at_a_time: int
) -> None:
    monkeypatch.setattr(embedding, "COPIED_ROWS", copied_at_a_time)
    first, second = tables()
    known = known_features(before, "tiny", table_with(second))
    assert known is not None
    pixels = embed(tmp_path / "after", second, known=known)
    assert pixels.read == [row for row, image in enumerate(second) if image in OTHERS]
    old, new = (open_embeddings(folder, "tiny", table_with(images))
                for folder, images in ((before, first), (tmp_path / "after", second)))  # fmt: skip
    for row, image in enumerate(second):
        if image not in OTHERS:
            assert new[row].tobytes() == old[first.index(image)].tobytes()
    embed(tmp_path / "whole", second)
    np.testing.assert_allclose(new, open_embeddings(tmp_path / "whole", "tiny", table_with(second)), atol=1e-6)
    assert embedding.read_facts(tmp_path / "after", "tiny")["num_known"] == len(second) - len(OTHERS)


def test_a_killed_one_goes_on_to_the_same_bytes(before: Path, tmp_path: Path) -> None:
    second = tables()[1]
    known = known_features(before, "tiny", table_with(second))
    embed(tmp_path / "left alone", second, known=known)
    for until in (row for row, image in enumerate(second) if image in OTHERS):
        with pytest.raises(Killed):
            embed(tmp_path / str(until), second, known=known, until=until)
        embed(tmp_path / str(until), second, known=known)
        paths = [values_path(tmp_path / name, "tiny") for name in (str(until), "left alone")]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_nothing_is_read_when_all_is_known(before: Path, tmp_path: Path) -> None:
    fewer = tables()[0][3:]
    assert embed(tmp_path / "after", fewer, known=known_features(before, "tiny", table_with(fewer))).read == []
    assert len(open_embeddings(tmp_path / "after", "tiny", table_with(fewer))) == len(fewer)


def test_features_of_another_length_are_made_again(before: Path, tmp_path: Path) -> None:
    first = tables()[0]
    other = KnownFeatures(np.ones((len(first), 4), np.float32), np.arange(len(first)), tiny_network().facts)
    assert embed(tmp_path / "after", first, known=other).read == list(range(len(first)))


def test_features_of_other_weights_under_the_same_name_are_made_again(before: Path, tmp_path: Path) -> None:
    """A package that is upgraded may bring others; config and stage do not tell."""
    first = tables()[0]
    known = known_features(before, "tiny", table_with(first))
    assert known is not None
    assert embed(tmp_path / "same", first, known=known).read == []
    upgraded = replace(known, network=known.network | {"weights_sha256": "other"})
    assert embed(tmp_path / "other", first, known=upgraded).read == list(range(len(first)))


def test_hashes_that_are_not_of_these_features_are_not_believed(before: Path) -> None:
    """As where an older version, which writes none, embedded another table in between."""
    first = tables()[0]
    hashes = images_path(before, "tiny")
    pd.read_parquet(hashes).iloc[::-1].to_parquet(hashes, index=False)
    assert known_features(before, "tiny", table_with(first)) is None


def test_features_that_an_older_version_made_are_completed_where_they_are_of_the_table(before: Path) -> None:
    first, second = (table_with(images) for images in tables())
    images_path(before, "tiny").unlink()
    complete_older(before, "tiny", second)
    complete_older(before, "other", first)
    assert not images_path(before, "tiny").exists(), "of other images"
    complete_older(before, "tiny", first)
    known = known_features(before, "tiny", first)
    assert known is not None and known.rows.tolist() == list(range(len(first)))


def test_what_is_damaged_or_not_there_is_not_known(before: Path, tmp_path: Path) -> None:
    table = table_with(tables()[0])
    assert known_features(tmp_path / "nothing", "tiny", table) is None
    assert known_features(before, "tiny", table_with(OTHERS)) is None
    found = known_features(before, "tiny", table)
    assert found is not None and found.rows.tolist() == list(range(len(table)))
    values, hashes = values_path(before, "tiny"), images_path(before, "tiny")
    whole = values.read_bytes()
    values.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert known_features(before, "tiny", table) is None
    values.write_bytes(whole)
    assert known_features(before, "tiny", table) is not None
    hashes.write_bytes(b"PAR1")
    assert known_features(before, "tiny", table) is None


def test_images_that_are_there_twice_have_the_features_of_one() -> None:
    known = KnownFeatures(np.arange(6, dtype=np.float32).reshape(3, 2), np.array([2, -1, 2, 0]), {})
    assert known.copied(0, 4).tolist() == [[4, 5], [0, 0], [4, 5], [0, 1]]
    assert known.copied(2, 2).shape == (0, 2)
