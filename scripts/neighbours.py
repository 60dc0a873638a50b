"""`rarefind neighbours`."""

from scripts.arguments import ConfigArgument, OverridesArgument, RestartOption
from scripts.command import run_command


def main(config: ConfigArgument, overrides: OverridesArgument = None, restart: RestartOption = False) -> None:
    """Find images that are there twice: exact and near-duplicates, also across folds and from train to test."""
    from scripts.configured import run_configured

    run_configured(config, overrides, until="neighbours", restart=restart)


if __name__ == "__main__":
    run_command(main)
