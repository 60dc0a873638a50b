"""Near-duplicates: planted copies are found, other images are not, and what cannot be told is not guessed."""

import numpy as np
import pytest
import torch

from scripts.bench.duplicates import not_plain, patches, searched
from scripts.bench.planted_duplicates import CHANGES, plant
from trainers import duplicates
from trainers.alignment import overlay, window_of
from trainers.duplicates import Looks, duplicate_sets, identical_sets, is_plain, linked_sets, look_at, near_pairs


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    """Patches of photographs by which the rule was not fitted."""
    return patches()[1::2]


def thumbnails_of(images: list[np.ndarray]) -> np.ndarray:
    return plant(images, num_copies=0, image_size=64, rng=np.random.default_rng(0)).thumbnails


def test_planted_copies_of_photographs_are_found_with_few_false_pairs(photographs: list[np.ndarray]) -> None:
    compared = not_plain(photographs, image_size=64)
    planted = plant(compared, num_copies=270, image_size=64, rng=np.random.default_rng(8))
    found = searched(planted)
    assert found["recall"] >= 0.95 and min(found["recall_by_kind"].values()) >= 0.85
    assert found["num_false"] <= 0.01 * found["num_reported"] and found["num_reported"] >= 250


def test_where_there_are_no_copies_there_are_no_pairs(photographs: list[np.ndarray]) -> None:
    assert len(near_pairs(thumbnails_of(photographs)).left) <= 1


def test_a_rule_that_asks_for_nothing_would_report_false_pairs(
    photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "MIN_LOG_ODDS", -np.inf)
    assert len(near_pairs(thumbnails_of(photographs)).left) > 20


@pytest.mark.parametrize("change", ["turned", "brighter", "negative"])
def test_what_is_said_not_to_be_found_is_not(photographs: list[np.ndarray], change: str) -> None:
    images = [image for image in photographs if image.std() > 40][:20]
    copies = {
        "turned": [np.rot90(image).copy() for image in images],
        "brighter": [(image * 0.5).astype(np.uint8) for image in images],
        "negative": [255 - image for image in images],
    }[change]
    assert len(near_pairs(thumbnails_of([*images, *copies])).left) == 0


def test_a_pair_is_told_once_with_its_mirror_and_its_likeness(photographs: list[np.ndarray]) -> None:
    images = [image for image in photographs if image.std() > 40][:10]
    pairs = near_pairs(thumbnails_of([*images, images[3][:, ::-1].copy()]))
    assert pairs.left.tolist() == [3] and pairs.right.tolist() == [10] and pairs.mirrored.tolist() == [True]
    assert pairs.correlation[0] > 0.999 and pairs.difference[0] < 1


def test_an_alignment_finds_the_window_it_was_cut_from(photographs: list[np.ndarray]) -> None:
    images = thumbnails_of([image for image in photographs if image.std() > 40][:40])
    whole = torch.from_numpy(images.astype(np.float32))
    cut = window_of(whole, 0.93)
    aligned = overlay(cut, whole, torch.full((len(whole),), 0.9)).difference
    as_it_is = overlay(cut, whole, torch.full((len(whole),), 0.9), iterations=0).difference
    of_others = overlay(cut, whole.roll(1, 0), torch.full((len(whole),), 0.9)).difference
    assert aligned.median() < 0.5 * as_it_is.median()
    assert aligned.quantile(0.9) < of_others.quantile(0.1)


def test_embeddings_find_candidates_that_thumbnails_miss(
    photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [image for image in photographs if image.std() > 40][:12]
    thumbnails = thumbnails_of([*images, *(image[:, ::-1].copy() for image in images)])
    real = duplicates._as_pairs
    monkeypatch.setattr(duplicates, "_as_pairs", lambda index, far, view: real(index[:, :0], far[:, :0], view))
    assert len(near_pairs(thumbnails).left) == 0
    features = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    pairs = near_pairs(thumbnails, embeddings=[np.concatenate([features, features])])
    assert {(left, left + 12) for left in range(12)} <= set(zip(pairs.left, pairs.right, strict=True))


def test_plain_images_are_not_compared() -> None:
    rng = np.random.default_rng(0)
    skies = [
        np.full((64, 64), 150 + k, dtype=np.uint8) + rng.integers(0, 3, (64, 64), dtype=np.uint8) for k in range(6)
    ]
    thumbnails = thumbnails_of(skies)
    assert is_plain(thumbnails).all() and len(near_pairs(thumbnails).left) == 0


@pytest.mark.parametrize("num", [0, 1, 2])
def test_few_images_are_no_problem(num: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num, 28, 28, 1), dtype=np.uint8)
    looks = look_at(images.__getitem__, range(num))
    assert duplicate_sets([str(row) for row in range(num)], looks).tolist() == list(range(num))


def test_identical_images_are_a_set_by_bytes_or_by_pixels() -> None:
    looks = Looks(np.zeros((5, 8, 8), dtype=np.uint8), ["p", "p", "q", "r", "s"])
    assert identical_sets(["1", "2", "2", "3", "4"], looks).tolist() == [0, 0, 0, 1, 2]


def test_sets_that_are_linked_become_one_also_through_others() -> None:
    sets = np.array([0, 1, 1, 2, 3, 4])
    assert linked_sets(sets, np.array([0, 3]), np.array([2, 2])).tolist() == [0, 1, 1, 0, 0, 2]
    assert linked_sets(sets, np.array([], dtype=int), np.array([], dtype=int)).tolist() == sets.tolist()


def test_sets_join_copies_of_copies(photographs: list[np.ndarray]) -> None:
    image, other = [image for image in photographs if image.std() > 40][:2]
    rng = np.random.default_rng(0)
    images = [image, other, *plant([image], num_copies=len(CHANGES), image_size=64, rng=rng).thumbnails[1:]]
    looks = Looks(thumbnails_of(images), [str(row) for row in range(len(images))])
    assert duplicate_sets([str(row) for row in range(len(images))], looks).tolist() == [0, 1] + [0] * len(CHANGES)
