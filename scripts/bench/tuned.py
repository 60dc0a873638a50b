"""`rarefind bench tuned RUN ...`: what the tuned blend of finished runs is worth against equal weights.

The search and the verdict of each run are made again from its predictions; nothing is trained. Each run is judged a
second time with a weak partner: its better model and a copy of the other one with noise in its logits, where tuned
weights must be adopted and win. The truth of the test rows is looked at in the end, and chooses nothing.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scripts.bench.spread import paired, signed
from scripts.command import run_command

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from rich.table import Table

    from configs.schema import RunConfig
    from ensembles.blending import Blend
    from trainers.table import ImageTable

MARGIN = 0.003  # AP on the test set that a verdict may cost in the mean over runs
NOISE = 2.0  # of a weak partner, in standard deviations of its logits
OWN, WEAK = "own models", "weak partner"


def main(
    runs: Annotated[list[Path], typer.Argument(help="finished run folders whose config names data.truth, one a seed")],
    trials: Annotated[int | None, typer.Option(min=4, help="of each search; default: as in the run")] = None,
) -> None:
    """Tuned weights against equal ones, out of fold and on the test set, and with a partner that is made weak."""
    from rich.console import Console

    rows = [row for run in runs for row in judged_run(run, trials)]
    methods = list(rows[0]["equal"])
    console = Console()
    for table in (_verdicts(rows, methods), _test_figures(rows, methods)):
        console.print(table)
    differences = {
        case: {
            f"{which} minus equal {method}": _difference(
                [row[which] for row in rows if row["case"] == case],
                [row["equal"][method] for row in rows if row["case"] == case],
            )
            for which in ("deployed", "tuned")
            for method in methods
        }
        for case in (OWN, WEAK)
    }
    for case, found in differences.items():
        for name, own in found.items():
            console.print(f"{case}, test: {name} {signed(own['mean'], own['ci'])}", highlight=False, markup=False)
    weak = [row for row in rows if row["case"] == WEAK]
    holds = {
        f"deployed at most {MARGIN} below equal weights": all(
            differences[OWN][f"deployed minus equal {method}"]["mean"] >= -MARGIN for method in methods
        ),
        "tuned weights of a weak partner adopted, and better": all(
            row["adopted"] and row["tuned"] > max(row["equal"].values()) for row in weak
        ),
    }
    for name, value in holds.items():
        console.print(f"{name}: {'yes' if value else '[red]no[/]'}")
    print(json.dumps({"benchmark": "tuned", "rows": rows, "test_differences": differences, "holds": holds}))


def _verdicts(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> "Table":
    """Out of fold, which decides."""
    from rich.table import Table

    table = Table(title="out of fold: cross-fitted AP of tuned weights, and their gain")
    for heading in ("run", "models"):
        table.add_column(heading, overflow="fold")
    for heading in ("tuned", *(f"over equal {method}" for method in methods), "adopted"):
        table.add_column(heading, justify="right")
    for row in rows:
        gains = (_gain(row["against"].get(method)) for method in methods)
        adopted = "yes" if row["adopted"] else "no"
        table.add_row(Path(row["run"]).name, row["case"], f"{row['ap']:.3f}", *gains, adopted)
    return table


def _test_figures(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> "Table":
    """AP on the test set, which decides nothing."""
    from rich.table import Table

    table = Table(title="test set: AP")
    for heading in ("run", "models"):
        table.add_column(heading, overflow="fold")
    for heading in ("deployed", "tuned", *(f"equal {method}" for method in methods)):
        table.add_column(heading, justify="right")
    for row in rows:
        values = (row["deployed"], row["tuned"], *row["equal"].values())
        table.add_row(Path(row["run"]).name, row["case"], *(f"{ap:.3f}" for ap in values))
    return table


def judged_run(run: Path, trials: int | None) -> list[dict[str, Any]]:
    """The figures of a run with its own models and with a weak partner.

    Raises InputError when the run is not finished, has fewer than two models, or knows no test label.
    """
    from configs.errors import InputError
    from configs.load import load_config
    from ensembles.ensemble import read_ensemble
    from ensembles.predictions import read_predictions
    from scripts.bench.pairs import average_precisions
    from trainers.provenance import derive_seed
    from trainers.table import read_table

    if not (run / "config.yaml").is_file() or not (run / "metrics.json").is_file():
        raise InputError(f"{run}: expected the folder of a finished run, with config.yaml and metrics.json")
    config = load_config(run / "config.yaml")
    if config.data.truth is None:
        raise InputError(
            f"{run}: the test labels are not known; set data.truth to a file with id and label, and run it again"
        )
    arm = read_ensemble(run / "ensemble").arm
    table = read_table(run / "table.parquet")
    everything = read_predictions(run / "predictions", table=table)
    own = everything[(everything["arm"] == arm) & everything["kind"].isin(["oof", "test"])]
    singles = {names[0]: ap for names, ap in average_precisions(run, arm).items() if len(names) == 1}
    better, other = sorted(singles, key=lambda name: -singles[name])[:2]
    weak = with_weak_partner(own, better, other, seed=derive_seed(config.seed, "weak partner"))
    if trials is not None:
        config = config.model_copy(update={"ensemble": config.ensemble.model_copy(update={"trials": trials})})
    return [
        {"run": str(run), "case": case, "arm": arm, **figures(run, config, table, predictions)}
        for case, predictions in ((OWN, own), (WEAK, weak))
    ]


def with_weak_partner(predictions: "pd.DataFrame", better: str, other: str, *, seed: int) -> "pd.DataFrame":
    """The rows of `better`, and those of `other` with normal noise in every logit; without views, which have none."""
    import numpy as np

    from ensembles.predictions import numbered

    columns = numbered(list(predictions.columns), "logit")
    views = [name for name in predictions.columns if name.startswith("view_")]
    rows = predictions[predictions["model"].isin([better, other])].drop(columns=views).reset_index(drop=True)
    is_weak = (rows["model"] == other).to_numpy()
    sd = float(rows.loc[is_weak & (rows["kind"] == "oof").to_numpy(), columns].to_numpy().std())
    noise = np.random.default_rng(seed).normal(scale=NOISE * sd, size=(int(is_weak.sum()), len(columns)))
    rows.loc[is_weak, columns] += noise
    rows.loc[is_weak, "model"] = f"{other}-weak"
    return rows


def figures(run: Path, config: "RunConfig", table: "ImageTable", predictions: "pd.DataFrame") -> dict[str, Any]:
    """The verdict on the tuned blend of these predictions, and test AP of deployed, tuned and equal weights."""
    from configs.errors import InputError
    from ensembles.blending import fit_blend
    from ensembles.tuning import tune_arm
    from scripts.bench.pool_figures import known_rows

    ensemble = config.ensemble.model_copy(update={"tune": True})
    with tempfile.TemporaryDirectory() as folder:
        tuning = tune_arm(
            predictions, table=table, config=ensemble, metrics=config.metrics, seed=config.seed, out=Path(folder)
        )
    if tuning is None or tuning.searched is None:
        raise InputError(f"{run}: {'' if tuning is None else tuning.facts['reason']}")
    known = known_rows(run, table, config.data.truth)
    methods = ("ranks", "logits") if table.is_binary else ("logits",)
    equal = {method: fit_blend(predictions, method=method) for method in methods}
    deployed = tuning.searched if tuning.adopted else equal[config.ensemble.method]
    return {
        **{key: tuning.facts[key] for key in ("adopted", "ap", "ap_on_its_own_rows", "blend")},
        "against": tuning.facts["against"],
        "deployed": _test_ap(deployed, predictions, table, known),
        "tuned": _test_ap(tuning.searched, predictions, table, known),
        "equal": {method: _test_ap(blend, predictions, table, known) for method, blend in equal.items()},
    }


def _test_ap(blend: "Blend", predictions: "pd.DataFrame", table: "ImageTable", known: "np.ndarray") -> float:
    """AP (several classes: macro) of a blend on the test rows whose label is known."""
    import numpy as np
    import pandas as pd

    from ensembles.blending import blend_scores, score_columns
    from scripts.bench.pool_figures import judged

    scores = blend_scores(blend, predictions[predictions["kind"] == "test"])
    targets = known[pd.Index(table.frame["id"]).get_indexer(pd.Index(scores["id"]))]
    values = blend.class_scores(scores[score_columns(blend.num_outputs)].to_numpy(dtype=np.float64))
    return judged(table, targets[targets >= 0], values[targets >= 0]).ap


def _gain(against: dict[str, Any] | None) -> str:
    return "" if against is None else signed(against["gain"], against["gain_ci"])


def _difference(values: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    mean, interval = paired(values, others)
    return {"mean": mean, "ci": interval}


if __name__ == "__main__":
    run_command(main)
