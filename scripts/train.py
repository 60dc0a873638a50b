"""`rarefind train`."""

from scripts.arguments import ConfigArgument, OverridesArgument, RestartOption
from scripts.command import run_command


def main(config: ConfigArgument, overrides: OverridesArgument = None, restart: RestartOption = False) -> None:
    """Train every model on every fold (and prepare, if that is not done)."""
    from scripts.configured import run_configured

    run_configured(config, overrides, until="train", restart=restart)


if __name__ == "__main__":
    run_command(main)
