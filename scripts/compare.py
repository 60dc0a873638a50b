"""`rarefind compare`."""

from scripts.arguments import ConfigArgument, OverridesArgument, RestartOption
from scripts.command import run_command


def main(config: ConfigArgument, overrides: OverridesArgument = None, restart: RestartOption = False) -> None:
    """Train every way of using the pool, and keep the one that helps, if one does. Resumable."""
    from configs.errors import InputError
    from scripts.configured import run_configured

    given = [override for override in overrides or () if override.startswith("pool.arm=")]
    if given:
        raise InputError(f"{given[0]}: compare trains all arms; leave it out, or use `rarefind run` for one of them")
    run_configured(config, [*(overrides or ()), "pool.arm=all"], restart=restart)


if __name__ == "__main__":
    run_command(main)
