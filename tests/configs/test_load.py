"""The config file: what is read, what is refused, and in which words."""

from pathlib import Path

import pytest

from configs.errors import InputError, listed
from configs.load import check_config, dump_config, load_config
from configs.schema import ModelConfig, RunConfig, TrainConfig


def config_error(tmp_path: Path, text: str, *overrides: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_unknown_key_names_the_known_ones_and_the_closest(tmp_path: Path) -> None:
    message = config_error(tmp_path, "train: {stepz: 3}")
    assert "train.stepz: unknown key; did you mean 'steps'?" in message
    assert "batch_size" in message
    assert "run.yaml" in message


def test_unknown_key_in_a_models_own_train_section_is_refused(tmp_path: Path) -> None:
    message = config_error(tmp_path, "models: [{backbone: resnet18, train: {loss: {gama: 1}}}]")
    assert "models.0.train.loss.gama: unknown key; did you mean 'gamma'?" in message


def test_all_problems_are_listed_in_one_message(tmp_path: Path) -> None:
    message = config_error(tmp_path, "sed: 1\ntrain: {steps: many}\nname: a/b\n")
    assert "3 wrong settings" in message
    assert "sed" in message
    assert "train.steps" in message
    assert "'a/b' cannot be a folder name" in message


def test_a_key_given_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    message = config_error(tmp_path, "name: a\nseed: 1\nname: b\n")
    assert "key 'name' is given twice, on lines 1 and 3" in message


def test_a_yaml_tag_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    message = config_error(tmp_path, f"name: !!python/object/apply:pathlib.Path.touch ['{marker}']")
    assert "not a YAML config" in message
    assert not marker.exists()


def test_scientific_notation_is_a_number_and_no_is_not_a_label(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("train: {lr: 1e-3}\ndata: {positive_label: 1}")
    config = load_config(path)
    assert config.train.lr == 0.001
    assert config.data.positive_label == "1"
    assert "quote a text" in config_error(tmp_path, "data: {positive_label: no}")


def test_paths_are_relative_to_the_file_and_overrides_to_where_the_user_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "run.yaml").write_text("data: {source: train.csv}\nmodels: [{backbone: resnet18, pretrained: w.pth}]")
    monkeypatch.chdir(tmp_path)
    config = load_config(folder / "run.yaml", ["data.test=test.csv"])
    assert config.data.source == folder / "train.csv"
    assert config.data.test == tmp_path / "test.csv"
    assert config.models[0].pretrained == str(folder / "w.pth")


def test_paths_are_shown_without_dots_but_links_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("configs", "real/inner", "real/images"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "inner")
    path = tmp_path / "configs" / "run.yaml"
    path.write_text(
        "data: {source: ../my images/./train.csv, pool: ../link, root: ../link/../images}\n"
        "models: [{backbone: resnet18, pretrained: ../w.pth}]"
    )
    monkeypatch.chdir(tmp_path / "configs")
    config = load_config(path, ["data.test=../test.csv"])
    assert str(config.data.source) == f"{tmp_path}/my images/train.csv"
    assert str(config.data.test) == f"{tmp_path}/test.csv"
    assert str(config.data.pool) == f"{tmp_path}/link"
    assert config.models[0].pretrained == f"{tmp_path}/w.pth"
    # Behind a link `..` is the folder above what it leads to: without it, this would be another folder.
    assert config.data.root is not None
    assert config.data.root.resolve() == tmp_path / "real" / "images"


def test_an_override_reaches_into_a_list_by_position(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("models: [{backbone: resnet18}, {backbone: resnet34}]")
    config = load_config(path, ["models.1.train.steps=300"])
    assert config.train_for(config.models[1]).steps == 300
    assert config.train_for(config.models[0]).steps == TrainConfig().steps
    with pytest.raises(InputError, match=r"models\.2\.name=x.*has 2 entries"):
        load_config(path, ["models.2.name=x"])


def test_dumped_config_loads_to_an_equal_one(tmp_path: Path) -> None:
    config = load_config(None, ["data.source=a.csv", "train.lr=0.01", "models=[{backbone: resnet34}]"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


def test_a_model_overrides_fields_of_train_and_keeps_the_rest() -> None:
    config = check_config(
        {
            "train": {"lr": 0.5, "loss": {"gamma": 3}},
            "models": [{"backbone": "a", "train": {"loss": {"name": "focal"}}}],
        },
        "test",
    )
    train = config.train_for(config.models[0])
    assert (train.lr, train.loss.gamma, train.loss.name) == (0.5, 3, "focal")


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="two models are called 'a'"):
        check_config({"models": [{"backbone": "a"}, {"backbone": "a"}]}, "test")


def test_a_missing_config_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rarefind init"):
        load_config(tmp_path / "none.yaml")


def test_model_name_defaults_to_a_safe_form_of_the_backbone() -> None:
    assert ModelConfig(backbone="timm/resnet18").name == "timm-resnet18"
    assert RunConfig().run_dir == Path("runs/run")


def test_listed_caps_and_counts() -> None:
    assert listed(range(12), cap=10).endswith("... and 2 more of 12")


@pytest.mark.parametrize("field", ["steps", "lr", "warmup_steps"])
def test_yes_is_no_number(tmp_path: Path, field: str) -> None:
    message = (
        f"train.{field}: true and false mean nothing here; YAML reads yes/no/on/off as true/false, so quote a text"
    )
    assert message in config_error(tmp_path, f"train: {{{field}: yes}}")
    assert message in config_error(tmp_path, f"models: [{{backbone: a, train: {{{field}: yes}}}}]")


def test_an_anchor_may_be_merged_and_overridden(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("models: [&first {backbone: resnet18, pretrained: timm}, {<<: *first, backbone: resnet34}]")
    first, second = load_config(path).models
    assert (first.name, second.name, second.pretrained) == ("resnet18", "resnet34", "timm")
    assert "key 'name' is given twice" in config_error(
        tmp_path, "models: [&a {backbone: b}, {<<: *a, name: c, name: d}]"
    )


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder, not a config file; `rarefind init"):
        load_config(tmp_path)


def test_a_teachers_weights_are_looked_for_beside_the_config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("pretrain: {distill: {teacher: {backbone: resnet18, pretrained: teacher.safetensors}}}\n")
    assert load_config(path).pretrain.distill.teacher.pretrained == str(tmp_path / "teacher.safetensors")


@pytest.mark.parametrize("key", ["models", "embed.networks"])
def test_weights_in_a_list_that_is_typed_are_looked_for_where_the_user_is(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    config = load_config(None, [f"{key}=[{{backbone: resnet18, pretrained: own.pth}}]"])
    (network,) = config.models if key == "models" else config.embed.networks
    assert network.pretrained == str(tmp_path / "own.pth")


def test_a_config_whose_name_is_nearly_right_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: a\n")
    for wrong in ("config.yml", "confg.yaml"):
        with pytest.raises(InputError, match=rf"no such config file; did you mean {tmp_path}/config.yaml\?"):
            load_config(tmp_path / wrong)
    with pytest.raises(InputError, match="no such config file; `rarefind init DATA_DIR` writes one"):
        load_config(tmp_path / "study.yaml")
