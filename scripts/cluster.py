"""`rarefind cluster`."""

from typing import Annotated

import typer

from scripts.arguments import ConfigArgument, OverridesArgument, RestartOption
from scripts.command import run_command


def main(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="instead compare clusters, propagated labels, pseudo-labels and the trained networks, on one table",
        ),
    ] = False,
    restart: RestartOption = False,
) -> None:
    """Clusters of frozen features, found without labels and judged with them (and embed, if that is not done)."""
    from scripts.configured import run_configured

    until = "compare-learners" if compare else "cluster"
    run_configured(config, overrides, until=until, restart=restart)


if __name__ == "__main__":
    run_command(main)
