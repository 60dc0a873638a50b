"""`rarefind tune`."""

from pathlib import Path
from typing import Annotated

import typer

from scripts.arguments import OverridesArgument
from scripts.command import run_command


def main(
    config: Annotated[
        Path, typer.Argument(help="YAML config of the run with --space, or a study that names its config")
    ],
    overrides: OverridesArgument = None,
    space: Annotated[
        Path | None, typer.Option(help="YAML: `space` (which settings are searched, and where) and more; README")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="postgresql://user:password@host/database; default: a journal file in the study's folder"),
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="trials of the study, of all workers together")] = None,
    worker_trials: Annotated[int | None, typer.Option(min=1, help="at most so many of them in this command")] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes that work on it side by side on this machine")] = 1,
) -> None:
    """Search settings with Optuna, and say what the best is worth. The same command goes on, or joins in."""
    from configs.tuning_plan import load_plan

    load_plan(config, space, tuple(overrides or ()))  # what is wrong is told before the slow imports
    from scripts.steps.study import Call, run_study

    run_study(Call(config, space, tuple(overrides or ()), storage, trials, worker_trials), workers=workers)


if __name__ == "__main__":
    run_command(main)
