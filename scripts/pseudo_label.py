"""`rarefind pseudo-label`."""

from scripts.arguments import ConfigArgument, OverridesArgument, RestartOption
from scripts.command import run_command


def main(config: ConfigArgument, overrides: OverridesArgument = None, restart: RestartOption = False) -> None:
    """Label the pool by fold models, and train students on labels and pool (and what comes before)."""
    from configs.load import load_config
    from scripts.pipeline import run_pipeline

    asked = [*(overrides or ()), "pool.arm=pseudo"]
    run_pipeline(load_config(config, asked), until="pseudo-label", restart=restart)


if __name__ == "__main__":
    run_command(main)
