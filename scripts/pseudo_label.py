"""`rarefind pseudo-label`."""

from scripts.arguments import ConfigArgument, OverridesArgument, RestartOption
from scripts.command import run_command


def main(config: ConfigArgument, overrides: OverridesArgument = None, restart: RestartOption = False) -> None:
    """Label the pool by fold models, and train students on labels and pool (and what comes before)."""
    from scripts.configured import run_checked
    from scripts.own_arm import with_arm

    own, asked = with_arm(config, overrides or (), arm="pseudo", has=lambda config: bool(config.student_arms))
    run_checked(asked, until="pseudo-label", restart=restart, described=own)


if __name__ == "__main__":
    run_command(main)
