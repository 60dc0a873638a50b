"""`rarefind export`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from scripts.command import run_command


def main(
    run: Annotated[Path, typer.Argument(help="run folder, e.g. runs/run")],
    out: Annotated[Path | None, typer.Option(help="folder to write; default: RUN/export")] = None,
) -> None:
    """Write a folder that scores images with the run's ensemble on a machine without rarefind."""
    from configs.errors import InputError
    from configs.load import load_config

    config_file = run / "config.yaml"
    if not config_file.is_file() or not (run / "metrics.json").is_file():
        raise InputError(
            f"{run}: expected the folder of a finished run, with config.yaml and metrics.json, e.g. runs/run; "
            "`rarefind run CONFIG` makes one"
        )
    config = load_config(config_file)
    from ensembles import export  # after what is wrong was told: it imports torch
    from trainers.run_lock import locked

    folder = out or run / "export"
    with locked(run):
        result = export.run(
            run, name=config.name, data=config.data, predict=config.predict, submit=config.submit, out=folder
        )
    typer.echo(f"{result.summary}\nWritten: {result.folder}. Score images with: ")
    typer.echo(f"python {shlex.quote(str(result.folder / 'inference.py'))} IMAGES --out scores.csv")


if __name__ == "__main__":
    run_command(main)
