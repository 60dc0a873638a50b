"""`rarefind prepare`."""

from scripts.arguments import ConfigArgument, OverridesArgument, RestartOption
from scripts.command import run_command


def main(config: ConfigArgument, overrides: OverridesArgument = None, restart: RestartOption = False) -> None:
    """Read the input, decode every image once, make the folds and the cache."""
    from configs.load import load_config
    from scripts.pipeline import run_pipeline

    run_pipeline(load_config(config, overrides or ()), until="prepare", restart=restart)


if __name__ == "__main__":
    run_command(main)
