"""`rarefind probe`."""

from scripts.arguments import ConfigArgument, OverridesArgument, RestartOption
from scripts.command import run_command


def main(config: ConfigArgument, overrides: OverridesArgument = None, restart: RestartOption = False) -> None:
    """A baseline in seconds: simple learners on frozen features (and embed, if that is not done)."""
    from scripts.configured import run_configured

    run_configured(config, overrides, until="probe", restart=restart)


if __name__ == "__main__":
    run_command(main)
