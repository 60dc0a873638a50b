from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import InputError
from configs.tuning_plan import TuningPlan, ends, load_plan, rung_steps

BASE = {"name": "t", "models": [{"backbone": "a"}, {"backbone": "b"}], "train": {"steps": 900, "lr": 0.001}}
LR = {"train.lr": {"low": 1e-4, "high": 1e-2, "log": True}}


def plan_of(folder: Path, space: dict[str, Any], *given: str, **settings: Any) -> TuningPlan:
    (folder / "config.yaml").write_text(yaml.safe_dump(BASE))
    (folder / "space.yaml").write_text(yaml.safe_dump({**settings, "space": space}))
    return load_plan(folder / "config.yaml", folder / "space.yaml", given)


def refused(folder: Path, space: dict[str, Any], *given: str, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        plan_of(folder, space, *given, **settings)
    return str(caught.value)


def test_a_trial_is_the_config_with_the_chosen_values(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {**LR, "models.0.train.lr": {"low": 0.1, "high": 0.2}}, "train.batch_size=32")
    config = plan.config({"train.lr": 0.005, "models.0.train.lr": 0.15})
    assert (config.train.lr, config.train.batch_size) == (0.005, 32)
    assert config.train_for(config.models[0]).lr == 0.15
    assert plan.config().train.lr == 0.001


def test_ranges_are_of_integers_where_the_config_has_one(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"train.steps": {"low": 100, "high": 400}, "train.weight_decay": {"low": 0, "high": 1}})
    assert plan.tuning.space["train.steps"].ends == [100, 400]
    assert plan.tuning.space["train.steps"].is_integer
    assert not plan.tuning.space["train.weight_decay"].is_integer


def test_numbers_as_yaml_reads_them_are_numbers(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"train.lr": {"low": "1e-4", "high": "1e-2", "log": True}})
    assert plan.tuning.space["train.lr"].ends == [1e-4, 1e-2]


def test_every_two_of_four_networks_are_a_choice(tmp_path: Path) -> None:
    networks = [{"backbone": name} for name in "abcd"]
    plan = plan_of(tmp_path, {"models": {"pairs_of": networks}})
    assert list(plan.tuning.space["models"].values) == ["a + b", "a + c", "a + d", "b + c", "b + d", "c + d"]
    assert [model.name for model in plan.config({"models": "b + d"}).models] == ["b", "d"]


def test_choices_may_be_sections_with_names(tmp_path: Path) -> None:
    choices = {"sharp": {"name": "focal", "gamma": 3}, "plain": {"name": "cross_entropy"}}
    plan = plan_of(tmp_path, {"train.loss": {"choices": choices}})
    assert plan.config({"train.loss": "sharp"}).train.loss.gamma == 3
    assert "need names" in refused(tmp_path, {"train.loss": {"choices": list(choices.values())}})


def test_a_field_is_searched_where_its_condition_holds(tmp_path: Path) -> None:
    gamma = {"low": 0.5, "high": 4.0, "when": {"train.loss.name": ["focal"]}}
    plan = plan_of(tmp_path, {"train.loss.gamma": gamma, "train.loss.name": {"choices": ["focal", "cross_entropy"]}})
    assert plan.tuning.ordered == ["train.loss.name", "train.loss.gamma"]
    assert plan.tuning.is_searched("train.loss.gamma", {"train.loss.name": "focal"})
    assert not plan.tuning.is_searched("train.loss.gamma", {"train.loss.name": "cross_entropy"})
    assert {"train.loss.name": "focal", "train.loss.gamma": 4.0} in list(ends(plan.tuning))


def test_a_grid_has_as_many_trials_as_combinations(tmp_path: Path) -> None:
    space = {
        "train.loss.name": {"choices": ["focal", "cross_entropy"]},
        "train.loss.gamma": {"choices": [1, 2, 3], "when": {"train.loss.name": "focal"}},
        "train.lr": {"choices": [0.1, 0.2]},
    }
    assert plan_of(tmp_path, space, sampler="grid", trials=40).tuning.num_trials == 8
    assert plan_of(tmp_path, space, sampler="grid", trials=5).tuning.num_trials == 5
    assert plan_of(tmp_path, space, trials=40).tuning.num_trials == 40
    assert "train.lr is a range" in refused(tmp_path, LR, sampler="grid")


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"train.lr": {"low": -0.1, "high": 0.1}}, "train.lr=-0.1: train.lr: Input should be greater than 0"),
        ({"train.leaning_rate": {"low": 0, "high": 1}}, "leaning_rate: unknown key"),
        ({"train.loss.name": {"choices": ["focal", "hinge"]}}, "train.loss.name=hinge"),
        ({"train.lr": {"low": 1, "high": 0.1}}, "expected low < high"),
        ({"train.lr": {"low": 0, "high": 0.1, "log": True}}, "logarithmic scale begins above 0"),
        ({"train.lr": {"low": 0.1}}, "expected low < high"),
        ({"train.lr": {"low": 0.1, "high": 0.2, "choices": [1, 2]}}, "either low and high, or choices"),
        ({"train.lr": {"choices": [0.1]}}, "at least two choices"),
        ({"train.lr": {"choices": [0.1, 0.1]}}, "there twice"),
        ({"seed": {"choices": [1, 2]}}, "a seed that scores well is luck"),
        ({"calibration.method": {"choices": ["logistic", "beta"]}}, "judged by rankings"),
        ({"folds.num_folds": {"choices": [2, 3]}}, "judged on other folds"),
        ({"data.max_rejected": {"low": 0, "high": 1}}, "of data only"),
        ({**LR, "train.steps": {"choices": [5, 6], "when": {"nothing": 1}}}, "when names nothing"),
        ({**LR, "train.steps": {"choices": [5, 6], "when": {"train.lr": 1}}}, "no choices but a range"),
        ({"pool.arm": {"choices": ["none", "all"]}}, "name it"),
        ({"train.lr": {"low": 0.1, "high": 0.2, "lag": True}}, "lag"),
        (
            {
                "train.lr": {"choices": [0.1, 0.2], "when": {"train.steps": 5}},
                "train.steps": {"choices": [5, 6], "when": {"train.lr": 0.1}},
            },
            "wait for each other",
        ),
    ],
)
def test_a_space_that_leaves_what_is_allowed_is_refused_before_the_first_trial(
    tmp_path: Path, space: dict[str, Any], words: str
) -> None:
    message = refused(tmp_path, space)
    assert words in message
    assert "space.yaml" in message


def test_ends_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    """Each alone is right: 20 steps of warm-up, or 10 steps in all."""
    space = {"train.steps": {"low": 10, "high": 900}, "train.warmup_steps": {"choices": [5, 20]}}
    assert "must be less than steps (10)" in refused(tmp_path, space)


def test_what_is_searched_cannot_be_given_too(tmp_path: Path) -> None:
    assert "train.lr: both given and searched" in refused(tmp_path, LR, "train.lr=0.1")


def test_a_study_may_name_its_config(tmp_path: Path) -> None:
    plan_of(tmp_path, LR)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"config": "config.yaml", "space": LR}))
    assert load_plan(tmp_path / "study.yaml", None).config().name == "t"
    with pytest.raises(InputError, match=r"no `space` in it.*--space"):
        load_plan(tmp_path / "config.yaml", None)


def test_a_second_objective_and_giving_up_do_not_go_together(tmp_path: Path) -> None:
    assert plan_of(tmp_path, LR, objective={"second": "seconds"}).tuning.prunes == "none"
    both = {"objective": {"second": "seconds"}, "pruning": {"method": "folds"}}
    assert "pruning.method: none" in refused(tmp_path, LR, **both)


def test_hyperband_trains_the_shortest_first(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, LR, pruning={"method": "hyperband", "min_steps": 100})
    assert rung_steps(plan.tuning.pruning, plan.config()) == [100, 300, 900]
    settings = {"pruning": {"method": "hyperband", "min_steps": 100}}
    assert "train.steps" in refused(tmp_path, {"train.steps": {"choices": [300, 600]}}, **settings)
    assert "hyperband would train 100 steps" in refused(tmp_path, LR, "train.warmup_steps=150", **settings)
