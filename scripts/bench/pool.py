"""`rarefind bench pool STUDY`: what ways of using the pool are worth, over scenarios and seeds, against supervised.

Methods are judged on out-of-fold rows, on which choices may be made; `--look NAME` adds the test set's figures of those
that were chosen, with the gap to the oracle and the regret of the gate. Cells are done one by one: finished ones are
reused, an interrupted one goes on, and one that cannot be done does not keep the others from it.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scripts.arguments import RestartOption
from scripts.command import run_command

if TYPE_CHECKING:
    from scripts.bench.pool_cells import Plan
    from scripts.bench.pool_figures import Cell


def main(
    study: Annotated[Path, typer.Argument(help="YAML: scenarios, methods, rivals; see configs/pool_study.yaml")],
    out: Annotated[
        Path | None, typer.Option(help="folder for data and run folders; default: runs/ and the study's name")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="method to run beside supervised; may be repeated; default: the scenario's")
    ] = None,
    scenario: Annotated[list[str] | None, typer.Option(help="scenario; may be repeated; default: all")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="run only the first so many seeds")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value for everything, e.g. train.steps=1000; may be repeated"),
    ] = None,
    look: Annotated[
        list[str] | None, typer.Option(help="method whose test figures are wanted, too, or all; may be repeated")
    ] = None,
    idx: Annotated[Path | None, typer.Option(help="folder of Fashion-MNIST's IDX files; default: Debian's")] = None,
    restart: RestartOption = False,
) -> None:
    """Compare ways of using the pool with supervised training, share its networks, and judge the gate."""
    from rich.console import Console

    from configs.errors import InputError
    from configs.pool_study import ALL, ORACLE, SUPERVISED, load_pool_study
    from scripts.bench.pool_cells import Plan
    from scripts.bench.pool_table import rich_tables, scenario_rows

    settings = load_pool_study(study)
    scenarios, looked, wanted = list(scenario or settings.scenarios), set(look or []), list(only or [])
    _known(study, "scenario", scenarios, list(settings.scenarios))
    _known(study, "method", [*wanted, *sorted(looked - {ALL})], settings.names)
    plan = Plan(
        settings, study, out or Path("runs") / study.stem, given=tuple(overrides or ()), idx=idx, restart=restart
    )
    methods = {name: settings.methods_of(name, wanted) for name in scenarios}
    missing = sorted(looked - {ALL, *(method for own in methods.values() for method in own)})
    if missing:
        raise InputError(f"--look {missing[0]!r}: not among what is run; name it with --only, too")
    if looked:  # without which a gain could not be told
        looked = set(settings.names) if ALL in looked else looked | {SUPERVISED, ORACLE}
    cells = [(name, seed, method) for name in scenarios for seed in settings.seeds[:seeds] for method in methods[name]]
    for cell in cells:  # all before the first is trained, because one may have a mistake
        plan.check(*cell)
    done, failed = _run_all(plan, cells, looked)
    result: dict[str, Any] = {}
    for name in scenarios:
        own = [cell for cell in done if cell.scenario == name]
        if not own:
            continue
        result[name] = sorted(scenario_rows(own), key=lambda row: settings.names.index(row["method"]))
        for table in rich_tables(result[name], f"{name}, {len({cell.seed for cell in own})} seed(s): {_ap(own)}"):
            Console().print(table)
    for lost in failed:
        print(f"not done: {lost['scenario']}, seed {lost['seed']}, {lost['method']}: {lost['error'].splitlines()[0]}")
    print(json.dumps({"benchmark": "pool", "scenarios": result, "failed": failed}))
    if failed:
        raise typer.Exit(1)


def _run_all(
    plan: "Plan", cells: list[tuple[str, int, str]], looked: set[str]
) -> tuple[list["Cell"], list[dict[str, Any]]]:
    """The cells that could be done, and those that could not with the reason."""
    from configs.errors import InputError
    from configs.pool_study import ORACLE, SUPERVISED
    from scripts.bench.pool_cells import run_cell

    done: list[Cell] = []
    failed: list[dict[str, Any]] = []
    for name, seed, method in cells:
        print(f"--- {name}, seed {seed}, {method}", flush=True)
        try:
            stands_on = {(cell["scenario"], cell["seed"]) for cell in failed if cell["method"] == SUPERVISED}
            if (name, seed) in stands_on and method != ORACLE:
                raise InputError(f"stands on {SUPERVISED}, which could not be done")
            cell = run_cell(plan, name, seed, method, look=method in looked)
        except InputError as error:
            failed.append({"scenario": name, "seed": seed, "method": method, "error": str(error)})
            print(f"not done: {error}", flush=True)
            continue
        done.append(cell)
        print(f"{method}: {_line(cell)}", flush=True)
    return done, failed


def _line(cell: "Cell") -> str:
    """What a cell reached, and how long it took."""
    line = f"out of fold {cell.oof.ap:.3f}"
    line += "" if cell.test is None else f", test {cell.test.ap:.3f}"
    line += f", gate keeps {cell.kept}" if cell.kept else ""
    line += f", {cell.note}" if cell.note else ""
    return f"{line}, {cell.minutes:.1f} min"


def _ap(cells: list["Cell"]) -> str:
    return "average precision" if cells[0].oof.worst_recall is None else "mean average precision of the classes"


def _known(study: Path, what: str, names: list[str], known: list[str]) -> None:
    from configs.errors import InputError

    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"{study}: no {what} {', '.join(map(repr, unknown))}; there are {', '.join(known)}")


if __name__ == "__main__":
    run_command(main)
