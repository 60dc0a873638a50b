"""`rarefind pretrain`."""

from scripts.arguments import ConfigArgument, OverridesArgument, RestartOption
from scripts.command import run_command


def main(config: ConfigArgument, overrides: OverridesArgument = None, restart: RestartOption = False) -> None:
    """Learn the backbones from the unlabelled pool (and prepare, if that is not done)."""
    from configs.load import load_config
    from scripts.pipeline import run_pipeline

    asked = [*(overrides or ()), "pool.arm=pretrained"]
    run_pipeline(load_config(config, asked), until="pretrain", restart=restart)


if __name__ == "__main__":
    run_command(main)
