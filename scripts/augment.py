"""`rarefind augment`: a picture of what the augmentation policy does to the user's own images."""

from pathlib import Path
from typing import Annotated

import typer

from scripts.arguments import ConfigArgument, OverridesArgument, RestartOption
from scripts.command import run_command


def main(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    out: Annotated[Path, typer.Option(help="PNG to write")] = Path("grid.png"),
    images: Annotated[
        int, typer.Option(min=1, max=64, help="images, one per row; positives and negatives in turn")
    ] = 6,
    columns: Annotated[int, typer.Option(min=1, max=32, help="augmented versions of each")] = 9,
    restart: RestartOption = False,
) -> None:
    """Show what the policy does to your own images: the original first, then augmented versions."""
    from PIL import Image

    from augment.policies import build_policy
    from augment.preview import augmentation_grid
    from configs.load import load_config
    from scripts.pipeline import run_pipeline
    from trainers import atomic
    from trainers.pixels import open_pixels
    from trainers.table import read_table

    settings = load_config(config, overrides or ())
    run_pipeline(settings, until="prepare", restart=restart)
    table = read_table(settings.run_dir / "table.parquet")
    pixels = open_pixels(settings.run_dir, settings.data, table)
    labelled = table.rows("train")
    by_class = [labelled[table.targets[labelled] == target] for target in reversed(range(len(table.classes)))]
    rows = [rows[turn] for turn in range(images) for rows in by_class if turn < len(rows)][:images]
    policy = build_policy(
        settings.augment.policy,
        image_size=settings.data.image_size,
        channels=settings.data.channels,
        seed=settings.seed,
        **settings.augment.policy_arguments,
    )
    grid = augmentation_grid([pixels[int(row)] for row in rows], policy, columns=columns)
    with atomic.replacing(out) as temporary:
        Image.fromarray(grid).save(temporary, format="PNG")
    typer.echo(f"{out}: policy {settings.augment.policy!r} on {len(rows)} images, {columns} versions each")


if __name__ == "__main__":
    run_command(main)
