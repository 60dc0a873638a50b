"""`rarefind prepare-fashion`: build the rare-fashion benchmark from Fashion-MNIST's IDX files."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from scripts.command import run_command


def main(
    out: Annotated[Path, typer.Argument(help="folder to write the benchmark to")],
    idx: Annotated[Path | None, typer.Option(help="folder of the four IDX files; default: Debian's")] = None,
    positive: Annotated[str, typer.Option(help="the rare class")] = "shirt",
    positives: Annotated[int, typer.Option(min=1, help="labelled positives")] = 293,
    negatives: Annotated[int, typer.Option(min=1, help="labelled negatives")] = 5_000,
    pool: Annotated[int, typer.Option(min=0, help="unlabelled images")] = 45_000,
    pool_prevalence: Annotated[
        float | None, typer.Option(help="share of positives in the pool; default: the labels'")
    ] = None,
    unseen: Annotated[list[str] | None, typer.Option(help="class that is never labelled; may be repeated")] = None,
    seed: Annotated[int, typer.Option(help="which images are chosen")] = 0,
) -> None:
    """Build rare-fashion: a few labelled shirts, many labelled others, a pool, and a test set with hidden truth."""
    from trainers.fashion import DEBIAN_FOLDER, RareFashion, write_rare_fashion

    settings = RareFashion(positive, positives, negatives, pool, pool_prevalence, tuple(unseen or ()), seed)
    counts = write_rare_fashion(out, settings, idx=idx or DEBIAN_FOLDER)
    for part, (num_positives, num_negatives) in counts.items():
        typer.echo(f"{part:<6} {num_positives:>6} positives {num_negatives:>7} negatives")
    source = shlex.quote(f"data.source={out / 'table.csv'}")
    typer.echo(f"written to {out}; run: rarefind run configs/rare_fashion.yaml {source} ...")


if __name__ == "__main__":
    run_command(main)
