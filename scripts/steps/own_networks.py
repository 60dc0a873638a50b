"""This run's own trained networks as those of `embed`: whether they are there, and which labels they have not seen."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import InputError, listed
from configs.networks import EmbeddedNetworkConfig
from scripts.steps.run_state import rows_digest
from trainers.provenance import file_digest
from trainers.stages import Stage
from trainers.table import ImageTable

# Commands that no label judges, and those that take the features of each fold from the network without its labels.
WITHOUT_LABELS, FOLD_BY_FOLD = {"embed", "neighbours"}, {"probe", "propagate", "compare-learners"}
TRAINED_COLUMNS = ("sha256", "label", "fold")  # what a training's record knows its rows by


def check_own_network(run_dir: Path, network: EmbeddedNetworkConfig) -> None:
    """Raise InputError, naming those that are there, when the run has no such network."""
    wanted = f"{network.trained}/fold0" if network.each_fold else str(network.trained)
    if (run_dir / wanted / "final" / "manifest.json").exists():
        return
    folders = [path.parent.parent for path in run_dir.glob("pretrain/*/final/manifest.json")]
    folders += [path.parent.parent.parent for path in run_dir.glob("train/*/*/fold0/final/manifest.json")]
    names = sorted(str(path.relative_to(run_dir)) for path in folders if not path.parent.name.startswith("teacher-"))
    raise InputError(
        f"embed.networks: {network.trained} is not trained in {run_dir}; train it first (`rarefind train CONFIG`, "
        f"`rarefind pretrain CONFIG`), or choose one that is\n{listed(names or ['there is none'])}"
    )


def check_label_use(networks: Sequence[EmbeddedNetworkConfig], command: str) -> None:
    """Raise InputError for features that labels went into by which the command would judge them."""
    if command in WITHOUT_LABELS:
        return
    for network in networks:
        if network.trained is None or not network.trained.startswith("train/"):
            continue
        if not network.each_fold and command in FOLD_BY_FOLD:
            whole = network.trained.rpartition("/")[0]
            raise InputError(
                f"embed.networks: {network.trained} was trained on labels that `{command}` would be judged by; name "
                f"{whole}, which gives each fold the features of the network without its labels, or leave it out"
            )
        if command not in FOLD_BY_FOLD:
            raise InputError(
                f"embed.networks: {network.trained} was trained on labels that `{command}` would be judged by, and "
                f"it takes features of one network for all folds; choose one that no label went into, like "
                "pretrain/<model>"
            )


def own_network_inputs(run_dir: Path, trained: str, table: ImageTable) -> dict[str, Any]:
    """What decides which network it is. Raises InputError for one of a fold that is not the fold of the table.

    It may have learnt the labels of rows that are in the fold now, and its features would give them away.
    """
    manifest = run_dir / trained / "final" / "manifest.json"
    part, _, fold = trained.rpartition("/fold")
    if part and not _learnt_all_but(run_dir, trained, table, int(fold)):
        raise InputError(
            f"embed.networks: {trained} was trained on other labelled images, labels or folds than those of the table "
            "now, so that its features may give away labels; run `rarefind train CONFIG` first"
        )
    return {"trained": file_digest(manifest)}


def _learnt_all_but(run_dir: Path, trained: str, table: ImageTable, fold: int) -> bool:
    """Whether the record of a training says that it learnt the labels of all rows but those of a fold."""
    path = run_dir / ".stages" / f"{Stage(trained, {}, ()).folder}.json"
    if not path.exists() or fold >= table.num_folds:
        return False
    rows = table.rows("train", not_fold=fold)
    hashes = table.frame["sha256"].to_numpy()[rows]
    expected = rows_digest(table, rows[np.argsort(hashes, kind="stable")], TRAINED_COLUMNS)
    return bool(json.loads(path.read_text(encoding="utf-8"))["inputs"]["learnt"] == expected)
