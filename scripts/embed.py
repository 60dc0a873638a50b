"""`rarefind embed`."""

from scripts.arguments import ConfigArgument, OverridesArgument, RestartOption
from scripts.command import run_command


def main(config: ConfigArgument, overrides: OverridesArgument = None, restart: RestartOption = False) -> None:
    """Describe every image by the features of frozen networks (and prepare, if that is not done)."""
    from scripts.configured import run_configured

    run_configured(config, overrides, until="embed", restart=restart)


if __name__ == "__main__":
    run_command(main)
