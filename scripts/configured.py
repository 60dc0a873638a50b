"""What most commands do: check the config, and only then import what is slow to import and run the stages."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.input_files import check_input_files
from configs.load import load_config

if TYPE_CHECKING:
    from configs.schema import RunConfig
    from scripts.pipeline import Pipeline


def run_configured(
    path: Path, overrides: Sequence[str] | None = None, *, until: str = "report", restart: bool = False
) -> "Pipeline":
    """`scripts.pipeline.run_pipeline` with the config of a file; a mistake in it is told within half a second."""
    return run_checked(load_config(path, overrides or ()), until=until, restart=restart)


def run_checked(
    config: "RunConfig", *, until: str = "report", restart: bool = False, described: "RunConfig | None" = None
) -> "Pipeline":
    """The same with a config that was read."""
    check_input_files(config)
    from scripts.pipeline import run_pipeline

    return run_pipeline(config, until=until, restart=restart, described=described)
