"""`rarefind compare`."""

from scripts.arguments import ConfigArgument, OverridesArgument, RestartOption
from scripts.command import run_command


def main(config: ConfigArgument, overrides: OverridesArgument = None, restart: RestartOption = False) -> None:
    """Train every way of using the pool, and keep the one that helps, if one does. Resumable."""
    from configs.load import load_config
    from scripts.pipeline import run_pipeline

    run_pipeline(load_config(config, [*(overrides or ()), "pool.arm=all"]), restart=restart)


if __name__ == "__main__":
    run_command(main)
