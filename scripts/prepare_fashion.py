"""`rarefind prepare-fashion`: build the benchmarks from Fashion-MNIST's IDX files, and one of digits."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from scripts.command import run_command


class Benchmark(StrEnum):
    """What can be built."""

    RARE_FASHION = "rare-fashion"
    LONG_TAIL = "long-tail"
    TENTH = "tenth"
    TENTH_DIGITS = "tenth-digits"


def main(
    out: Annotated[Path, typer.Argument(help="folder to write the benchmark to")],
    benchmark: Annotated[Benchmark, typer.Option(help="which one")] = Benchmark.RARE_FASHION,
    idx: Annotated[Path | None, typer.Option(help="folder of the four IDX files; default: Debian's")] = None,
    positive: Annotated[str | None, typer.Option(help="rare-fashion: the rare class; default: shirt")] = None,
    positives: Annotated[int | None, typer.Option(min=1, help="rare-fashion: labelled positives; default: 293")] = None,
    negatives: Annotated[
        int | None, typer.Option(min=1, help="rare-fashion: labelled negatives; default: 5000")
    ] = None,
    pool: Annotated[int | None, typer.Option(min=0, help="rare-fashion: unlabelled images; default: 45000")] = None,
    pool_prevalence: Annotated[
        float | None, typer.Option(help="rare-fashion: share of positives in the pool; default: the labels'")
    ] = None,
    unseen: Annotated[
        list[str] | None, typer.Option(help="rare-fashion: class that is never labelled; may be repeated")
    ] = None,
    unseen_share: Annotated[
        float | None, typer.Option(help="rare-fashion: their share of the pool; default: as they come")
    ] = None,
    most: Annotated[int | None, typer.Option(help="long-tail: labels of the commonest class; default: 1000")] = None,
    fewest: Annotated[int | None, typer.Option(help="long-tail: labels of the rarest class; default: 20")] = None,
    share: Annotated[float | None, typer.Option(help="tenth: share of the images with a label; default: 0.1")] = None,
    seed: Annotated[int, typer.Option(min=0, help="which images are chosen")] = 0,
) -> None:
    """Build a benchmark: a few labelled images, a pool, and a test set with hidden truth.

    tenth-digits is `tenth` of scikit-learn's digits, which need no IDX files; it has no test set.
    """
    options = {
        "positive": positive,
        "num_positives": positives,
        "num_negatives": negatives,
        "num_pool": pool,
        "pool_prevalence": pool_prevalence,
        "unseen": tuple(unseen) if unseen else None,
        "unseen_share": unseen_share,
        "most": most,
        "fewest": fewest,
        "share": share,
    }
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if benchmark == Benchmark.TENTH_DIGITS:
        from trainers import digits

        _check_options(benchmark, {*given, *(["idx"] if idx else [])}, digits.TenthDigits)
        counts = digits.write_tenth_digits(out, digits.TenthDigits(**given, seed=seed))
        _tell(out, counts, digits.TENTH_PRESET)
        return
    from trainers import fashion

    settings_type, kind = next(found for found in fashion.BENCHMARKS.items() if found[1].name == benchmark)
    _check_options(benchmark, given, settings_type)
    settings = settings_type(**given, seed=seed)
    fashion.check_folder(out, settings)
    _tell(out, kind.write(out, settings, idx=idx or fashion.DEBIAN_FOLDER), kind.preset)


def _check_options(benchmark: Benchmark, given: Iterable[str], settings_type: type[Any]) -> None:
    from configs.errors import InputError

    strange = set(given) - {field.name for field in fields(settings_type)}
    if strange:
        names = ", ".join(f"--{name.removeprefix('num_').replace('_', '-')}" for name in sorted(strange))
        raise InputError(f"{names}: not an option of {benchmark}; `rarefind prepare-fashion --help` says of which")


def _tell(out: Path, counts: Mapping[str, Mapping[str, int]], preset: str) -> None:
    """The counts of each part, and the command that runs the benchmark."""
    import configs

    for part, labels in counts.items():
        told = ", ".join(f"{label} {number}" for label, number in labels.items())
        typer.echo(f"{part:<6} {sum(labels.values()):>6} images: {told}")
    files = {"data.source": "table.csv", "data.truth": "truth.csv"}
    if "test" in counts:
        files |= {"data.test": "test.csv", "submit.sample": "sample_submission.csv"}
    overrides = [f"{key}={out / name}" for key, name in files.items()]
    typer.echo(f"written to {out}; next:")
    typer.echo(f"rarefind run {shlex.join([str(Path(configs.__file__).parent / preset), *overrides])}")


if __name__ == "__main__":
    run_command(main)
