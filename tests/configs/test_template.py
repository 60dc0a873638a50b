import re

import yaml

from configs.load import check_config, load_config
from configs.schema import RunConfig
from configs.template import commented_config

VALUES = {
    "name": "skin",
    "data": {"source": "a: b.csv", "positive_label": "1", "labels": ["no", "1"], "columns": {"id": "image name"}},
    "models": [{"backbone": "resnet10t", "train": {"lr": 0.01}}, {"backbone": "test_efficientnet"}],
    "train": {"steps": 300, "loss": {"gamma": 1.5}},
}


def uncommented(text):
    """With the sign taken from every commented field, not from the heading."""
    return re.sub(r"^( *)# ( *(?:- )?[a-z_0-9]+:)", r"\1\2", text, flags=re.MULTILINE)


def test_the_file_is_read_back_to_the_values_over_the_defaults(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(commented_config(VALUES, heading=["Two lines", "of words"]))
    assert path.read_text().startswith("# Two lines\n# of words\n")
    loaded = load_config(path)
    expected = check_config(VALUES, "x")
    assert loaded.data.source == tmp_path / "a: b.csv"
    assert loaded.model_copy(update={"data": expected.data}) == expected


def test_taking_the_comment_sign_from_every_field_changes_nothing():
    text = commented_config(VALUES)
    everything = yaml.safe_load(uncommented(text))
    assert set(everything) == set(RunConfig.model_fields)
    assert check_config(everything, "x") == check_config(VALUES, "x")
    assert "#" not in re.sub(r"  # .*", "", uncommented(text))  # no line was left commented


def test_line_ends_in_words_and_values_stay_where_they_are():
    text = commented_config(
        {"name": "x", "data": {"source": "a\nseed: 7\u2028.csv"}}, heading=["a\nseed: 5\u2028seed: 6"]
    )
    assert yaml.safe_load(text) == {"name": "x", "data": {"source": "a\nseed: 7\u2028.csv"}}


def test_every_field_has_its_meaning_behind_it():
    lines = [line for line in commented_config({}).splitlines() if line.strip()]
    assert len(lines) > 100 and all(re.search(r"\S  # \S", line) for line in lines)
    assert "#   policy: heavy  # none | light | heavy; how much training images are varied" in lines


def test_every_path_says_what_it_is_relative_to():
    lines = commented_config({}).splitlines()
    (data,) = (line for line in lines if line.startswith("# data:"))
    assert "source, pool, test, truth and root are relative to the config file" in data
    assert all(
        any(name in line and "relative to the config file" in line for line in lines) for name in ("sample:", "data:")
    )
    with_model = commented_config({"models": [{"backbone": "resnet18"}]})
    pretrained = [line for line in with_model.splitlines() if "pretrained:" in line]
    assert len(pretrained) == 2 and all(line.endswith("relative to the config file") for line in pretrained)
    assert any("out: runs" in line and "relative to where you are" in line for line in lines)
