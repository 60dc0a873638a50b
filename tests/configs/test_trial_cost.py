"""What a trial trains more with the pool is told with its numbers."""

from typing import Any

from configs.load import check_config
from configs.trial_cost import cost_of_pool


def cost(**values: Any) -> str:
    return str(cost_of_pool(check_config(values, "test")))


def test_without_the_pool_there_is_nothing_to_tell() -> None:
    assert cost() == "None"


def test_students_cost_their_teachers_and_every_round() -> None:
    told = cost(pool={"arm": "pseudo"}, pseudo={"rounds": 2})
    assert "trains 18 networks for a trial (supervised, pseudo-1, pseudo-2), without the pool it is 6" in told
    assert "64 images of the pool beside each labelled batch" in told and "cannot be given up between its folds" in told
    told = cost(pool={"arm": "pseudo"}, pseudo={"teacher": "pretrained", "inner_holdout": 0.2})
    assert "trains 24 networks for a trial (supervised, pretrained, pseudo-1, teacher-pretrained)" in told
    assert "2 backbones learn from the pool before, 5,000 steps each" in told
    told = cost(pool={"arm": "pseudo"}, pseudo={"start": "pretrained"})
    assert "trains 12 networks for a trial (supervised, pseudo-1)" in told and "2 backbones learn from the pool" in told


def test_an_arm_of_its_own_is_all_that_is_trained() -> None:
    assert "trains 6 networks for a trial (pretrained), without the pool it is 6; 2 back" in cost(
        pool={"arm": "pretrained"}
    )
    clusters = cost(pool={"arm": "semi"}, semi={"background_classes": 5, "batch_size": 32})
    assert "trains 12 networks for a trial (supervised, semi)" in clusters
    assert "those of semi see 32 images of the pool beside each labelled batch" in clusters


def test_each_arm_has_its_own_number_of_pool_images() -> None:
    told = cost(pool={"arm": "pseudo"}, pseudo={"teacher": "semi", "batch_size": 32}, semi={"batch_size": 128})
    assert "those of semi see 128 images" in told and "those of pseudo-1 see 32 images" in told
