"""The arguments that the commands on a run share."""

from pathlib import Path
from typing import Annotated

import typer

ConfigArgument = Annotated[Path, typer.Argument(help="YAML config of the run; `rarefind init` writes one")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(help="key=value, overriding any field by its dotted path, e.g. train.steps=500")
]
RestartOption = Annotated[
    bool, typer.Option("--restart", help="throw away half-done work that was begun with other settings")
]
