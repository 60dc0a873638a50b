"""A competition as a newcomer meets it: a downloaded folder, the commands of the README, a score by someone else.

The hidden labels are kept where no command is told of, and what scores the submission is a script that has pandas and
scikit-learn alone.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

from tests.scripts.bare_machine import BareMachine

HERE = Path(__file__).resolve().parents[2]
EIGHT = 8
NUM_TRAIN, NUM_TEST = 240, 90
# The one place where a newcomer departs from the defaults, so that this takes seconds: a short, small training.
QUICK = (
    "models=[{backbone: test_resnet, train: {steps: 60}}, {backbone: test_efficientnet, train: {steps: 60}}]",
    "train.batch_size=16", "train.warmup_steps=5", "train.lr=0.003", "folds.num_folds=2", "data.image_size=16",
    "augment.policy=light", "augment.horizontal_flip=false", "augment.vertical_flip=false",
    "augment.quarter_turns=false", "metrics.replicates=200", "compute.device=cpu", "compute.workers=0",
)  # fmt: skip
SCORER = """
import sys
import pandas as pd
from sklearn.metrics import average_precision_score
submission, sample, solution = (pd.read_csv(path, dtype={"image_name": str}) for path in sys.argv[1:])
assert list(submission.columns) == list(sample.columns), "other columns than the sample"
assert submission["image_name"].tolist() == sample["image_name"].tolist(), "other rows than the sample"
assert submission["target"].between(0, 1).all() and submission["target"].notna().all()
both = solution.merge(submission, on="image_name", validate="one_to_one")
assert len(both) == len(solution)
print(average_precision_score(both["target_x"], both["target_y"]))
"""


@pytest.fixture(scope="module")
def competition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`download/` as a competition gives it, and `hidden/solution.csv` as it keeps it."""
    folder = tmp_path_factory.mktemp("kaggle")
    digits = load_digits()
    rng = np.random.default_rng(0)
    rare = rng.permutation(np.flatnonzero(digits.target == EIGHT))[:60]
    others = rng.permutation(np.flatnonzero(digits.target != EIGHT))[: NUM_TRAIN + NUM_TEST - len(rare)]
    chosen = rng.permutation(np.concatenate([rare, others]))
    frame = pd.DataFrame({"image_name": [f"{number:07d}" for number in rng.permutation(len(chosen))]})
    frame["patient_id"] = [f"IP_{number:04d}" for number in rng.integers(0, 150, len(chosen))]
    frame["target"] = (digits.target[chosen] == EIGHT).astype(int)
    train, test = frame[:NUM_TRAIN], frame[NUM_TRAIN:]
    download, hidden = folder / "download", folder / "hidden"
    for part, rows in (("train", train), ("test", test)):
        (download / part).mkdir(parents=True)
        for position, name in zip(rows.index, rows["image_name"], strict=True):
            pixels = np.round(digits.images[chosen[position]] * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).resize((32, 32)).convert("RGB").save(download / part / f"{name}.jpg", quality=90)
    hidden.mkdir()
    train.to_csv(download / "train.csv", index=False)
    test.drop(columns="target").to_csv(download / "test.csv", index=False)
    test.assign(target=0)[["image_name", "target"]].sort_values("image_name").to_csv(
        download / "sample_submission.csv", index=False
    )
    test[["image_name", "target"]].to_csv(hidden / "solution.csv", index=False)
    return folder


def command(folder: Path, *arguments: str) -> str:
    """What a newcomer reads on the terminal; the command must end well."""
    environment = {**os.environ, "PYTHONPATH": str(HERE), "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.cli", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def done(competition: Path) -> Path:
    """The run folder after the README's commands."""
    said = command(competition, "init", "download")
    assert "rarefind run config.yaml" in said and "sample_submission.csv" in said
    said = command(competition, "run", "config.yaml", *QUICK)
    assert re.search(r"submit .* 90 rows, columns image_name, target", said)
    return competition / "runs" / "download"


def average_precision(machine: BareMachine, competition: Path, submission: Path) -> float:
    script = competition / "hidden" / "score.py"
    script.write_text(SCORER)
    files = (submission, competition / "download" / "sample_submission.csv", competition / "hidden" / "solution.csv")
    scored = machine.run(script, *files, cwd=competition)
    assert scored.returncode == 0, scored.stderr
    return float(scored.stdout)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> BareMachine:
    return BareMachine(tmp_path_factory.mktemp("scorer") / "site", ("pandas", "scikit-learn"))


def test_the_commands_of_the_readme_end_in_a_submission_that_scores(
    competition: Path, done: Path, scorer: BareMachine
) -> None:
    solution = pd.read_csv(competition / "hidden" / "solution.csv", dtype={"image_name": str})
    prevalence = solution["target"].mean()
    ap = average_precision(scorer, competition, done / "submission.csv")
    assert ap > 3 * prevalence

    # The control: the same numbers on other images are worth what guessing is.
    submission = pd.read_csv(done / "submission.csv", dtype={"image_name": str})
    shuffled = [
        average_precision_of(solution, submission.assign(target=rng.permutation(submission["target"].to_numpy())))
        for rng in map(np.random.default_rng, range(50))
    ]
    assert np.mean(shuffled) < 1.5 * prevalence


def average_precision_of(solution: pd.DataFrame, submission: pd.DataFrame) -> float:
    both = solution.merge(submission, on="image_name", validate="one_to_one")
    return float(average_precision_score(both["target_x"], both["target_y"]))


def test_no_command_was_told_of_the_hidden_labels(competition: Path, done: Path) -> None:
    table = pd.read_parquet(done / "table.parquet")
    assert table.loc[table["split"] == "test", "label"].isna().all()
    assert "solution" not in (competition / "config.yaml").read_text()
    assert "test" not in json.loads((done / "metrics.json").read_text())  # where a known truth would be judged


def test_the_exported_folder_gives_the_same_submission_offline(competition: Path, done: Path, tmp_path: Path) -> None:
    """As in a competition whose notebook runs without a network on images that it alone has."""
    command(competition, "export", "runs/download", "--out", "offline")
    machine = BareMachine(tmp_path / "site", ("torch", "timm", "numpy", "pillow", "safetensors"))
    out = tmp_path / "submission.csv"
    scored = machine.run(
        competition / "offline" / "inference.py", competition / "download" / "sample_submission.csv",
        "--submission", "--device", "cpu", "--out", out, cwd=tmp_path,
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    there, here = (pd.read_csv(path, dtype={"image_name": str}) for path in (out, done / "submission.csv"))
    pd.testing.assert_frame_equal(there, here, rtol=0, atol=1e-5)
