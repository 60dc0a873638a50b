"""`rarefind cluster`."""

from scripts.arguments import ConfigArgument, OverridesArgument, RestartOption
from scripts.command import run_command


def main(config: ConfigArgument, overrides: OverridesArgument = None, restart: RestartOption = False) -> None:
    """Clusters of frozen features, found without labels and judged with them (and embed, if that is not done)."""
    from configs.load import load_config
    from scripts.pipeline import run_pipeline

    run_pipeline(load_config(config, overrides or ()), until="cluster", restart=restart)


if __name__ == "__main__":
    run_command(main)
