"""`rarefind predict`."""

from scripts.arguments import ConfigArgument, OverridesArgument, RestartOption
from scripts.command import run_command


def main(config: ConfigArgument, overrides: OverridesArgument = None, restart: RestartOption = False) -> None:
    """Score held-out, pool and test images with the trained models (and what comes before)."""
    from scripts.configured import run_configured

    run_configured(config, overrides, until="predict", restart=restart)


if __name__ == "__main__":
    run_command(main)
