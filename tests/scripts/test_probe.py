"""`rarefind probe`: one table that fits a terminal, shown each time, and made anew only when something changed."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from configs.load import dump_config, load_config
from configs.schema import MetricsConfig, RunConfig
from scripts.pipeline import Pipeline, run_pipeline
from scripts.steps.probe import _advice, probe_table
from tests.scripts.tiny_runs import fresh, tiny_config
from trainers.digits import DigitsSplit, write_digits

HEADS = ["logistic", "knn"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, split=DigitsSplit(train=(12, 60), pool=(2, 10), test=(3, 9)))
    return folder


def config_of(folder: Path, out: Path, **changes: Any) -> RunConfig:
    own = {
        "models": [{"backbone": "test_resnet"}],
        "train": {"steps": 4},
        "embed": {"networks": [{"backbone": "test_efficientnet"}]},
        "probe": {"heads": HEADS},
    }
    return tiny_config(folder, out, own, changes)


def probed(config: RunConfig) -> Pipeline:
    return run_pipeline(config, until="probe")


def test_from_nothing_to_a_table_and_after_training_a_comparison(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(data, tmp_path)
    assert fresh(probed(config)) == ["prepare", "embed/test_efficientnet", "probe"]
    told = capsys.readouterr().out
    assert re.search(r"^probe +[0-9.]+ s  best out-of-fold AP 0\.\d+, \w+ on test_efficientnet ", told, re.MULTILINE)
    shown = told.splitlines()[-8:]
    assert all(len(line) <= 80 for line in shown[:-1])
    assert re.match(r"out of fold +AP +95% interval +ROC AUC +0\.5 +0\.9$", shown[2])
    assert shown[3].strip() == "test_efficientnet"
    figures = json.loads((tmp_path / "tiny" / "probe.json").read_text())
    for line, head in zip(shown[4:6], HEADS, strict=True):
        assert line.split()[:2] == [head, f"{figures['probes']['test_efficientnet'][head]['ap']:.3f}"]
    assert shown[6].split() == ["guessing", "0.167"]
    assert shown[-1] == figures["verdict"]
    assert shown[-1].startswith("No model is trained yet; each must beat the best probe (")

    assert fresh(probed(config)) == []
    assert capsys.readouterr().out.splitlines()[-8:] == shown

    run_pipeline(config, until="predict")
    assert fresh(probed(config)) == ["probe"]
    told = capsys.readouterr().out
    assert "trained here\n" in told.replace(" \n", "\n").replace("  ", "")
    assert re.search(r"^  test_resnet +0\.\d{3}", told, re.MULTILINE)
    assert "trained model beats the best probe" in told.splitlines()[-1]


@pytest.mark.parametrize(
    ("gains", "head", "told"),
    [
        ([-0.1, -0.02], "kernel", True),
        ([-0.1, -0.02], "knn", False),
        ([-0.1, 0.02], "kernel", False),
        ([], "kernel", False),
    ],
)
def test_how_to_use_a_probe_that_no_trained_model_is_better_than(
    data: Path, tmp_path: Path, gains: list[float], head: str, told: bool
) -> None:
    network = {"backbone": "test_efficientnet", "image_size": 32, "stages": [2], "grid": 3}
    config = config_of(data, tmp_path, embed={"networks": [network]})
    models = {f"m{number}": {"supervised": {"minus_best_probe": {"ap": gain}}} for number, gain in enumerate(gains)}
    figures = {"best": {"network": "test_efficientnet", "head": head}, "models": models}
    lines = list(_advice(config, figures))
    assert bool(lines) == told
    if told:
        setting = re.search(r"'(ensemble\.voices=.*)'", lines[0])
        assert setting is not None
        (tmp_path / "config.yaml").write_text(dump_config(config))
        (voice,) = load_config(tmp_path / "config.yaml", [setting[1]]).ensemble.voices
        assert voice.features == config.embed.networks[0].features and voice.learner == head
        followed = load_config(tmp_path / "config.yaml", [setting[1]])
        assert not list(_advice(followed, figures)) and not list(_advice(config, {**figures, "best": None}))


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"probe": {"heads": ["knn"]}}, ["probe"]),
        ({"metrics": {"replicates": 300}}, ["probe"]),
        ({"folds": {"num_folds": 3}}, ["prepare", "probe"]),
        ({"train": {"steps": 9}}, []),
    ],
)
def test_what_changes_the_figures_probes_again(
    data: Path, tmp_path: Path, changes: dict[str, Any], again: list[str]
) -> None:
    probed(config_of(data, tmp_path))
    assert fresh(probed(config_of(data, tmp_path, **changes))) == again


def test_the_same_seed_gives_the_same_figures(data: Path, tmp_path: Path) -> None:
    heads = ["undersampling", "smote"]
    for name in ("a", "b"):
        probed(config_of(data, tmp_path, name=name, probe={"heads": heads}))
    probed(config_of(data, tmp_path, name="c", probe={"heads": heads}, seed=1))
    a, b, c = (
        re.sub(r'"seconds": [0-9.]+', "", (tmp_path / name / "probe.json").read_text()) for name in ("a", "b", "c")
    )
    assert a == b != c


def entry(**changes: Any) -> dict[str, Any]:
    figures = {"ap": 0.5, "ap_ci": [0.4, 0.6], "roc_auc": 0.9, "recall_at_precision": {"0.5": 0.7, "0.9": None}}
    return {**figures, "notes": [], "optimistic": False, **changes}


def test_the_table_fits_80_columns_and_names_what_is_not_possible(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    figures = {
        "prevalence": None,
        "confidence": 0.95,
        "chance": 0.1,
        "probes": {"tf_efficientnet_lite0": {"balanced_bagging": entry(), "smote": {"not_possible": "too few"}}},
        "models": {"a" * 40: {"supervised": entry(optimistic=True)}, "[b]": {"supervised": entry(ap_ci=[None, None])}},
    }
    Console(width=80, highlight=False).print(probe_table(figures, MetricsConfig()))
    told = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in told) <= 80
    (bagging,) = (line for line in told if line.startswith("  balanced_bagging"))
    assert bagging.split() == ["balanced_bagging", "0.500", "0.400", "to", "0.600", "0.900", "0.700", "–"]
    assert any(line.split() == ["smote", "–", "not", "possible"] for line in told)
    assert any(line.split() == ["[b]", "0.500", "–", "0.900", "0.700", "–"] for line in told)
    names = "".join(line[:23].strip() for line in told)
    assert "a" * 40 + " *[b]guessing" in names and "tf_efficientnet_lite0" in names
    assert "macro AP" in told[2]


def test_the_report_has_the_table_with_its_verdict_until_it_is_of_other_models_or_rows(
    data: Path, tmp_path: Path
) -> None:
    def section(config: RunConfig) -> str:
        run_pipeline(config)
        page = html.unescape((config.run_dir / "report.html").read_text())
        return page.partition('<section id="probe">')[2].partition("</section>")[0]

    config = config_of(data, tmp_path)
    assert section(config) == "", "without a probe there is none"
    probed(config)
    figures = json.loads((tmp_path / "tiny" / "probe.json").read_text())
    shown = section(config)
    assert f"<strong>{figures['verdict']}</strong>" in shown and ">trained here<" in shown
    for head in HEADS:
        assert f">{head}</th><td>{figures['probes']['test_efficientnet'][head]['ap']:.3f}</td>" in shown
    longer = section(config_of(data, tmp_path, train={"steps": 5}))
    assert "Models have been trained since this was made" in longer and figures["verdict"] not in longer
    assert ">trained here<" not in longer and ">logistic<" in longer
    other_rows = section(config_of(data, tmp_path, folds={"num_folds": 3}))
    assert "is of other images, labels or folds than this report" in other_rows and "<table" not in other_rows
