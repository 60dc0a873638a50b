"""`rarefind bench screening`: is the certified recall kept? The screening preset over seeds, judged on 1,600 positives.

Each seed draws its own rare-fashion labels and trains small, short networks; the recall at the certified threshold is
then counted on pool and test rows, whose labels no training sees. The control in the same run is the naive threshold,
which finds the asked share of the holdout positives themselves: it is below the promise about every second time. Runs
are ordinary run folders: finished ones are reused, an interrupted one goes on.
"""

import json
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scripts.arguments import RestartOption
from scripts.bench.benchmark_data import TABLE, TEST, write_benchmark
from scripts.bench.gaps import in_words, summarised
from scripts.bench.spread import mean_sd
from scripts.bench.timed import timed_run
from scripts.command import run_command

if TYPE_CHECKING:
    from rich.table import Table

    from configs.schema import RunConfig
    from scripts.bench.screening_figures import Screening

TABLE_WIDTH = 118  # also where there is no terminal
PRESET = "screening.yaml"
SMALL = (  # what is promised does not depend on how good the networks are
    "folds.num_folds=2",
    "train.steps=300",
    "train.batch_size=64",
    "train.warmup_steps=30",
    "predict.views=[{view: identity}]",
)


def main(
    seeds: Annotated[int, typer.Option(min=1, help="seeds 0, 1, ...: each draws labels, holdout and weights")] = 20,
    positives: Annotated[int, typer.Option(min=2, help="labelled positives")] = 293,
    negatives: Annotated[int, typer.Option(min=2, help="labelled negatives")] = 5_000,
    pool: Annotated[int, typer.Option(min=1, help="pool images, at the prevalence of the labelled ones")] = 20_000,
    out: Annotated[Path, typer.Option(help="folder for data and run folders")] = Path("runs/screening"),
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value for every run, e.g. train.steps=3000; may be repeated")
    ] = None,
    idx: Annotated[Path | None, typer.Option(help="folder of Fashion-MNIST's IDX files; default: Debian's")] = None,
    restart: RestartOption = False,
) -> None:
    """How often the true recall is below the certified one, and whether fold models do as well on the test rows."""
    from rich.console import Console

    from scripts.bench.screening_figures import screening_figures
    from trainers.fashion import RareFashion

    configs = [_config(seed, out, overrides or []) for seed in range(seeds)]  # a mistake is told before any training
    results = []
    for config in configs:
        settings = RareFashion(num_positives=positives, num_negatives=negatives, num_pool=pool, seed=config.seed)
        write_benchmark(_data_folder(config.seed, out), settings, idx=idx)
        print(f"--- seed {config.seed}", flush=True)
        seconds = timed_run(config, restart=restart)["wall_seconds"]
        results.append(screening_figures(config, minutes=seconds / 60))
        print(_line(results[-1]), flush=True)
    guarantee = configs[0].guarantee
    title = (
        f"certified recall {guarantee.recall:g} with confidence {guarantee.confidence:g}: what is true on pool and test"
    )
    Console(width=TABLE_WIDTH).print(_table(results, title))
    summary = _summary(results)
    print(_in_words(summary, guarantee.recall))
    told = {"benchmark": "screening", "recall": guarantee.recall, "confidence": guarantee.confidence, **summary}
    print(json.dumps({**told, "seeds": [asdict(result) for result in results]}))


def _data_folder(seed: int, out: Path) -> Path:
    return out / f"data-seed{seed}"


def _config(seed: int, out: Path, given: list[str]) -> "RunConfig":
    import configs
    from configs.load import load_config

    data = _data_folder(seed, out)
    overrides = [
        *SMALL, *given,
        f"data.source={data / TABLE}", f"data.test={data / TEST}", f"data.truth={data / 'truth.csv'}",
        f"out={out}", f"seed={seed}", f"name=seed{seed}",
    ]  # fmt: skip
    return load_config(Path(configs.__file__).parent / PRESET, overrides)


def _summary(results: list["Screening"]) -> dict[str, Any]:
    """Counts over the seeds, and the fold models whose test AP is where their out-of-fold AP says."""
    return {
        "num_seeds": len(results),
        "num_below": sum(result.certified.below for result in results),
        "num_naive_below": sum(result.naive.below for result in results),
        **summarised([gap for result in results for gap in result.folds]),
    }


def _in_words(summary: dict[str, Any], promised: float) -> str:
    number = summary["num_seeds"]
    recall = (
        f"true recall below {promised:g}: {summary['num_below']} of {number} seeds at the certified threshold, "
        f"{summary['num_naive_below']} of {number} at the naive one (which finds {promised:g} of the holdout positives)"
    )
    return "\n".join([recall, *in_words(summary)])


def _line(result: "Screening") -> str:
    own = result.certified
    return (
        f"seed {result.seed}: recall {own.recall:.3f}{' (below)' if own.below else ''}, naive "
        f"{result.naive.recall:.3f}{' (below)' if result.naive.below else ''}, {result.minutes:.1f} min"
    )


def _table(results: list["Screening"], title: str) -> "Table":
    from rich.table import Table

    table = Table(title=title)
    for heading in ("seed", "held out +", "rank", "threshold", "recall", "precision", "reviewed", "naive", "folds"):
        table.add_column(heading, justify="right")
    for result in results:
        own, naive = result.certified, result.naive
        table.add_row(
            str(result.seed),
            str(result.num_holdout_positives),
            str(result.rank),
            f"{own.threshold:.3f}",
            f"{'BELOW ' if own.below else ''}{own.recall:.3f} [{own.recall_ci[0]:.3f}, {own.recall_ci[1]:.3f}]",
            f"{own.precision:.3f}",
            f"{100 * own.reviewed:.1f}%",
            f"{'below ' if naive.below else ''}{naive.recall:.3f}",
            f"{sum(bool(gap.inside('test')) for gap in result.folds)}/{len(result.folds)}",
        )
    table.add_section()
    table.add_row(
        "all", "", "", "", mean_sd([result.certified.recall for result in results]),
        mean_sd([result.certified.precision for result in results]),
        f"{100 * fmean(result.certified.reviewed for result in results):.1f}%",
        mean_sd([result.naive.recall for result in results]), "",
    )  # fmt: skip
    return table


if __name__ == "__main__":
    run_command(main)
