"""`rarefind augment`: a picture of what the augmentation policy does to the user's own images.

It reads no more images than it shows, and no run folder, so it may be asked beside a running training.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scripts.arguments import ConfigArgument, OverridesArgument
from scripts.command import run_command

if TYPE_CHECKING:
    import numpy as np

    from configs.schema import DataConfig


def main(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    out: Annotated[Path, typer.Option(help="PNG to write")] = Path("grid.png"),
    images: Annotated[
        int, typer.Option(min=1, max=64, help="images, one per row; positives and negatives in turn")
    ] = 6,
    columns: Annotated[int, typer.Option(min=1, max=32, help="augmented versions of each")] = 9,
) -> None:
    """Show what the policy does to your own images: the original first, then augmented versions."""
    from PIL import Image

    from augment.policies import build_policy
    from augment.preview import augmentation_grid
    from configs.errors import counted
    from configs.load import load_config
    from trainers import atomic

    settings = load_config(config, overrides or ())
    pixels, unreadable = _some_images(settings.data, images)
    policy = build_policy(
        settings.augment.policy,
        image_size=settings.data.image_size,
        channels=settings.data.channels,
        seed=settings.seed,
        **settings.augment.policy_arguments,
    )
    grid = augmentation_grid(pixels, policy, columns=columns)
    with atomic.replacing(out) as temporary:
        Image.fromarray(grid).save(temporary, format="PNG")
    for line in unreadable:
        typer.echo(f"left out: {line}")
    shown = counted(len(pixels), "image")
    typer.echo(f"{out}: policy {settings.augment.policy!r} on {shown}, {columns} versions each")


def _some_images(data: "DataConfig", number: int) -> tuple[list["np.ndarray"], list[str]]:
    """Pixels of so many labelled images, the classes in turn, and what was passed over; InputError without any."""
    from configs.errors import InputError, listed
    from trainers.decode import UnreadableImage
    from trainers.raw import RawImages
    from trainers.source import place_of, read_source

    if data.source is None:
        raise InputError("data.source is not set: name the table or folder with your labelled images")
    source = read_source(data)
    frame = source.frame[source.frame["label"].notna()]
    in_class = frame.groupby("label").cumcount()
    order = frame.assign(turn=in_class, target=frame["label"].map({name: -k for k, name in enumerate(source.classes)}))
    raw = RawImages(data)
    pixels: list[np.ndarray] = []
    unreadable = []
    for row in order.sort_values(["turn", "target"], kind="stable").itertuples():
        if len(pixels) == number:
            break
        try:
            pixels.append(raw.decode(raw.read(str(row.origin), str(row.path))).pixels)
        except UnreadableImage as error:
            unreadable.append(f"{place_of(row)}, id {row.id!r}: {error}")
    if not pixels:
        raise InputError(f"{data.source}: no labelled image can be read\n{listed(unreadable)}")
    return pixels, unreadable


if __name__ == "__main__":
    run_command(main)
