from collections import Counter

import numpy as np
import pytest
from torch.utils.data import DataLoader

from configs.errors import InputError
from trainers.samplers import BLOCK_STEPS, SAMPLERS, BatchSampler, StepBatches, build_sampler

TARGETS = np.random.default_rng(0).permutation(np.repeat([0, 1], [190, 11])).astype(np.int64)
MANY = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [200, 60, 17, 5])).astype(np.int64)


def make_sampler(name: str, targets: np.ndarray = TARGETS, **changes) -> BatchSampler:
    settings = {"num_classes": 2, "batch_size": 16, "seed": 3, "balance": 1.0, "positives": 4}
    return build_sampler(name, targets, **{**settings, **changes})


def make_samplers(seed: int = 3) -> dict[str, BatchSampler]:
    """One of every kind, and what comes near the limits: classes of five rows, uneven shares, one class of two rows."""
    return {
        **{name: make_sampler(name, seed=seed) for name in SAMPLERS},
        "half balanced": make_sampler("balanced", balance=0.5, seed=seed),
        "four classes": make_sampler("balanced", MANY, num_classes=4, batch_size=23, balance=0.7, seed=seed),
        "two positives": make_sampler("positives_per_batch", np.r_[np.zeros(40, int), 1, 1], positives=7, seed=seed),
    }


@pytest.mark.parametrize("name", make_samplers())
def test_a_batch_does_not_depend_on_the_batches_asked_before(name):
    last = BLOCK_STEPS + 40
    one_by_one = make_samplers()[name]
    expected = [one_by_one.batch(step) for step in range(last + 1)]
    for step in (last, 0, BLOCK_STEPS, BLOCK_STEPS - 1, 7):
        positions, draws = make_samplers()[name].batch(step)
        assert np.array_equal(positions, expected[step][0]) and np.array_equal(draws, expected[step][1])
    other = make_samplers(seed=4)[name].batch(last)
    assert not np.array_equal(other[0], expected[last][0]), "another seed gives other batches"
    assert not np.array_equal(expected[last - 1][0], expected[last][0]), "so does the step before"


@pytest.mark.parametrize("name", make_samplers())
def test_draws_count_the_earlier_showings_and_every_pass_is_complete(name):
    sampler = make_samplers()[name]
    shown: Counter[int] = Counter()
    for step in range(120):
        positions, draws = sampler.batch(step)
        assert positions.dtype == draws.dtype == np.int64 and len(positions) == len(draws) == sampler.batch_size
        for position, draw in sorted(zip(positions.tolist(), draws.tolist(), strict=True)):
            assert draw == shown[position], "a brute-force count"
            shown[position] += 1
    targets = MANY if name == "four classes" else TARGETS
    if name != "two positives":
        groups = [np.arange(len(targets))] if name == "natural" else [np.flatnonzero(targets == c) for c in range(4)]
        for group in groups:
            counts = [shown[row] for row in group.tolist()]
            assert not counts or max(counts) - min(counts) <= 1, "no row is shown twice before all were shown"


@pytest.mark.parametrize("name", make_samplers())
def test_class_counts_are_as_expected_on_average_and_within_one_of_it(name):
    sampler = make_samplers()[name]
    targets = {"four classes": MANY, "two positives": np.r_[np.zeros(40, int), 1, 1]}.get(name, TARGETS)
    num_classes = len(sampler.class_shares)
    counts = np.array([np.bincount(targets[sampler.batch(s)[0]], minlength=num_classes) for s in range(1500)])
    expected = sampler.batch_size * sampler.class_shares
    assert sampler.class_shares.sum() == pytest.approx(1.0)
    assert np.abs(counts.mean(axis=0) - expected).max() < 0.06
    if name != "natural":  # whose single stream leaves the classes to chance
        assert np.abs(counts - expected).max() < 1 + 1e-9


def test_shares_are_those_that_the_names_promise():
    assert np.allclose(make_sampler("natural").class_shares, [190 / 201, 11 / 201])
    assert np.allclose(make_sampler("balanced").class_shares, [0.5, 0.5])
    assert np.allclose(make_sampler("balanced", balance=0.0).class_shares, [190 / 201, 11 / 201])
    root = np.sqrt([190, 11])
    assert np.allclose(make_sampler("balanced", balance=0.5).class_shares, root / root.sum())
    assert np.allclose(make_sampler("positives_per_batch").class_shares, [0.75, 0.25])


def test_fixed_positives_are_exact_even_when_there_are_fewer_rows_than_asked():
    targets = np.r_[np.zeros(50, dtype=np.int64), 1, 1, 1]
    sampler = make_sampler("positives_per_batch", targets, positives=7)
    for step in range(300):
        positions, draws = sampler.batch(step)
        assert targets[positions].sum() == 7
        assert len(set(zip(positions.tolist(), draws.tolist(), strict=True))) == 16


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_devices_share_out_the_same_batch(world_size):
    sampler = make_sampler("balanced")
    ranks = [
        list(StepBatches(sampler, start_step=5, stop_step=9, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    for number, step in enumerate(range(5, 9)):
        together = sorted(item for rank in ranks for item in rank[number])
        positions, draws = sampler.batch(step)
        assert together == sorted(zip(positions.tolist(), draws.tolist(), strict=True))
        assert {len(rank[number]) for rank in ranks} == {16 // world_size}


def test_a_loader_resumes_where_it_stopped_and_the_wrong_step_is_noticed():
    def load(start: int) -> list[list[tuple[int, int]]]:
        batches = StepBatches(make_sampler("balanced"), start_step=start, stop_step=12)
        assert len(batches) == 12 - start
        items = {(row, draw): (row, draw) for batch in batches for row, draw in batch}
        return list(DataLoader(items, batch_sampler=batches, collate_fn=list))

    whole = load(0)
    assert load(7) == whole[7:]
    assert load(6)[:5] != whole[7:], "the control: a resume that is one step off"


def test_every_pass_has_an_order_of_its_own():
    targets = np.array([0, 1] * 32)
    sampler = make_sampler("natural", targets)
    passes = [np.concatenate([sampler.batch(4 * number + part)[0] for part in range(4)]) for number in range(3)]
    batches = {tuple(sorted(order[:16].tolist())) for order in passes}
    assert len(batches) == 3 and all(sorted(order.tolist()) == list(range(64)) for order in passes)


def test_classes_are_mixed_within_a_batch():
    sampler = make_sampler("balanced")
    halves = [TARGETS[sampler.batch(step)[0]][:8].sum() for step in range(100)]
    assert 3.5 < np.mean(halves) < 4.5 and min(halves) < 4 < max(halves)


def test_a_class_without_rows_is_refused_with_the_counts():
    for name in SAMPLERS:
        with pytest.raises(InputError, match="0 positives and 30 negatives"):
            make_sampler(name, np.zeros(30, dtype=np.int64))
    with pytest.raises(InputError, match=r"2 of 5 classes(.|\n)*class 1: 0 of 6 rows(.|\n)*class 4: 0 of 6"):
        make_sampler("balanced", np.array([0, 0, 0, 2, 2, 3]), num_classes=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "blanced"}, "expected one of natural, balanced, positives_per_batch, got 'blanced'"),
        ({"positives": 16}, "expected 1 to 15 in a batch of 16, got 16"),
        ({"positives": 0}, "got 0"),
        ({"targets": MANY, "num_classes": 4}, "is for two classes, got 4"),
        ({"name": "balanced", "balance": 1.5}, r"expected 0 \(natural\) to 1"),
    ],
)
def test_impossible_requests_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make_sampler(**{"name": "positives_per_batch", **changes})


def test_a_batch_that_the_devices_cannot_share_evenly_is_refused():
    with pytest.raises(InputError, match=r"\(16\) must be a multiple of the number of devices \(3\)"):
        StepBatches(make_sampler("balanced"), start_step=0, stop_step=1, rank=0, world_size=3)
