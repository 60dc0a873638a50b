"""`rarefind bench recipes STUDY`: what each part of a recipe is worth, by pairs of runs that differ in nothing else.

Recipes are judged on out-of-fold rows, on which choices may be made; `--look NAME` adds the test set's figures of the
recipes that were chosen. Runs are ordinary run folders: finished ones are reused, an interrupted one goes on.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scripts.arguments import RestartOption
from scripts.bench.benchmark_data import ORACLE_TABLE, TABLE, TEST, TEST_TRUTH, write_benchmark
from scripts.bench.spread import bracketed, mean_sd, paired, signed
from scripts.bench.timed import timed_run
from scripts.command import run_command

if TYPE_CHECKING:
    from rich.table import Table

    from configs.schema import RunConfig
    from configs.study import StudyConfig


def main(
    study: Annotated[Path, typer.Argument(help="YAML: benchmark, preset, seeds, recipes; see configs/*_study.yaml")],
    out: Annotated[
        Path | None, typer.Option(help="folder for data and run folders; default: runs/ and the study's name")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="recipe to run; may be repeated; default: all")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="run only the first so many seeds")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value for every run, e.g. compute.num_devices=2; may be repeated"),
    ] = None,
    look: Annotated[list[str] | None, typer.Option(help="recipe whose test figures are wanted, too")] = None,
    restart: RestartOption = False,
) -> None:
    """Compare recipes over seeds: mean, spread, and the paired difference from the first with 95% intervals."""
    from rich.console import Console

    from configs.errors import InputError
    from configs.study import load_study

    plan = load_study(study)
    names = [*plan.recipes, *plan.oracle]
    wanted = list(only or names)
    looked = set(look or [])
    unknown = sorted({*wanted, *looked} - set(names))
    if unknown:
        raise InputError(f"{study}: no recipe {', '.join(map(repr, unknown))}; there are {', '.join(names)}")
    if not looked <= set(wanted):
        raise InputError(f"--look {sorted(looked - set(wanted))[0]!r}: not among the recipes of --only")
    chosen = plan.seeds[:seeds]
    out = out or Path("runs") / study.stem
    configs = {  # all before the first is trained, because one may have a mistake
        name: [_config(plan, study, name, seed, out, overrides or [], truth=name in looked) for seed in chosen]
        for name in names
        if name in wanted
    }
    _check_same_rows(study, {name: settings[0] for name, settings in configs.items() if name in plan.recipes})
    rows = []
    for name, settings in configs.items():
        results = []
        for config in settings:
            _write_data(plan, config.seed, out)
            print(f"--- {name}, seed {config.seed}", flush=True)
            results.append(timed_run(config, restart=restart))
        rows.append({"recipe": name, "seeds": chosen, **_summary(results)})
    first = rows[0]
    for row in rows:
        alike = row is not first and row["recipe"] not in plan.oracle  # whose out-of-fold rows are others
        row["difference"], row["difference_ci"] = paired(row["ap"], first["ap"]) if alike else (None, None)
        row["images_ci"] = _over_images(configs[row["recipe"]], configs[first["recipe"]]) if alike else None
    Console().print(_table(rows, f"{plan.benchmark}, {len(chosen)} seed(s): average precision"))
    if any(row["images_ci"] for row in rows):
        print("minus: 95% over seeds (t); images: 95% over the images that were judged, trained networks as they are")
    print(json.dumps({"benchmark": plan.benchmark, "recipes": rows}))


def _table(rows: list[dict[str, Any]], title: str) -> "Table":
    """The rows without the columns that say nothing here."""
    from rich.table import Table

    first = rows[0]
    columns: dict[str, list[str]] = {
        "recipe": [row["recipe"] for row in rows],
        "out of fold": [mean_sd(row["ap"]) for row in rows],
    }
    if len(rows) > 1:
        columns[f"minus {first['recipe']}"] = [signed(row["difference"], row["difference_ci"]) for row in rows]
    if any(row["images_ci"] for row in rows):
        columns["images"] = [bracketed(row["images_ci"]) for row in rows]
    if any(len(row["models"]) > 1 for row in rows):
        columns["models"] = [", ".join(map(mean_sd, row["models"].values())) for row in rows]
    if any(row["test_ap"] for row in rows):
        columns["test"] = [mean_sd(row["test_ap"]) if row["test_ap"] else "not looked at" for row in rows]
    if first["worst_recall"]:
        columns["worst class recall"] = [mean_sd(row["worst_recall"]) for row in rows]
    if any(row["test_worst_recall"] for row in rows):
        worst = [row["test_worst_recall"] for row in rows]
        columns["test worst class recall"] = [mean_sd(recalls) if recalls else "not looked at" for recalls in worst]
    columns["minutes"] = [f"{sum(row['minutes']):.0f}" for row in rows]
    table = Table(title=title)
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "recipe" else "right")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def _over_images(own: list["RunConfig"], first: list["RunConfig"]) -> list[float] | None:
    """95% of the mean over seeds of the paired difference in out-of-fold AP, images resampled; two classes only.

    Seeds are independent, so the variances of their differences add up.
    """
    import numpy as np

    from ensembles.ensemble import read_ensemble
    from trainers.paired import paired_difference

    differences = []
    for one, other in zip(own, first, strict=True):
        stored = [read_ensemble(config.run_dir / "ensemble") for config in (one, other)]
        if stored[0].blend.num_outputs > 1:
            return None
        mine, others = (each.scores[each.scores["kind"] == "oof"].set_index("id") for each in stored)
        targets = mine["target"].to_numpy(dtype=np.int64)
        scores = mine["score"].to_numpy(), others.loc[mine.index, "score"].to_numpy()
        differences.append(paired_difference(targets, *scores, rng=np.random.default_rng(one.seed)))
    mean = float(np.mean([difference.estimate for difference in differences]))
    sd = float(np.sqrt(np.sum([difference.sd**2 for difference in differences]))) / len(differences)
    return [mean - 1.96 * sd, mean + 1.96 * sd]


def _config(
    plan: "StudyConfig", study: Path, name: str, seed: int, out: Path, given: list[str], *, truth: bool
) -> "RunConfig":
    from configs.load import load_config
    from configs.study import run_name

    data = _data_folder(plan, seed, out)
    table = ORACLE_TABLE if name in plan.oracle else TABLE
    overrides = [
        *plan.overrides(name, given),
        f"data.source={data / table}", f"data.test={data / TEST}", f"out={out}", f"seed={seed}",
        f"name={run_name(name)}-seed{seed}",
        *([f"data.truth={data / TEST_TRUTH}"] if truth else []),
    ]  # fmt: skip
    return load_config(study.parent / plan.preset, overrides)


def _check_same_rows(study: Path, configs: dict[str, "RunConfig"]) -> None:
    """Raise InputError when recipes would be compared on other images."""
    from configs.errors import InputError

    for name, config in configs.items():
        first = next(iter(configs))
        share, first_share = config.guarantee.holdout, configs[first].guarantee.holdout
        if share != first_share:
            raise InputError(
                f"{study}: recipes {first!r} and {name!r} set aside other images (guarantee.holdout {first_share} and "
                f"{share}), so their out-of-fold figures cannot be compared; set it in `common`"
            )


def _data_folder(plan: "StudyConfig", seed: int, out: Path) -> Path:
    return out / f"data-{plan.benchmark}-seed{seed}"  # studies of both may share a folder


def _write_data(plan: "StudyConfig", seed: int, out: Path) -> None:
    """The benchmark of one seed, and beside it the table of the oracle and the truth of the test rows alone."""
    from trainers import fashion

    kind = fashion.RareFashion if plan.benchmark == "rare-fashion" else fashion.LongTail
    write_benchmark(_data_folder(plan, seed, out), kind(seed=seed))


def _summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    models = results[0]["models"]
    ensembles = [result["ensemble"] for result in results]
    tests = [result["test"]["ensemble"] for result in results if "test" in result]
    return {
        "ap": [figures["ap"] for figures in ensembles],
        "worst_recall": _worst_recalls(ensembles),
        "models": {name: [result["models"][name]["supervised"]["ap"] for result in results] for name in models},
        "test_ap": [figures["ap"] for figures in tests],
        "test_worst_recall": _worst_recalls(tests),
        "minutes": [result["wall_seconds"] / 60 for result in results],
    }


def _worst_recalls(figures: list[dict[str, Any]]) -> list[float]:
    """Of multi-class figures, the recall of the class that is found least."""
    return [entry["worst_recall"]["recall"] for entry in figures if "worst_recall" in entry]


if __name__ == "__main__":
    run_command(main)
