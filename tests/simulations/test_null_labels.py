"""The whole pipeline on labels that are drawn: what it reports is what guessing gives, and what leaks is not.

The labels say nothing of the images, which networks can learn by heart; copies of the labelled images are in the pool,
through which labels would travel. Each figure is compared with the exact expectation of a random ranking, within three
standard errors; those are of as many random rankings as there are replicates.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from configs.schema import RunConfig
from scripts.pipeline import run_pipeline
from scripts.steps import train
from scripts.steps.ensemble import ensemble_step
from scripts.steps.predict import predict_step
from scripts.steps.pseudo_label import pseudo_label_step
from scripts.steps.run_state import Pipeline
from scripts.steps.study import Call, run_study
from scripts.steps.train import train_step
from scripts.steps.trial import without_lines
from tests.simulations.null_runs import chance_ap, null_config, null_values, write_null_images
from tests.simulations.populations import targets_of
from trainers.fold_task import FoldData
from trainers.metrics import average_precision
from trainers.table import ImageTable

POSITIVES, NEGATIVES = 30, 170
PSEUDO = {"pool": {"arm": "pseudo"}, "pseudo": {"min_precision": 0.0, "batch_size": 32}}
IMAGES_PER_PATIENT = 4


def test_all_that_a_run_reports_is_chance(size, tmp_path):
    """Single models, students of pseudo-labels, the gate's ensemble and the tuned blend."""
    replicates = size.draws(2, 24)
    runs = [figures(null_run(tmp_path / str(seed), seed, PSEUDO)) for seed in range(replicates)]
    means = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    size.note(chance=chance_ap(POSITIVES, POSITIVES + NEGATIVES), error=three_errors(replicates) / 3, **means)
    del means["tuned_in_sample"]
    assert all(distance(mean) <= three_errors(replicates) for mean in means.values()), means
    if size.full:  # two replicates cannot show the control: blends tuned and judged on the same rows
        flattery = [run["tuned_in_sample"] - run["tuned"] for run in runs]
        assert np.mean(flattery) > 3 * np.std(flattery, ddof=1) / replicates**0.5


def test_students_of_teachers_of_all_labels_are_better_than_chance(size, tmp_path, monkeypatch):
    """The control: teachers have learnt the labels by heart and tell them of the copies in the pool."""
    replicates, aps = size.draws(1, 20), []
    for seed in range(replicates):
        config = null_images(tmp_path / str(seed), seed, PSEUDO)
        with without_lines():
            pipeline = run_pipeline(config, until="prepare")
            with monkeypatch.context() as leaking:
                leaking.setattr(train, "_fold_data", learning_everything)
                train_step(pipeline)
                predict_step(pipeline)
            aps.append(figures_of_students(pipeline))
    size.note(students=float(np.mean(aps)))
    assert np.mean(aps) > chance_ap(POSITIVES, POSITIVES + NEGATIVES) + three_errors(replicates)


def test_the_best_of_many_looks_at_the_held_out_fold_is_better_than_chance(size, tmp_path):
    """The control that reports call optimistic: `train.keep: best`."""
    size.only_in_full()
    replicates, aps = 20, []
    best = {"train": {"keep": "best", "eval_every_steps": 3}, "ensemble": {"tune": False}}
    for seed in range(replicates):
        run_dir = null_run(tmp_path / str(seed), seed, best)
        models = json.loads((run_dir / "metrics.json").read_text())["models"]
        assert all(entry["supervised"]["optimistic"] for entry in models.values())
        aps.append(mean_ap(run_dir, "supervised"))
    size.note(best=float(np.mean(aps)))
    assert np.mean(aps) > chance_ap(POSITIVES, POSITIVES + NEGATIVES) + three_errors(replicates)


def test_the_winner_of_a_study_is_worth_chance_once_it_is_corrected(size, tmp_path):
    """The control is what it was seen to reach."""
    size.only_in_full()
    naive, corrected = [], []
    for seed in range(40):
        folder = tmp_path / str(seed)
        write_null_images(folder / "data", np.random.default_rng(seed), positives=POSITIVES, negatives=NEGATIVES)
        values = null_values(folder / "data", folder, {"seed": seed, "models": [{"backbone": "small_resnet"}]})
        (folder / "config.yaml").write_text(yaml.safe_dump(values))
        space = {"train.lr": {"choices": [0.003, 0.005, 0.01, 0.02]}, "train.batch_size": {"choices": [16, 32]}}
        study = {"sampler": "grid", "trials": 8, "replicates": 200, "pruning": {"method": "none"}, "space": space}
        (folder / "space.yaml").write_text(yaml.safe_dump(study))
        with without_lines():
            found = run_study(Call(folder / "config.yaml", folder / "space.yaml", (), None, None, None)).corrected
        naive.append(found.naive)
        corrected.append(found.corrected)
    chance = chance_ap(POSITIVES // 2, (POSITIVES + NEGATIVES) // 2)  # of a fold: trials are judged by their mean
    error = np.std(corrected, ddof=1) / len(corrected) ** 0.5
    size.note(chance=chance, naive=np.mean(naive), corrected=np.mean(corrected), error=error)
    assert abs(np.mean(corrected) - chance) <= 3 * error
    assert np.mean(naive) > chance + 3 * np.std(naive, ddof=1) / len(naive) ** 0.5


@pytest.mark.parametrize("grouped", [True, False])
def test_labels_of_patients_are_chance_by_patient_and_known_by_heart_by_image(grouped, size, tmp_path):
    """Four images of a patient look alike and share a label that is drawn: without groups they are in several folds."""
    replicates, aps = size.draws(1, 20), []
    patients = (15, 45)
    columns = {"data": {"columns": {"group": "patient"}}} if grouped else {}
    for seed in range(replicates):
        folder = tmp_path / str(seed)
        write_null_images(
            folder / "data", np.random.default_rng(seed), positives=patients[0], negatives=patients[1],
            images=IMAGES_PER_PATIENT,
        )  # fmt: skip
        long = {"train": {"steps": 80}, "ensemble": {"tune": False}, "seed": seed}
        config = null_config(folder / "data", folder / "runs", long, columns)
        with without_lines():
            run_pipeline(config, until="ensemble")
        aps.append(mean_ap(config.run_dir, "supervised"))
    images = [IMAGES_PER_PATIENT * number for number in patients]
    chance, error = chance_ap(images[0], sum(images)), three_errors(replicates, patients, IMAGES_PER_PATIENT)
    size.note(ap=float(np.mean(aps)), chance=chance, error=error / 3)
    if grouped:
        assert abs(np.mean(aps) - chance) <= error
    else:
        assert np.mean(aps) > 0.9  # the control


def null_images(folder: Path, seed: int, *changes: dict) -> RunConfig:
    """The config of a run on images with drawn labels and their copies, which are written."""
    rng = np.random.default_rng(seed)
    write_null_images(folder / "data", rng, positives=POSITIVES, negatives=NEGATIVES, copies=1)
    return null_config(folder / "data", folder / "runs", {"seed": seed}, *changes)


def null_run(folder: Path, seed: int, *changes: dict) -> Path:
    """The folder of a run up to its metrics."""
    config = null_images(folder, seed, *changes)
    with without_lines():
        run_pipeline(config, until="ensemble")
    return config.run_dir


def figures(run_dir: Path) -> dict[str, float]:
    """Out-of-fold AP of all that a run reports."""
    ensemble = json.loads((run_dir / "metrics.json").read_text())["ensemble"]
    return {
        "networks": mean_ap(run_dir, "supervised"),
        "students": mean_ap(run_dir, "pseudo-1"),
        "ensemble": ensemble["ap"],
        "tuned": ensemble["tuning"]["ap"],
        "tuned_in_sample": ensemble["tuning"]["ap_on_its_own_rows"],
    }


def figures_of_students(pipeline: Pipeline) -> float:
    """AP of the students of teachers that are trained already, whatever they were trained on."""
    pseudo_label_step(pipeline)
    ensemble_step(pipeline)
    return mean_ap(pipeline.run_dir, "pseudo-1")


def mean_ap(run_dir: Path, arm: str) -> float:
    """The mean out-of-fold AP of an arm's models."""
    models = json.loads((run_dir / "metrics.json").read_text())["models"]
    return float(np.mean([entry[arm]["ap"] for entry in models.values()]))


def distance(mean: float) -> float:
    return abs(mean - chance_ap(POSITIVES, POSITIVES + NEGATIVES))


def three_errors(replicates: int, units: tuple[int, int] = (POSITIVES, NEGATIVES), images: int = 1) -> float:
    """Three standard errors of the mean AP of so many random rankings, in which images of a unit are neighbours."""
    rng, targets = np.random.default_rng(0), np.repeat(targets_of(*units), images)
    aps = [average_precision(targets, np.repeat(rng.random(sum(units)), images)) for _ in range(500)]
    return 3 * float(np.std(aps)) / replicates**0.5


def learning_everything(table: ImageTable, fold: int, inner: np.ndarray | None = None) -> FoldData:
    """What a teacher of a fold must not be given: all labels."""
    learnt, held = table.rows("train"), table.rows("train", fold=fold)
    return FoldData(learnt, table.targets[learnt], held, table.targets[held], table.num_outputs)
