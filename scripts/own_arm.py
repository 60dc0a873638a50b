"""The config of a command that stands for one way of using the pool, whatever the config itself asks for."""

from collections.abc import Callable, Sequence
from pathlib import Path

from configs.errors import InputError
from configs.load import load_config
from configs.schema import RunConfig


def with_arm(
    path: Path, overrides: Sequence[str], *, arm: str, has: Callable[[RunConfig], bool]
) -> tuple[RunConfig, RunConfig]:
    """The config of the user, and the one to work with: the same where it `has` the arm, else with `pool.arm` set.

    Raises InputError for an override of `pool.arm` that has not.
    """
    own = load_config(path, overrides)
    if has(own):
        return own, own
    given = [override for override in overrides if override.startswith("pool.arm=")]
    if given:
        raise InputError(f"{given[-1]}: this command does what pool.arm={arm} asks for; leave it out")
    return own, load_config(path, [*overrides, f"pool.arm={arm}"])
