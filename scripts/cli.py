"""The `rarefind` entry point: the commands of this folder under one name.

The command modules import nothing heavy until they are called, so that `--help` answers at once.
"""

import importlib
from typing import Annotated

import typer

from scripts.bench.__main__ import bench_app
from scripts.command import guarded, new_app

# name of the command -> module with its `main`; the order is the order of --help
COMMANDS = {
    "demo": "scripts.demo",
    "init": "scripts.init",
    "run": "scripts.run",
    "compare": "scripts.compare",
    "prepare": "scripts.prepare",
    "pretrain": "scripts.pretrain",
    "train": "scripts.train",
    "predict": "scripts.predict",
    "pseudo-label": "scripts.pseudo_label",
    "ensemble": "scripts.ensemble",
    "submit": "scripts.submit",
    "export": "scripts.export",
    "report": "scripts.report",
    "tune": "scripts.tune",
    "embed": "scripts.embed",
    "probe": "scripts.probe",
    "propagate": "scripts.propagate",
    "cluster": "scripts.cluster",
    "neighbours": "scripts.neighbours",
    "plan": "scripts.plan",
    "augment": "scripts.augment",
    "prepare-fashion": "scripts.prepare_fashion",
}


def main() -> None:
    """Parse the command line and run one command."""
    app = new_app(no_args_is_help=True)
    app.callback()(_options)
    for name, module in COMMANDS.items():
        app.command(name)(importlib.import_module(module).main)
    app.add_typer(bench_app(), name="bench")
    guarded(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"rarefind {version('rarefind')}")
        raise typer.Exit()


def _options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="version")] = False,
) -> None:
    """Find the rare positive in a big pool of images from a few labels."""


if __name__ == "__main__":
    main()
