"""`rarefind pretrain`."""

from scripts.arguments import ConfigArgument, OverridesArgument, RestartOption
from scripts.command import run_command


def main(config: ConfigArgument, overrides: OverridesArgument = None, restart: RestartOption = False) -> None:
    """Learn the backbones from the unlabelled pool (and prepare, if that is not done)."""
    from scripts.configured import run_checked
    from scripts.own_arm import with_arm

    own, asked = with_arm(config, overrides or (), arm="pretrained", has=lambda config: config.pretrains)
    run_checked(asked, until="pretrain", restart=restart, described=own)


if __name__ == "__main__":
    run_command(main)
