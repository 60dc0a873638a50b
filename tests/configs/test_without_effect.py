"""Settings that do nothing beside others are told, with what they would take, and nothing else is."""

import re
from pathlib import Path
from typing import Any

import pytest

import configs
from configs.load import check_config, load_config
from configs.schema import RunConfig
from configs.sections import merged
from configs.without_effect import CHOICES, TRAIN_CHOICES, _flat, settings_without_effect

HARD = {"targets": "hard", "thresholds": "fixed"}
FROM_BACKBONES = {"pool": {"arm": "pseudo"}, "pseudo": {"teacher": "combined"}}
PRESETS = ("demo", "rare_fashion", "long_tail", "tenth", "tenth_digits")
MIXED = {"mixup_alpha": 0.4, "mix_probability": 0.8}


def told(**values: Any) -> list[str]:
    lines = settings_without_effect(check_config(values, "test"))
    settings = [own for line in lines for own in re.split(" ha(?:s|ve) no effect, ", line)[0].split(", ")]
    return [own.partition(":")[0] for own in settings]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_and_defaults_set_nothing_in_vain(preset: str) -> None:
    assert settings_without_effect(load_config(Path(configs.__file__).parent / f"{preset}.yaml")) == []
    assert told() == []


@pytest.mark.parametrize(
    ("values", "idle", "mended"),
    [
        ({"pseudo": {"select": "quota", "quota": 0.4}}, ["pseudo.select", "pseudo.quota"], {"pool": {"arm": "pseudo"}}),
        ({"pool": {"arm": "pseudo"}, "pseudo": {"quota": 0.4}}, ["pseudo.quota"], {"pseudo": {"select": "quota"}}),
        (
            {"semi": {"align": True}, "pool": {"confidence": 0.8}},
            ["pool.confidence", "semi.align"],
            {"pool": {"arm": "semi"}},
        ),
        ({"pool": {"arm": "semi"}, "semi": {"threshold": 0.9}}, ["semi.threshold"], {"semi": HARD}),
        ({"pretrain": {"steps": 9000}}, ["pretrain.steps"], FROM_BACKBONES),
        (
            {"pool": {"arm": "pseudo"}, "pseudo": {"teacher": "pretrained", "start": "pretrained"}},
            ["pseudo.start"],
            {"pseudo": {"teacher": "supervised"}},
        ),
        (
            {"pool": {"arm": "pseudo"}, "pretrain": {"steps": 9000}},
            ["pretrain.steps"],
            {"pseudo": {"start": "pretrained"}},
        ),
        (
            {"pool": {"arm": "pretrained"}, "pretrain": {"vicreg": {"dim": 64}}},
            ["pretrain.vicreg.dim"],
            {"pretrain": {"method": "vicreg"}},
        ),
        (
            {"train": {"loss": {"name": "cross_entropy", "gamma": 3.0}}},
            ["train.loss.gamma"],
            {"train": {"loss": {"name": "focal"}}},
        ),
        (
            {"train": {"sampler": {"positives": 4}}},
            ["train.sampler.positives"],
            {"train": {"sampler": {"name": "positives_per_batch"}}},
        ),
        ({"train": {"momentum": 0.8}}, ["train.momentum"], {"train": {"optimizer": "sgd"}}),
        ({"augment": {"mix_probability": 0.8}}, ["augment.mix_probability"], {"augment": MIXED}),
        (
            {"augment": {"policy": "none", "vertical_flip": False}},
            ["augment.vertical_flip"],
            {"pool": {"arm": "pretrained"}},
        ),
        ({"ensemble": {"tune": False, "trials": 20}}, ["ensemble.trials"], {"ensemble": {"tune": True}}),
        ({"data": {"pool_path_format": "p/{x}.png"}}, ["data.pool_path_format"], {"data": {"pool": "pool.csv"}}),
    ],
)
def test_a_setting_is_told_until_what_it_takes_is_set(
    values: dict[str, Any], idle: list[str], mended: dict[str, Any]
) -> None:
    assert told(**values) == idle
    assert not set(told(**merged(values, mended))) & set(idle)


def test_what_one_of_the_models_uses_is_not_idle() -> None:
    models = [{"backbone": "resnet18"}, {"backbone": "resnet34", "train": {"loss": {"name": "cross_entropy"}}}]
    assert told(train={"loss": {"gamma": 3.0}}, models=models) == []
    models[1]["train"] = {"loss": {"name": "cross_entropy", "gamma": 1.0}}
    lines = settings_without_effect(check_config({"models": models}, "test"))
    assert lines == ["models.1.train.loss.gamma: 1.0 has no effect, it takes train.loss.name: focal"]


@pytest.mark.parametrize(
    ("section", "values", "mended"),
    [
        ("cluster", {"methods": ["kmeans"], "covariance": "diag"}, {"methods": ["gaussian_mixture"]}),
        ("cluster", {"eps": 0.3}, {"methods": ["dbscan", "kmeans"]}),
        ("cluster", {"methods": ["kmeans"], "candidates": [3, 4]}, {"methods": ["gaussian_mixture"]}),
        ("cluster", {"methods": ["kmeans"], "candidates": [3, 4]}, {"num_clusters": "auto"}),
        ("cluster", {"num_clusters": 7, "candidates": [3, 4]}, {"num_clusters": "many"}),
        ("cluster", {"maps": ["pca"], "perplexity": 9.0}, {"maps": ["tsne"]}),
        ("cluster", {"maps": [], "map_rows": 900}, {"maps": ["umap"]}),
        ("propagate", {"method": "propagation", "alpha": 0.2}, {"method": "spreading"}),
    ],
)
def test_a_command_tells_what_its_section_sets_in_vain(
    section: str, values: dict[str, Any], mended: dict[str, Any]
) -> None:
    of_a_run = settings_without_effect(check_config({section: values}, "test"))
    (line,) = settings_without_effect(check_config({section: values}, "test"), section)
    assert of_a_run == []
    assert line.startswith(f"{section}.{list(values)[-1]}: ") and f"{section}.{next(iter(mended))}" in line
    assert settings_without_effect(check_config({section: values | mended}, "test"), section) == []


@pytest.mark.parametrize("section", ["cluster", "propagate"])
def test_defaults_of_a_section_set_nothing_in_vain(section: str) -> None:
    assert settings_without_effect(RunConfig(), section) == []


def test_settings_that_would_take_the_same_are_told_together() -> None:
    values = {"pretrain": {"steps": 9000, "batch_size": 12}, "train": {"momentum": 0.8}}
    together, alone = settings_without_effect(check_config(values, "test"))
    assert together.startswith("pretrain.steps: 9000, pretrain.batch_size: 12 have no effect, they take pool.arm: ")
    assert alone.startswith("train.momentum: 0.8 has no effect, it takes ")


def test_every_setting_that_is_named_exists() -> None:
    values = _flat(RunConfig().model_dump())
    keys = [key for row in CHOICES for key in row[:2]] + [f"train.{key}" for row in TRAIN_CHOICES for key in row[:2]]
    assert not [key for key in keys if not any(own == key or own.startswith(f"{key}.") for own in values)]
