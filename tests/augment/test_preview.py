import numpy as np
import pytest

from augment.policies import build_policy
from augment.preview import augmentation_grid
from configs.errors import InputError


def make_policy(channels: int):
    return build_policy(
        "heavy",
        image_size=16,
        channels=channels,
        horizontal_flip=True,
        vertical_flip=False,
        quarter_turns=False,
        rotate_degrees=20.0,
        seed=0,
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_shows_the_original_then_the_draws_with_white_gaps(channels):
    images = list(np.random.default_rng(0).integers(0, 200, (2, 16, 16, channels), dtype=np.uint8))
    policy = make_policy(channels)
    grid = augmentation_grid(images, policy, columns=3)
    assert grid.dtype == np.uint8 and grid.shape == (2 * 16 + 2, 4 * 16 + 3 * 2, 3)
    assert np.array_equal(grid[18:34, :16], np.broadcast_to(images[1], (16, 16, 3)))
    drawn = policy(images[1], index=1, draw=2)
    assert np.array_equal(grid[18:34, 54:70], np.broadcast_to(drawn, (16, 16, 3)))
    assert (grid[16:18] == 255).all() and (grid[:, 16:18] == 255).all()
    assert not np.array_equal(grid[:16, 18:34], grid[:16, 36:52])


def test_an_empty_grid_is_refused():
    with pytest.raises(InputError, match="at least one image and one column, got 0 and 3"):
        augmentation_grid([], make_policy(1), columns=3)
