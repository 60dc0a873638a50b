"""`rarefind init`: look at a folder of images, say what was understood, write a commented config."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from scripts.command import run_command


def main(
    data_dir: Annotated[Path, typer.Argument(help="folder with your images (and tables), or a table")],
    out: Annotated[Path, typer.Option(help="config file to write")] = Path("config.yaml"),
    force: Annotated[bool, typer.Option("--force", help="replace a config that is there")] = False,
) -> None:
    """Look at a folder of images, say what was understood, and write a commented config for it."""
    from configs.errors import InputError
    from configs.load import check_config
    from configs.template import commented_config
    from trainers.atomic import write_text
    from trainers.inspect import inspect_data, relative_to

    if not data_dir.exists():
        raise InputError(f"{data_dir} does not exist; name the folder with your images")
    if out.exists() and not force:
        raise InputError(f"{out} exists; name another file with --out, or replace it with --force")
    understood = inspect_data(data_dir)
    values = relative_to(understood.values, out.absolute().parent)
    heading = ["Written by `rarefind init`. Commented fields show their default.", "", *understood.lines]
    check_config(understood.values, "the config for this data")
    write_text(out, commented_config(values, heading=heading))
    for line in understood.lines:
        typer.echo(line)
    if understood.problem is not None:
        raise InputError(
            f"{out} is written, but before it can run, this has to be mended (in the data, or in {out}):\n"
            f"{understood.problem}"
        )
    typer.echo(f"Written: {out}. Look it over, then: rarefind run {shlex.quote(str(out))}")


if __name__ == "__main__":
    run_command(main)
