"""`rarefind bench gaps RUN ...`: is out-of-fold AP a fair forecast of AP on other images?

Each fold model is judged on its fold, the pool and the test set, whose labels choose nothing. Where a benchmark draws
pool and labelled images alike and no network learnt from the pool, a gap between these would be a leak, or luck; a gap
to the test set can be that its images are others.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from scripts.command import run_command

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from rich.table import Table

    from trainers.table import ImageTable

TABLE_WIDTH = 118  # also where there is no terminal
KINDS = {"test": "", "pool": "_pool"}  # kind of rows -> end of its keys
STANDARD_ERRORS = 1.96  # of the difference: where 95% are when both judge the same model


@dataclass(frozen=True)
class FoldGap:
    """One fold model's AP on its out-of-fold, test and pool rows, each with the sd of its bootstrap.

    None where no label is known, and for the pool of arms whose networks or backbones learnt from it.
    """

    model: str
    fold: int
    oof_ap: float
    oof_sd: float
    test_ap: float | None = None
    test_sd: float | None = None
    pool_ap: float | None = None
    pool_sd: float | None = None

    def gap(self, kind: str) -> float | None:
        """AP on rows of a kind (test, pool) less the out-of-fold AP."""
        ap, _ = self._of(kind)
        return None if ap is None else ap - self.oof_ap

    def inside(self, kind: str) -> bool | None:
        """Whether the two differ by no more than their errors explain."""
        gap, (_, sd) = self.gap(kind), self._of(kind)
        if gap is None or sd is None:
            return None
        return bool(abs(gap) <= STANDARD_ERRORS * (self.oof_sd**2 + sd**2) ** 0.5)

    def _of(self, kind: str) -> tuple[float | None, float | None]:
        return (self.test_ap, self.test_sd) if kind == "test" else (self.pool_ap, self.pool_sd)


def main(
    runs: Annotated[list[Path], typer.Argument(help="finished run folders, one a seed")],
    truth: Annotated[
        list[Path] | None,
        typer.Option(help="file with labels of test and pool images, one for each run; default: its data.truth"),
    ] = None,
    arm: Annotated[str, typer.Option(help="whose networks")] = "supervised",
) -> None:
    """Whether AP out of fold says what AP on other images will be."""
    from rich.console import Console

    from configs.errors import InputError

    if truth and len(truth) != len(runs):
        raise InputError(f"expected --truth once for each of the {len(runs)} runs, got {len(truth)}")
    truths: Sequence[Path | None] = truth or [None] * len(runs)
    gaps = {run: run_gaps(run, own, arm) for run, own in zip(runs, truths, strict=True)}
    Console(width=TABLE_WIDTH).print(_table(gaps))
    summary = summarised([gap for own in gaps.values() for gap in own])
    for line in in_words(summary):
        print(line)
    rows = [{"run": str(run), **asdict(gap)} for run, own in gaps.items() for gap in own]
    print(json.dumps({"benchmark": "gaps", "arm": arm, **summary, "fold_models": rows}))


def run_gaps(run: Path, truth: Path | None, arm: str) -> list[FoldGap]:
    """Of a finished run; `truth` instead of its data.truth.

    Raises InputError when the run is not finished, has not this arm, or no label is known to compare with.
    """
    import numpy as np

    from configs.errors import InputError
    from configs.load import load_config
    from ensembles.predictions import read_predictions
    from scripts.bench.pool_figures import known_rows
    from trainers.table import read_table

    if not (run / "config.yaml").is_file() or not (run / "metrics.json").is_file():
        raise InputError(f"{run}: expected the folder of a finished run, with config.yaml and metrics.json")
    config = load_config(run / "config.yaml")
    table = read_table(run / "table.parquet")
    if not table.is_binary:
        raise InputError(f"{run}: expected two classes, got {len(table.classes)}")
    everything = read_predictions(run / "predictions", table=table)
    own = everything[everything["arm"] == arm]
    if own.empty:
        raise InputError(f"{run}: no predictions of arm {arm!r}; it has {', '.join(sorted(set(everything['arm'])))}")
    gaps = fold_gaps(own, table, known_rows(run, table, truth or config.data.truth), np.random.default_rng(config.seed))
    if all(gap.test_ap is None and gap.pool_ap is None for gap in gaps):
        raise InputError(f"{run}: no label of a test or pool image is known; set data.truth, or give --truth")
    return gaps


def fold_gaps(
    predictions: "pd.DataFrame", table: "ImageTable", known: "np.ndarray", rng: "np.random.Generator"
) -> list[FoldGap]:
    """Of the networks of one arm; `known` (num_images,) are the targets of the table's rows, -1 = unknown."""
    import pandas as pd

    from ensembles.gate import BASELINE
    from trainers.intervals import average_precision_interval

    gaps = []
    for names, own in predictions.groupby(["arm", "model", "fold"], sort=True):
        arm, model, fold = cast(tuple[str, str, int], names)
        found: dict[str, float] = {}
        for kind in ("oof", "test", "pool") if arm == BASELINE else ("oof", "test"):
            rows = own[own["kind"] == kind]
            targets = known[pd.Index(table.frame["id"]).get_indexer(pd.Index(rows["id"]))]
            targets, logits = targets[targets >= 0], rows["logit"].to_numpy(dtype=float)[targets >= 0]
            if (targets == 1).any():
                ap = average_precision_interval(targets, logits, rng=rng)
                found |= {f"{kind}_ap": ap.estimate, f"{kind}_sd": ap.sd}
        if "oof_ap" in found:  # a fold may have no positive
            gaps.append(FoldGap(model, int(fold), **found))
    return gaps


def summarised(gaps: list[FoldGap]) -> dict[str, Any]:
    """How many fold models are inside, and their mean gap, on test and pool rows; no key where no label is known."""
    found: dict[str, Any] = {"num_fold_models": len(gaps)}
    for kind, suffix in KINDS.items():
        known = [gap for gap in gaps if gap.gap(kind) is not None]
        if known:
            found[f"num_known{suffix}"] = len(known)
            found[f"share_inside{suffix}"] = fmean(bool(gap.inside(kind)) for gap in known)
            found[f"mean_gap{suffix}"] = fmean(gap.gap(kind) or 0.0 for gap in known)
    return found


def in_words(summary: dict[str, Any]) -> list[str]:
    """A line for test and one for pool rows, where labels are known.

    >>> in_words({"num_fold_models": 4, "num_known": 2, "share_inside": 0.5, "mean_gap": -0.02})
    ['fold models: 50.0% of 2 have a test AP within 1.96 sd of their out-of-fold AP; less it -0.020 on average']
    """
    return [
        f"fold models: {100 * summary[f'share_inside{suffix}']:.1f}% of {summary[f'num_known{suffix}']} have a {kind} "
        f"AP within {STANDARD_ERRORS:g} sd of their out-of-fold AP; less it {summary[f'mean_gap{suffix}']:+.3f} on "
        "average"
        for kind, suffix in KINDS.items()
        if f"share_inside{suffix}" in summary
    ]


def _table(gaps: dict[Path, list[FoldGap]]) -> "Table":
    from rich.table import Table

    table = Table(title="AP of fold models")
    table.add_column("run", overflow="fold")
    for heading in ("model", "fold", "out of fold", "test", "inside", "pool", "inside"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for run, own in gaps.items():
        for gap in own:
            cells = [_cell(gap.oof_ap, gap.oof_sd)]
            for kind, ap, sd in (("test", gap.test_ap, gap.test_sd), ("pool", gap.pool_ap, gap.pool_sd)):
                inside = gap.inside(kind)
                cells += [_cell(ap, sd), "" if inside is None else "yes" if inside else "no"]
            table.add_row(run.name, gap.model, str(gap.fold), *cells)
        table.add_section()
    return table


def _cell(ap: float | None, sd: float | None) -> str:
    return "" if ap is None or sd is None else f"{ap:.3f} ± {sd:.3f}"


if __name__ == "__main__":
    run_command(main)
