"""`rarefind run`."""

from scripts.arguments import ConfigArgument, OverridesArgument, RestartOption
from scripts.command import run_command


def main(config: ConfigArgument, overrides: OverridesArgument = None, restart: RestartOption = False) -> None:
    """The whole pipeline: prepare, train, predict, ensemble, submit, report. Resumable."""
    from scripts.configured import run_configured

    run_configured(config, overrides, restart=restart)


if __name__ == "__main__":
    run_command(main)
