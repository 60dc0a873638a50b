import numpy as np
import pytest
import torch

from augment.views import VIEWS, check_views, weighted_views
from configs.errors import InputError
from configs.schema import ViewConfig

REFERENCES = {
    "identity": lambda image: image,
    "horizontal_flip": np.fliplr,
    "vertical_flip": np.flipud,
    "rotate90": lambda image: np.rot90(image, 1),
    "rotate180": lambda image: np.rot90(image, 2),
    "rotate270": lambda image: np.rot90(image, 3),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_agree_with_numpy(name):
    images = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    viewed = VIEWS[name](images).numpy()
    for batch in range(2):
        for channel in range(3):
            assert np.array_equal(viewed[batch, channel], REFERENCES[name](images[batch, channel].numpy()))


def test_the_views_are_those_that_the_config_knows():
    assert list(VIEWS) == list(ViewConfig.model_fields["view"].annotation.__args__)


def test_weights_are_scaled_to_sum_to_one():
    views = weighted_views(["identity", "rotate90", "vertical_flip"], [2.0, 1.0, 1.0])
    assert [weight for _, weight in views] == [0.5, 0.25, 0.25]
    assert [view for view, _ in views] == [VIEWS["identity"], VIEWS["rotate90"], VIEWS["vertical_flip"]]


def test_unknown_views_are_listed_with_the_known_ones():
    with pytest.raises(InputError, match=r"'rotate45', 'zoom'; the known ones: identity, horizontal_flip"):
        check_views(["identity", "rotate45", "zoom"])


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -2.0]])
def test_weights_that_cannot_be_weights_are_refused(weights):
    with pytest.raises(InputError, match="one weight above 0 for each view"):
        weighted_views(["identity", "rotate90"], weights)
