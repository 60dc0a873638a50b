"""What `rarefind plan` shows on the terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from configs.errors import counted
from ensembles.wording import duration, exact_percent, number, percent, span


def show(result: Mapping[str, Any]) -> None:
    """Print a plan."""
    console = Console(highlight=False)
    if result["plan"] == "labels":
        _show_labels(console, result)
    else:
        _show_run(console, result)
    console.print("\n[bold]Assumed[/]")
    for line in result["assumptions"]:
        _print_indented(console, f"[dim]{escape(line)}[/]", mark="  - ")


def _print_indented(console: Console, markup: str, *, mark: str = "  ") -> None:
    """A text behind its mark, which the lines that it is broken into stay behind."""
    table = Table.grid()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(mark, markup)
    console.print(table)


def _show_labels(console: Console, plan: Mapping[str, Any]) -> None:
    counts, confidence = plan["counts"], exact_percent(plan["confidence"])
    units = counts["positive_units"]
    groups = f" in {counted(units, 'group')}" if units < counts["num_positives"] else ""
    console.print(
        f"[bold]{escape(plan['source'])}[/]: {counts['num_positives']:,} {escape(repr(counts['class_name']))}{groups} "
        f"among {counts['num_positives'] + counts['num_negatives']:,} labelled images "
        f"({percent(counts['prevalence'])}); {counts['num_pool']:,} in the pool, {counts['num_test']:,} to score"
    )
    table = _table(
        "How well average precision will be known",
        "if AP is", "sd", f"{confidence} interval\nto expect", "two networks:\nnoise up to", "gain that\nis visible",
    )  # fmt: skip
    for entry in plan["average_precision"]:
        table.add_row(
            number(entry["ap"], 2), number(entry["sd"]), span((entry["low"], entry["high"])),
            number(entry["noise"]), number(entry["visible"]),
        )  # fmt: skip
    console.print(table)
    _show_certificate(console, plan["certificate"], counts)
    if plan["threshold"] is not None:
        _show_threshold(console, plan["threshold"]["text"], possible=plan["threshold"]["possible"])
    _show_folds(console, plan["folds"])
    _show_time(console, plan)


def _show_certificate(console: Console, certificate: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
    noun, sure = counts["independent"], exact_percent(certificate["confidence"])
    table = _table(
        f"Recall that can be certified, with {sure} confidence",
        "recall", f"{noun}\nto hold out", "guarantee.holdout\nthat has them", "more to label,\nif all held out",
        "images to look at\nfor them",
    )  # fmt: skip
    for entry in certificate["recalls"]:
        share = "too few" if entry["share"] is None else f"{entry['share']:.2f}"
        more = [f"{entry['more']:,}", f"{entry['images_to_label']:,}"] if entry["more"] else ["none", ""]
        table.add_row(f"{entry['recall']:g}", f"{entry['needed']:,}", share, *more)
    console.print(table)
    now = "nothing is held out" if not certificate["holdout"] else f"guarantee.holdout is {certificate['holdout']:g}"
    console.print(f"  now {now}; what holding out would certify:")
    for entry in certificate["holdouts"]:
        recall = f"recall {entry['recall']:g} at most" if entry["recall"] >= 0.5 else "nothing worth having"
        console.print(
            f"    {entry['share']:.2f}: {entry['held_out']:,} {noun} held out, {recall}; {entry['left']:,} left to "
            "learn from"
        )


def _show_threshold(console: Console, text: str, *, possible: bool = True) -> None:
    words = escape(text) if possible else f"[yellow]{escape(text)}[/]"
    console.print(f"\n[bold]Threshold[/]: {words}")


def _show_folds(console: Console, folds: Sequence[Mapping[str, Any]]) -> None:
    table = _table("Folds", "folds", "positives\ntrained on", "in a fold", "time of\nthe run", "")
    for entry in folds:
        marks = [word for word, said in (("configured", entry["configured"]), ("sensible", entry["sensible"])) if said]
        hours = "–" if entry["hours"] is None else hours_of(entry["hours"])
        cells = [str(entry["num_folds"]), f"{entry['trained_on']:,}", f"{entry['in_fold']:,}", hours]
        table.add_row(*cells, ", ".join(marks))
    console.print(table)


def _show_time(console: Console, plan: Mapping[str, Any]) -> None:
    rates = plan["rates"]
    table = _table("Images per second", "network", "training", "scoring")
    for model, rate in rates["train"].items():
        table.add_row(escape(model), f"{rate:,.4g}", f"{rates['score'][model]:,.4g}")
    console.print(table)
    decode = f"; reading and decoding {rates['decode']:,.4g}" if rates["decode"] else ""
    _print_indented(console, f"{escape(rates['how'])}{decode}")
    table = _table("The configured run", "part", "images / rate", "time", left=2)
    for line in plan["time"]:
        table.add_row(escape(line["name"]), escape(line["arithmetic"]), hours_of(line["hours"]))
    table.add_row("[bold]in all[/]", "", f"[bold]{hours_of(plan['hours'])}[/]")
    console.print(table)


def _show_run(console: Console, plan: Mapping[str, Any]) -> None:
    console.print(f"[bold]{escape(plan['run'])}[/]: the ensemble of arm {escape(plan['arm'])}")
    if "threshold" in plan:
        _show_threshold(console, plan["threshold"]["text"])
    if "prevalences" in plan:
        _show_prevalences(console, plan)
    if "budget" in plan:
        _show_budget(console, plan["budget"])


def _show_prevalences(console: Console, plan: Mapping[str, Any]) -> None:
    pool, confidence = plan["pool_prevalence"], exact_percent(plan["confidence"])
    if pool["estimate"] is None:
        console.print(f"prevalence of the pool: not known, {escape(pool['reason'])}")
    else:
        ends, positives = span((pool["low"], pool["high"]), as_percent=True), pool["estimate"] * pool["num_images"]
        console.print(
            f"prevalence of the pool: [bold]{percent(pool['estimate'])}[/] ({ends}), about {positives:,.0f} of "
            f"{counted(pool['num_images'], 'image')}; by a second method {percent(pool['second_opinion'])}"
        )
    console.print(
        f"\n[bold]Precision and review[/], from {counted(plan['num_positives'], 'positive')} and "
        f"{counted(plan['num_negatives'], 'negative')} out of fold; {confidence} intervals"
    )
    for entry in plan["prevalences"]:
        interval = f" ({span(entry['interval'], as_percent=True)})" if entry["interval"] else ""
        heading = f"[bold]at {percent(entry['prevalence'])}[/], {entry['of']}{interval}"
        console.print(f"{heading}: [yellow]{entry['refused']}[/]" if entry["refused"] else heading)
        if not entry["refused"]:
            ap = entry["ap"]
            console.print(f"average precision {number(ap['estimate'])} ({span(ap['interval'])})")
            console.print(_points(entry["points"]))
    if any(point["threshold"] for entry in plan["prevalences"] for point in entry["points"]):
        console.print("* at the threshold of the run")


def _points(points: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    headings = {"  recall": 8, "precision": 22, "reviewed of\n1,000 images": 19, "false alarms\nper positive": 20}
    for heading, width in headings.items():
        table.add_column(heading, justify="right", header_style="dim", min_width=width, no_wrap=True)
    for point in points:
        table.add_row(
            f"{point['recall']:.3g}{'*' if point['threshold'] else ' '}",
            f"{number(point['precision'])} ({span(point['precision_interval'])})",
            f"{_figure(point['reviewed'])} ({_between(point['reviewed_interval'])})",
            f"{_figure(point['false_per_true'])} ({_between(point['false_per_true_interval'])})",
        )
    return table


def _show_budget(console: Console, budget: Mapping[str, Any]) -> None:
    if budget["measured"]:
        _show_measured(console, budget["measured"])
    title = f"{budget['images']:,} images for {budget['budget']:,.2f} EUR"
    _show_lines(console, title, budget["lines"])
    for review in budget.get("review", ()):
        _show_review(console, review)
    reference = budget["reference"]
    title = (
        f"The reference study: {reference['images']:,} images, {reference['budget']:,.0f} EUR, of which it estimated "
        f"{reference['inference']:,.0f} for inference"
    )
    _show_lines(console, title, reference["lines"])


def _show_measured(console: Console, measured: Mapping[str, Any]) -> None:
    table = _table(
        f"Measured here ({measured['device']}, {measured['image_size']} pixels)", "", "images/s", "s / image"
    )
    for model, rate in measured["networks"].items():
        times = measured["num_networks"][model]
        table.add_row(f"{escape(model)}, {times} of them", f"{rate:,.4g} each", f"{times / rate:.3g}")
    if measured["decode"]:
        table.add_row("reading and decoding", f"{measured['decode']:,.4g}", f"{1 / measured['decode']:.3g}")
    how = "the slower of networks and decoding" if measured["overlapped"] else "all of them, one after the other"
    table.add_row(f"[bold]ensemble[/]: {how}", f"{measured['ensemble']:,.4g}", f"{1 / measured['ensemble']:.3g}")
    console.print(table)


def _show_lines(console: Console, title: str, lines: Sequence[Mapping[str, Any]]) -> None:
    table = _table(title, "", "", "", "", left=2)
    table.show_header = False
    for line in lines:
        value = line["value"]
        shown = f"{value:,.2f}" if line["unit"] in ("EUR", "EUR/hour", "hours") else f"{value:,.10g}"
        table.add_row(escape(line["name"]), f"{escape(line['arithmetic'])} =", shown, line["unit"])
    table.columns[3].justify = "left"
    console.print(table)


def _show_review(console: Console, review: Mapping[str, Any]) -> None:
    at = f"at a prevalence of {percent(review['prevalence'])} ({review['of']})"
    if review["refused"]:
        console.print(f"  what labels would find {at}: [yellow]{review['refused']}[/]")
        return
    low, high = review["positives_found_interval"]
    console.print(
        f"  labelling the {review['labels']:,} images with the highest scores {at}:\n"
        f"    {review['positives_in_all']:,.0f} positives x {review['found_share']:.4f} of them among the highest "
        f"{percent(review['reviewed_share'])} = [bold]{review['positives_found']:,.0f} positives found[/] "
        f"({low:,.0f} to {high:,.0f})\n"
        f"    {review['positives_found']:,.0f} / {review['labels']:,} labels = precision {review['precision']:.3f}, "
        f"{review['euros_per_positive']:,.2f} EUR of labels for each; as many random images would find "
        f"{review['at_random']:,.0f}"
    )


def hours_of(hours: float) -> str:
    """Hours as people say them.

    >>> hours_of(0.01), hours_of(2.5), hours_of(250.0)
    ('36.0 s', '2 h 30 min', '250 h (10.4 days)')
    """
    return duration(3600 * hours) if hours < 100 else f"{hours:,.0f} h ({hours / 24:,.1f} days)"


def _table(title: str, *headings: str, left: int = 1) -> Table:
    """A plain table with `left` columns of words, then numbers."""
    table = Table(
        title=f"\n{title}", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False
    )
    for position, heading in enumerate(headings):
        table.add_column(heading, justify="left" if position < left else "right", header_style="dim")
    return table


def _figure(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:,.3g}" if value < 999.5 else f"{value:,.0f}"


def _between(interval: Sequence[float]) -> str:
    return f"{_figure(interval[0])} to {_figure(interval[1])}"
