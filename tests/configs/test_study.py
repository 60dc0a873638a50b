"""A study is checked before anything is run, and those that are kept here name recipes that can be run."""

from pathlib import Path

import pytest

import configs
from configs.errors import InputError
from configs.load import load_config
from configs.study import load_study

FOLDER = Path(configs.__file__).parent
STUDIES = sorted(set(FOLDER.glob("*_study.yaml")) - {FOLDER / "pool_study.yaml"})  # which is of another kind


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_recipe_of_a_study_is_a_config_of_its_own(path: Path) -> None:
    plan = load_study(path)
    resolved = [load_config(path.parent / plan.preset, plan.overrides(name)) for name in (*plan.recipes, *plan.oracle)]
    assert len({config.model_dump_json() for config in resolved}) == len(resolved)


def test_what_recipes_have_in_common_gives_way_to_their_own(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        "benchmark: long-tail\npreset: long_tail.yaml\nseeds: [1]\ncommon: {train.steps: 20, train.lr: 0.1}\n"
        "recipes: {a: {}, b: {train.lr: 0.5}}\noracle: {all: {train.steps: 40}}\n"
    )
    plan = load_study(path)
    assert plan.overrides("a") == ["train.steps=20", "train.lr=0.1"]
    given = plan.overrides("b", ["train.steps=5", "train.lr=0.2"])
    assert given == ["train.steps=20", "train.lr=0.1", "train.steps=5", "train.lr=0.2", "train.lr=0.5"]
    trained = load_config(None, given).train
    assert (trained.steps, trained.lr) == (5, 0.5)
    assert plan.overrides("all") == ["train.steps=20", "train.lr=0.1", "train.steps=40"]


def test_a_date_of_yaml_is_taken_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        "benchmark: long-tail\npreset: long_tail.yaml\nseeds: [1]\nrecipes: {a: {data.positive_label: 2020-01-01}}\n"
    )
    assert load_config(None, load_study(path).overrides("a")).data.positive_label == "2020-01-01"


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("seeds: [1, 2, 1]\nrecipes: {a: {}}", "seeds: Value error, a seed is there twice"),
        ("seeds: [1]\nrecipes: {x y: {}, x-y: {}}", "recipes that would share a run folder: x-y"),
        ("seeds: [1]\nrecipes: {a: {}}\noracle: {a: {}}", "recipes that would share a run folder: a"),
    ],
)
def test_runs_that_would_be_one_are_refused(tmp_path: Path, lines: str, problem: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"benchmark: long-tail\npreset: long_tail.yaml\n{lines}\n")
    with pytest.raises(InputError) as caught:
        load_study(path)
    assert problem in str(caught.value)


def test_a_wrong_study_names_every_wrong_field(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("benchmark: fashion\npreset: rare_fashion.yaml\nrecipes: {}\nsead: [1]\n")
    with pytest.raises(InputError) as caught:
        load_study(path)
    assert str(caught.value).startswith(f"{path}: not a study\n")
    for field in (
        "benchmark: Input should be 'rare-fashion' or 'long-tail'",
        "recipes:",
        "seeds: Field required",
        "sead:",
    ):
        assert field in str(caught.value)
