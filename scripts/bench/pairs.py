"""`rarefind bench pairs RUN ...`: what any two networks of finished runs would be worth together.

The runs differ in their seed and have trained the same networks, of which two would make the ensemble; nothing is
trained. Judged on out-of-fold rows only.
"""

import itertools
import json
from pathlib import Path
from typing import Annotated

import typer

from scripts.bench.spread import mean_sd, paired, signed
from scripts.command import run_command


def main(
    runs: Annotated[list[Path], typer.Argument(help="run folders with the same networks, one a seed")],
    arm: Annotated[str, typer.Option(help="arm whose predictions are taken")] = "supervised",
) -> None:
    """Average precision of each network and of each pair of them, equal weights, and the difference from the best."""
    from rich.console import Console
    from rich.table import Table

    from configs.errors import InputError

    by_run = {run: average_precisions(run, arm) for run in runs}
    first = next(iter(by_run.values()))
    for run, found in by_run.items():
        if found.keys() != first.keys():
            wanted, got = (", ".join(names[0] for names in one if len(names) == 1) for one in (first, found))
            raise InputError(f"{run}: expected the networks of {runs[0]} ({wanted}), got {got}")
    values = {names: [found[names] for found in by_run.values()] for names in first}
    ranked = sorted(values, key=lambda names: -sum(values[names]))
    table = Table(title=f"{len(by_run)} run(s): out-of-fold average precision")
    for heading in ("networks", "out of fold", "minus the first line"):
        table.add_column(heading, justify="left" if heading == "networks" else "right")
    rows = []
    for names in ranked:
        difference, interval = paired(values[names], values[ranked[0]]) if names != ranked[0] else (None, None)
        rows.append({"networks": names, "ap": values[names], "difference": difference, "difference_ci": interval})
        table.add_row(" + ".join(names), mean_sd(values[names]), signed(difference, interval))
    Console().print(table)
    print(json.dumps({"benchmark": "pairs", "runs": [str(run) for run in by_run], "rows": rows}))


def average_precisions(run: Path, arm: str) -> dict[tuple[str, ...], float]:
    """Out-of-fold AP (multi-class: its mean over classes) of each network and each pair, by their names.

    Raises InputError when the run has fewer than two networks of this arm.
    """
    import numpy as np

    from configs.errors import InputError
    from ensembles.blending import blend_scores, fit_logits, score_columns
    from ensembles.predictions import read_predictions
    from trainers import metrics
    from trainers.table import read_table

    table = read_table(run / "table.parquet")
    predictions = read_predictions(run / "predictions", table=table)
    chosen = predictions[(predictions["arm"] == arm) & (predictions["kind"] == "oof")]
    models = sorted(chosen["model"].unique())
    if len(models) < 2:
        raise InputError(f"{run}: expected two networks or more of arm {arm}, got {', '.join(models) or 'none'}")
    found = {}
    for names in [*itertools.combinations(models, 1), *itertools.combinations(models, 2)]:
        blend = fit_logits(chosen[chosen["model"].isin(names)])
        rows = blend_scores(blend, chosen[chosen["model"].isin(names)])
        scores = blend.class_scores(rows[score_columns(blend.num_outputs)].to_numpy(dtype=np.float64))
        targets = rows["target"].to_numpy(dtype=np.int64)
        if blend.num_outputs == 1:
            found[names] = metrics.average_precision(targets, scores[:, 0])
        else:
            found[names] = float(np.nanmean(metrics.per_class_average_precision(targets, scores)))
    return found


if __name__ == "__main__":
    run_command(main)
