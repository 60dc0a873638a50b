"""`rarefind plan`: what to expect, before a training from the labels, after it from the run; and what a budget buys."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scripts.command import run_command

if TYPE_CHECKING:
    from configs.schema import RunConfig

PRICES = "prices and images (a run)"
YAML_SUFFIXES = (".yaml", ".yml")


def main(
    place: Annotated[Path, typer.Argument(help="folder or table of images, config (YAML), or run folder")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as in `rarefind run` (a config)")] = None,
    ap: Annotated[list[float] | None, typer.Option(help="average precision to plan for; several (labels)")] = None,
    rate: Annotated[float | None, typer.Option(help="training images/s of a network, not measured (labels)")] = None,
    prevalence: Annotated[
        list[float] | None, typer.Option(help="share of positives, e.g. 0.01; several (a run)")
    ] = None,
    images: Annotated[int | None, typer.Option(help="images to score", rich_help_panel=PRICES)] = None,
    budget_eur: Annotated[float | None, typer.Option(help="euros in all", rich_help_panel=PRICES)] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="euros, of one machine", rich_help_panel=PRICES)] = None,
    images_per_second: Annotated[
        float | None,
        typer.Option(help="of the whole ensemble, decoding included; not measured", rich_help_panel=PRICES),
    ] = None,
    machines: Annotated[int, typer.Option(help="at work at a time", rich_help_panel=PRICES)] = 1,
    gb_per_image: Annotated[float, typer.Option(help="size of a stored image", rich_help_panel=PRICES)] = 0.0,
    price_per_gb_month: Annotated[float, typer.Option(help="euros, of storage", rich_help_panel=PRICES)] = 0.0,
    months: Annotated[float, typer.Option(help="that images are stored", rich_help_panel=PRICES)] = 1.0,
    price_per_label: Annotated[float, typer.Option(help="euros, of one reviewed image", rich_help_panel=PRICES)] = 0.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="file for the same numbers")] = None,
) -> None:
    """What labels can show, what a trained run will find at a prevalence, and what a budget buys."""
    from configs.errors import InputError
    from ensembles.budget import Prices
    from scripts.planning.costs import Job
    from scripts.planning.finished import is_run
    from scripts.planning.labels import plan_labels
    from scripts.planning.run import plan_run
    from scripts.planning.tables import show
    from trainers import atomic

    run = is_run(place)
    of_budget = {
        "--images": images,
        "--budget-eur": budget_eur,
        "--price-per-hour": price_per_hour,
        "--images-per-second": images_per_second,
    }
    given = [name for name, value in of_budget.items() if value is not None]
    if run:
        wrong = [name for name, value in (("--ap", ap), ("--rate", rate), ("key=value", overrides)) if value]
        if wrong:
            raise InputError(f"{place} is a run folder, and {', '.join(wrong)} is for a folder of images or a config")
        missing = [name for name in list(of_budget)[:3] if name not in given]
        priced = gb_per_image or price_per_gb_month or price_per_label
        if (given or priced) and missing:
            raise InputError(f"to lay out a budget, {', '.join(missing)} must be given, too")
        if bool(gb_per_image) != bool(price_per_gb_month):
            raise InputError("storage takes both --gb-per-image and --price-per-gb-month; give the other, or neither")
        job: Job | None = None
        if images is not None and budget_eur is not None and price_per_hour is not None:
            prices = Prices(price_per_hour, price_per_gb_month, price_per_label)
            job = Job(images, budget_eur, prices, images_per_second, machines, gb_per_image, months)
        result = plan_run(place, prevalences=prevalence or (), job=job)
    else:
        wrong = [*given, *(["--prevalence"] if prevalence else [])]
        if wrong:
            raise InputError(
                f"{place} is not the folder of a run, and {', '.join(wrong)} takes a trained one: name it, e.g. "
                "runs/<name>"
            )
        result = plan_labels(_config_of(place, overrides or []), aps=ap or (), rate=rate)
    show(result)
    if json_file is not None:
        atomic.write_json(json_file, _plain(result))
        typer.echo(f"Written: {json_file}")


def _config_of(place: Path, overrides: list[str]) -> "RunConfig":
    """The config itself, or the one that `rarefind init` would write for a folder or table."""
    from configs.errors import InputError
    from configs.load import check_config, load_config
    from trainers.inspect import inspect_data

    if place.suffix.lower() in YAML_SUFFIXES:
        return load_config(place, overrides)
    if overrides:
        raise InputError(f"{place} is not a config, so {overrides[0]} changes nothing; `rarefind init {place}` first")
    understood = inspect_data(place)
    if understood.problem is not None:
        raise InputError(understood.problem)
    return check_config(understood.values, f"the config for {place}")


def _plain(value: Any) -> Any:
    """Numbers that JSON has: what is infinite is null."""
    from ensembles.evaluation import json_safe

    return json_safe(value)


if __name__ == "__main__":
    run_command(main)
