import os
import pickle
import random
import subprocess
import sys
from collections import Counter
from functools import cache

import cv2
import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch.utils.data import DataLoader, Dataset

from augment.geometry import Dropout, Warp, crop_matrix, drop_rectangles, warp, warp_matrix
from augment.policies import ELASTIC_CELLS, Policy, _recolour, _Stream, build_policy
from augment.recipes import RECIPES, OneOf, _strict
from configs.errors import InputError

SIZE = 24


def make_policy(name: str = "heavy", **changes) -> Policy:
    settings = {
        "image_size": SIZE,
        "channels": 1,
        "strength": 1.0,
        "horizontal_flip": True,
        "vertical_flip": True,
        "quarter_turns": True,
        "rotate_degrees": 30.0,
        "seed": 7,
    }
    return build_policy(name, **{**settings, **changes})


@cache
def make_image(size: int = SIZE, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Smooth, without any symmetry, using most of the grey levels."""
    noise = np.random.default_rng(seed).normal(size=(size, size, channels))
    smooth = ndimage.gaussian_filter(noise, sigma=(size / 8, size / 8, 0))
    spread = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    image = (20 + 215 * spread).astype(np.uint8)
    image.setflags(write=False)
    return image


def symmetries(image: np.ndarray) -> dict[str, np.ndarray]:
    turned = {f"turn{k}": np.rot90(image, k) for k in range(4)}
    return turned | {f"mirrored{k}": np.rot90(image[:, ::-1], k) for k in range(4)}


def reached(policy: Policy, image: np.ndarray, draws: int = 150) -> dict[str, int]:
    counts: dict[str, int] = {}
    for draw in range(draws):
        out = policy(image, index=0, draw=draw).astype(int)
        errors = {name: np.abs(out - other).max() for name, other in symmetries(image).items()}
        nearest = min(errors, key=errors.__getitem__)
        assert errors[nearest] <= 2, "the rest of the geometry was meant to be off"
        counts[nearest] = counts.get(nearest, 0) + 1
    return counts


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 16, 33, 224, 512])
def test_every_policy_keeps_shape_and_type_and_never_touches_its_input(name, channels, size):
    image = make_image(size, channels)
    assert not image.flags.writeable
    for strength in (0.05, 1.0, 2.0):
        policy = make_policy(name, image_size=size, channels=channels, strength=strength)
        for draw in range(40 if size <= 33 else 3):
            out = policy(image, index=3, draw=draw)
            assert out.shape == image.shape and out.dtype == np.uint8
            assert out.flags.c_contiguous and out.flags.writeable and not np.shares_memory(out, image)


@pytest.mark.parametrize("name", ["light", "heavy", "views"])
def test_a_result_depends_on_seed_draw_and_index_alone(name):
    image = make_image()
    policy = make_policy(name)
    keys = [(index, draw) for index in range(4) for draw in range(4)]
    first = {key: policy(image, index=key[0], draw=key[1]) for key in keys}
    again = {key: make_policy(name)(image, index=key[0], draw=key[1]) for key in reversed(keys)}
    assert all(np.array_equal(first[key], again[key]) for key in keys)
    assert len({out.tobytes() for out in first.values()}) == len(keys)
    other_seed = make_policy(name, seed=8)
    assert not any(np.array_equal(first[key], other_seed(image, index=key[0], draw=key[1])) for key in keys)


class _Varied(Dataset):
    """Images varied by a policy, or, as the control, by a generator that each process keeps for itself."""

    def __init__(self, policy: Policy, *, stateful: bool) -> None:
        self.policy = policy
        self.stateful = stateful
        self.calls = 0

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> np.ndarray:
        self.calls += 1
        draw = self.calls if self.stateful else 0
        return self.policy(make_image(seed=index), index=0 if self.stateful else index, draw=draw)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_results_do_not_depend_on_the_number_of_workers():
    cv2.setNumThreads(0)  # a forked worker would wait for ever for threads that only this process has

    def load(workers: int, *, stateful: bool) -> np.ndarray:
        loader = DataLoader(_Varied(make_policy(), stateful=stateful), batch_size=4, num_workers=workers)
        return np.concatenate([batch.numpy() for batch in loader])

    expected = load(0, stateful=False)
    assert np.array_equal(load(1, stateful=False), expected)
    assert np.array_equal(load(3, stateful=False), expected)
    assert not np.array_equal(load(3, stateful=True), load(0, stateful=True)), "the control must notice the workers"


def test_a_policy_travels_to_other_processes_as_its_settings():
    policy = make_policy(channels=3)
    packed = pickle.dumps(policy)
    image = make_image(channels=3)
    assert len(packed) < 500
    assert np.array_equal(pickle.loads(packed)(image, index=1, draw=2), policy(image, index=1, draw=2))


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ((), {"turn0"}),
        (("horizontal_flip",), {"turn0", "mirrored0"}),
        (("vertical_flip",), {"turn0", "mirrored2"}),
        (("quarter_turns",), {"turn0", "turn1", "turn2", "turn3"}),
        (("horizontal_flip", "vertical_flip"), {"turn0", "mirrored0", "mirrored2", "turn2"}),
        (("horizontal_flip", "quarter_turns"), set(symmetries(make_image()))),
    ],
)
def test_flips_and_turns_reach_what_is_allowed_and_nothing_else(allowed, expected):
    flags = {flag: flag in allowed for flag in ("horizontal_flip", "vertical_flip", "quarter_turns")}
    policy = make_policy("light", strength=1e-6, rotate_degrees=0.0, **flags)
    counts = reached(policy, make_image())
    assert set(counts) == expected
    assert min(counts.values()) > 0.5 * sum(counts.values()) / len(expected), "all of them about equally often"


def turned_degrees(matrix: np.ndarray, size: int) -> float:
    """By how much a homography turns the image at its centre: the rotation of its derivative's polar decomposition."""
    middle = np.array([(size - 1) / 2, (size - 1) / 2, 1.0])
    step = 1e-4
    columns = []
    for direction in np.eye(3)[:2]:
        ahead, behind = matrix @ (middle + step * direction), matrix @ (middle - step * direction)
        columns.append((ahead[:2] / ahead[2] - behind[:2] / behind[2]) / (2 * step))
    derivative = np.stack(columns, axis=1)
    return float(np.degrees(np.arctan2(derivative[1, 0] - derivative[0, 1], np.trace(derivative))))


@pytest.mark.parametrize("name", ["light", "heavy", "views"])
@pytest.mark.parametrize("strength", [1.0, 2.0])
@pytest.mark.parametrize("degrees", [0.0, 15.0])
def test_the_warp_never_mirrors_and_keeps_the_promised_rotation(name, strength, degrees):
    limits = make_policy(name, strength=strength, rotate_degrees=degrees).recipe.warp
    rng = np.random.default_rng(0)
    for _ in range(300):
        shares = rng.choice([-1.0, 0.0, 1.0], size=8).tolist()
        matrix = warp_matrix(shares, limits, SIZE)
        corners = np.array([[x, y, 1.0] for x in (0, SIZE - 1) for y in (0, SIZE - 1)]).T
        # The sign of a homography's orientation at a point is that of det / denominator^3.
        assert np.linalg.det(matrix) > 0 and (matrix[2] @ corners > 0).all()
        assert abs(turned_degrees(matrix, SIZE)) < degrees + 1e-3


def test_a_shear_of_one_axis_alone_would_turn_the_image():
    # the control: the same change of angle, put on the vertical alone
    size, slope = SIZE, np.tan(np.radians(16.0))
    sheared = np.array([[1.0, slope, -slope * (size - 1) / 2], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert abs(turned_degrees(sheared, size)) > 5.0


@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_elastic_fields_never_fold_the_image(strength):
    size = 32

    def least_area(reach: float, rng: np.random.Generator) -> float:
        cells = rng.uniform(-reach, reach, (ELASTIC_CELLS, ELASTIC_CELLS, 2)).astype(np.float32)
        bend = cv2.resize(cells, (size, size), interpolation=cv2.INTER_CUBIC)
        along, down = np.diff(bend, axis=1)[:-1], np.diff(bend, axis=0)[:, :-1]  # change of (x, y) per pixel
        areas = (1 + along[..., 0]) * (1 + down[..., 1]) - along[..., 1] * down[..., 0]
        return float(areas.min())

    reach = make_policy(strength=strength, image_size=size).recipe.warp.elastic * size
    assert min(least_area(reach, np.random.default_rng(seed)) for seed in range(1000)) > 0
    assert min(least_area(0.08 * size, np.random.default_rng(seed)) for seed in range(1000)) < 0  # the control


def test_strength_weakens_rotation_but_never_exceeds_it():
    assert make_policy(strength=0.5).recipe.warp.rotate_degrees == pytest.approx(15.0)
    assert make_policy(strength=2.0).recipe.warp.rotate_degrees == pytest.approx(30.0)


def only(**limits: float) -> Warp:
    names = ("rotate_degrees", "scale", "aspect", "shear_degrees", "shift", "perspective")
    return Warp(
        probability=1.0, elastic=0.0, elastic_probability=0.0, **{name: limits.get(name, 0.0) for name in names}
    )


@pytest.mark.parametrize("size", [SIZE, 80])  # both interpolations
def test_warp_by_a_quarter_and_by_whole_pixels_is_exact(size):
    image = make_image(size, channels=3)
    quarter = warp(image, warp_matrix([1.0, *[0.0] * 7], only(rotate_degrees=90.0), size))
    assert np.abs(quarter.astype(int) - np.rot90(image, 1)).max() <= 1
    shifted = warp(image, warp_matrix([0.0] * 4 + [1.0] + [0.0] * 3, only(shift=3 / size), size))
    assert np.abs(shifted[:, :-3].astype(int) - image[:, 3:]).max() <= 1


def test_warp_agrees_with_scipy_inside_the_image():
    size = 96
    image = make_image(size)
    limits = only(rotate_degrees=20.0, scale=0.3, aspect=0.2, shear_degrees=10.0, shift=0.1)
    rng = np.random.default_rng(1)
    for _ in range(5):
        matrix = warp_matrix(rng.uniform(-1, 1, 8).tolist(), limits, size)
        swap = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]])  # scipy counts rows first
        expected = ndimage.affine_transform(image[..., 0].astype(float), swap @ matrix @ swap, order=1, cval=-1.0)
        known = ndimage.binary_erosion(expected > 0, iterations=2)
        assert known.mean() > 0.3
        assert np.abs(warp(image, matrix)[..., 0] - expected)[known].max() <= 3


def test_elastic_cells_that_agree_are_a_shift():
    image = make_image()
    cells = np.full((5, 5, 2), 2.0, dtype=np.float32)
    assert np.array_equal(warp(image, np.eye(3), cells)[:-2, :-2], image[2:, 2:])


def test_what_comes_from_outside_is_the_plain_ground_or_the_mirror_image():
    shift = warp_matrix([0.0] * 4 + [-1.0] + [0.0] * 3, only(shift=8 / SIZE), SIZE)  # 8 pixels to the right
    object_on_black = np.zeros((SIZE, SIZE, 1), dtype=np.uint8)
    object_on_black[8:16, :12] = 200
    assert warp(object_on_black, shift)[:, :8].max() == 0
    picture = make_image()
    assert np.array_equal(warp(picture, shift)[:, :8], picture[:, 1:9][:, ::-1])


def test_strength_scales_how_far_an_image_is_moved():
    image = make_image(size=32)
    still = {"image_size": 32, "horizontal_flip": False, "vertical_flip": False, "quarter_turns": False}
    for name in ("light", "heavy"):
        distances = [
            np.mean(
                [
                    np.abs(make_policy(name, strength=strength, **still)(image, index=0, draw=draw).astype(int) - image)
                    for draw in range(40)
                ]
            )
            for strength in (0.02, 0.3, 1.0)
        ]
        assert distances[0] < 3 < distances[2] and distances[0] < distances[1] < distances[2], (name, distances)
    assert np.array_equal(make_policy("none", **still)(image, index=0, draw=0), image)


def test_transforms_of_equal_probability_act_independently():
    import albumentations as A

    image = make_image()
    stream = _Stream(0)
    choices = [OneOf(0.5, [A.HorizontalFlip(p=1.0)]), OneOf(0.5, [A.VerticalFlip(p=1.0)])]
    ours = set()
    for draw in range(40):
        stream.at(draw, 0)
        ours.add(_recolour(image, choices, stream).tobytes())
    assert len(ours) == 4
    pipeline = A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)], strict=True)
    library = set()
    for seed in range(40):
        pipeline.set_random_seed(seed)
        library.add(pipeline(image=image)["image"].tobytes())
    assert len(library) == 2, "the library's own seeding is mended: use it"


def test_one_of_several_is_applied_as_often_as_asked():
    import albumentations as A

    image, stream = make_image(), _Stream(3)
    half_turn = [A.Rotate(limit=(180, 180), p=1.0)]
    choice = OneOf(0.75, [A.HorizontalFlip(p=1.0), A.VerticalFlip(p=1.0), *half_turn])
    counts: Counter[bytes] = Counter()
    for draw in range(800):
        stream.at(draw, 0)
        counts[_recolour(image, [choice], stream).tobytes()] += 1
    assert counts.pop(image.tobytes()) == pytest.approx(200, abs=50)
    assert len(counts) == 3 and all(count == pytest.approx(200, abs=50) for count in counts.values())


@pytest.mark.parametrize("seed", [0, 7, 2**63 + 1])
def test_a_stream_depends_on_seed_draw_and_index_and_forgets_what_was_drawn(seed):
    stream = _Stream(seed)

    def numbers(draw: int, index: int) -> tuple[float, ...]:
        rng = stream.at(draw, index)
        stream.seed_python()
        return *rng.random(3).tolist(), stream.py_random.random(), rng.integers(100, dtype=np.uint32)

    first = {key: numbers(*key) for key in [(0, 0), (0, 1), (1, 0), (2**40, 2**40)]}
    assert len({value[0] for value in first.values()}) == len(first)
    assert {key: numbers(*key) for key in reversed(first)} == first


def test_dropout_covers_rectangles_of_the_asked_size_inside_the_image():
    image = np.full((40, 40, 3), 255, dtype=np.uint8)
    limits = Dropout(probability=1.0, max_holes=1, min_side=0.25, max_side=0.5)
    for seed in range(60):
        changed = (drop_rectangles(image, limits, np.random.default_rng(seed)) != 255).any(axis=2)
        rows, columns = changed.any(axis=1).sum(), changed.any(axis=0).sum()
        assert 10 <= rows <= 20 and 10 <= columns <= 20 and changed.sum() == rows * columns
    assert (image == 255).all()


def test_heavy_augmentation_keeps_the_class():
    digits = load_digits()
    images = np.kron(digits.images * 255 / 16, np.ones((1, 2, 2)))[..., None].astype(np.uint8)[:1200]
    policy = make_policy(
        image_size=16, horizontal_flip=False, vertical_flip=False, quarter_turns=False, rotate_degrees=15.0
    )
    varied = np.stack([policy(image, index=index, draw=0) for index, image in enumerate(images)])
    train, test = slice(0, 800), slice(800, 1200)
    model = KNeighborsClassifier(3).fit(varied[train].reshape(800, -1), digits.target[:800])
    clean, hard = (model.score(x[test].reshape(400, -1), digits.target[800:1200]) for x in (images, varied))
    assert clean > 0.85 and hard > 0.6, (clean, hard)  # chance: 0.1


def test_wrong_settings_are_named_together():
    with pytest.raises(InputError, match="expected one of none, light, heavy, views, got 'hevy'") as error:
        make_policy("hevy", channels=4, strength=3.0, rotate_degrees=-1.0)
    assert all(word in str(error.value) for word in ("got 4", "got 3.0", "got -1.0"))


def test_an_image_of_another_shape_or_type_is_refused():
    policy = make_policy()
    for image in (make_image(SIZE + 1), make_image(channels=3), make_image().astype(np.float32)):
        with pytest.raises(ValueError, match=r"uint8 images of shape \(24, 24, 1\)"):
            policy(image, index=0, draw=0)


def test_albumentations_is_imported_late_strictly_and_without_asking_the_network():
    code = "import sys, augment.policies; sys.exit('albumentations' in sys.modules or 'torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0
    make_policy("light")
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"
    import albumentations as A

    with pytest.warns(UserWarning, match="brightnes_limit"):
        misspelt = A.RandomBrightnessContrast(brightnes_limit=0.1)
    with pytest.raises(ValueError, match="brightnes_limit"):
        _strict([misspelt])


def test_a_call_leaves_the_global_random_streams_alone():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    make_policy()(make_image(), index=0, draw=0)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def test_a_crop_shows_a_window_that_lies_within_the_image():
    rng = np.random.default_rng(0)
    corners = np.array([[-0.5, -0.5], [SIZE - 0.5, -0.5], [-0.5, SIZE - 0.5], [SIZE - 0.5, SIZE - 0.5]])
    areas = []
    for _ in range(500):
        shown = cv2.perspectiveTransform(corners[None], crop_matrix(rng.random(4).tolist(), 0.3, SIZE))[0]
        assert shown.min() >= -0.5 - 1e-9 and shown.max() <= SIZE - 0.5 + 1e-9
        width, height = shown[3] - shown[0]
        assert 3 / 4 - 1e-9 <= width / height <= 4 / 3 + 1e-9
        areas.append(width * height / SIZE**2)
    assert 0.3 - 1e-9 <= min(areas) < 0.33 and 0.9 < max(areas) <= 1.0
    whole = crop_matrix([1.0, 0.5, 0.2, 0.9], 0.3, SIZE)
    np.testing.assert_allclose(whole, np.eye(3), atol=1e-12)


def test_views_of_an_image_are_crops_of_it_and_whole_images_are_asked_for():
    gradient = np.broadcast_to(np.linspace(0, 255, SIZE).astype(np.uint8)[:, None], (SIZE, SIZE))[..., None].copy()

    def heights(min_crop: float) -> list[float]:
        """How much of the gradient from top to bottom each view shows."""
        views = make_policy("views", min_crop=min_crop, rotate_degrees=0.0, strength=0.01, quarter_turns=False)
        shown = [views(gradient, index=0, draw=draw)[..., 0].astype(float) for draw in range(200)]
        return [abs(np.median(image[-1]) - np.median(image[0])) / 255 for image in shown]

    assert np.median(heights(0.1)) < 0.8
    assert np.median(heights(1.0)) > 0.85
