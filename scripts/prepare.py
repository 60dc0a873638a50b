"""`rarefind prepare`."""

from scripts.arguments import ConfigArgument, OverridesArgument, RestartOption
from scripts.command import run_command


def main(config: ConfigArgument, overrides: OverridesArgument = None, restart: RestartOption = False) -> None:
    """Read the input, decode every image once, make the folds and the cache."""
    from scripts.configured import run_configured

    run_configured(config, overrides, until="prepare", restart=restart)


if __name__ == "__main__":
    run_command(main)
