"""`rarefind bench learners BENCHMARK`: every way of using few labels and a pool, side by side, over seeds.

Each seed draws other labels; the preset is trained, and `rarefind cluster --compare` judges the networks and the other
ways on the same rows. What is reported of the project, and of the classic recipe, is chosen on out-of-fold rows. Runs
are ordinary run folders: finished ones are reused, an interrupted one goes on.
"""

import json
import statistics
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scripts.arguments import RestartOption
from scripts.bench.spread import bracketed, mean_sd, paired, signed
from scripts.command import run_command

if TYPE_CHECKING:
    from rich.table import Table

    from configs.schema import RunConfig

PRESETS = Path(__file__).resolve().parent.parent.parent / "configs"
TABLE_WIDTH = 118  # also where there is no terminal
PROJECT = ("networks, ", "rarefind ")  # how the ways of this project begin


class Name(StrEnum):
    """The benchmarks whose pool has a known truth."""

    TENTH_DIGITS = "tenth-digits"
    TENTH = "tenth"
    RARE_FASHION = "rare-fashion"


def main(
    benchmark: Annotated[Name, typer.Argument(help="what is drawn anew for each seed")],
    out: Annotated[Path | None, typer.Option(help="folder for data and run folders; default: runs/learners")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="how many")] = 3,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value for every run; may be repeated")
    ] = None,
    idx: Annotated[Path | None, typer.Option(help="folder of the IDX files; default: Debian's")] = None,
    restart: RestartOption = False,
) -> None:
    """Compare the trained networks with clusters, label spreading and pseudo-labels, with seeds and spread."""
    from rich.console import Console

    from configs.errors import InputError
    from scripts.pipeline import run_pipeline

    out = out or Path("runs") / "learners"
    configs = [_config(benchmark, out, seed, overrides or []) for seed in range(seeds)]
    if not configs[0].predict.pool:
        raise InputError("predict.pool=false: what is compared is judged on the pool; leave it out")
    results = []
    for seed, config in enumerate(configs):
        _write_data(benchmark, out, seed, idx)
        print(f"--- {benchmark}, seed {seed}", flush=True)
        run_pipeline(config, restart=restart)
        run_pipeline(config, until="compare-learners", restart=restart)
        file = config.run_dir / "comparison" / "comparison.json"
        results.append(json.loads(file.read_text(encoding="utf-8")))
    is_binary = benchmark is Name.RARE_FASHION
    rows = _rows(results)
    Console(width=TABLE_WIDTH).print(_table(rows, f"{benchmark}, {seeds} seed(s)", is_binary=is_binary))
    key = "ap" if is_binary else "accuracy"
    best = _best(results, key=key)
    print(best["sentence"])
    name = next((row["name"] for row in rows if row["method"].startswith(PROJECT)), None)
    same = _best(results, key=key, name=name)
    if best["chosen"] != same["chosen"]:
        print(same["sentence"])
    print(json.dumps({"benchmark": str(benchmark), "ways": rows, "project": best, "project_in_all_seeds": same}))


def _write_data(benchmark: Name, out: Path, seed: int, idx: Path | None) -> None:
    """The images and labels of one seed, unless they are there."""
    from scripts.bench.benchmark_data import write_benchmark
    from trainers import digits, fashion

    data = out / f"data-{benchmark}-seed{seed}"
    if benchmark is Name.TENTH_DIGITS:
        digits.write_tenth_digits(data, digits.TenthDigits(seed=seed))
    else:
        kind = fashion.Tenth if benchmark is Name.TENTH else fashion.RareFashion
        write_benchmark(data, kind(seed=seed), idx=idx)


def _config(benchmark: Name, out: Path, seed: int, given: list[str]) -> "RunConfig":
    """The preset on the data of one seed."""
    from configs.load import load_config
    from scripts.bench.benchmark_data import TABLE, TEST

    data, preset = out / f"data-{benchmark}-seed{seed}", f"{benchmark.replace('-', '_')}.yaml"
    own = [
        *(["predict.pool=true"] if benchmark is Name.RARE_FASHION else []),  # the preset leaves it out
        *given,
        f"data.source={data / TABLE}", f"data.truth={data / 'truth.csv'}", f"out={out}", f"seed={seed}",
        f"name={benchmark}-seed{seed}",
    ]  # fmt: skip
    if benchmark is not Name.TENTH_DIGITS:  # digits have no test set
        own.append(f"data.test={data / TEST}")
    config = load_config(PRESETS / preset, own)
    if config.embed.networks:
        return config
    networks = ", ".join(f"{{trained: train/supervised/{model.name}}}" for model in config.models)
    return load_config(PRESETS / preset, [*own, f"embed.networks=[{networks}]"])


def _rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each way that every seed has: its figures by seed; None or no figure = not defined."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        for entry in result["entries"]:
            if "oof" in entry:
                found.setdefault(entry["name"], []).append(entry)
    rows = []
    for name, entries in found.items():
        if len(entries) < len(results):
            continue
        row: dict[str, Any] = {"name": name, "method": entries[0]["method"], "features": entries[0]["features"]}
        row["oof_ap"] = [entry["oof"]["ap"] for entry in entries]
        for key in ("ap", "accuracy", "macro_f1", "ari", "recall_at_precision_0.9", "precision_at_recall_0.9"):
            if all(key in entry.get("pool", {}) for entry in entries):
                row[key] = [entry["pool"][key] for entry in entries]
        row["seconds"], row["gigabytes"] = ([entry.get(key) for entry in entries] for key in ("seconds", "gigabytes"))
        rows.append(row)
    return sorted(rows, key=lambda row: -sum(row["oof_ap"]))


def _best(results: list[dict[str, Any]], *, key: str, name: str | None = None) -> dict[str, Any]:
    """The project's best of each seed by out-of-fold AP, or its way `name`, against the recipe; gains are the pool's.

    With few labels several ways rank them without a mistake, so that the best of a seed is a matter of luck; `name` is
    then the best by the mean over seeds.

    Seeds label other ones of the same images, so their pools overlap: `ci_images` is as wide as that of one seed. It
    leaves out what other labels would change, which `ci_seeds` (Student's t) has.
    """
    from configs.errors import InputError

    chosen, gains, recipes = [], [], []
    for seed, result in enumerate(results):
        judged = [entry for entry in result["entries"] if "gain" in entry and entry["method"].startswith(PROJECT)]
        if not judged:
            raise InputError(
                "the recipe, scikit-learn's spreading, was not possible; see the notes above for the reason"
            )
        judged = [entry for entry in judged if name in (None, entry["name"])]
        entry = max(judged, key=lambda entry: entry["oof"]["ap"])
        chosen.append(entry["name"])
        recipes.append(entry["gain"]["over"])
        gain = entry["gain"].get("pool", {}).get(key)
        if gain is None or None in gain:
            raise InputError(
                f"seed {seed}: the gain of {entry['name']} in {key} on the pool is not defined; it takes pool images "
                "of known truth, of each class, that it and the recipe judged; leave out the --set that changes it"
            )
        gains.append(gain)
    estimates = [gain for gain, _, _ in gains]
    mean, over_seeds = paired(estimates, [0.0] * len(estimates))
    half = statistics.fmean(high - low for _, low, high in gains) / 2
    over_images = [mean - half, mean + half]
    which = f"by seed: {', '.join(chosen)}" if name is None else f"by mean over seeds: {name}"
    sentence = (
        f"On the pool, {key} of the project's best ({which}) less the recipe ({', '.join(dict.fromkeys(recipes))}): "
        f"{signed(mean, over_seeds)} over seeds, {bracketed(over_images)} over images"
    )
    return {
        "chosen": chosen,
        "recipe": recipes,
        "key": key,
        "gain": estimates,
        "mean": mean,
        "ci_seeds": over_seeds,
        "ci_images": over_images,
        "sentence": sentence,
    }


def _table(rows: list[dict[str, Any]], title: str, *, is_binary: bool) -> "Table":
    from rich.table import Table

    table = Table(title=title)
    table.add_column("way", overflow="fold")
    shown = {"oof_ap": "out of fold\nAP" if is_binary else "out of fold\nmacro AP", "ap": "pool\nAP"}
    shown |= (
        {"recall_at_precision_0.9": "pool recall\nat P .9", "precision_at_recall_0.9": "pool prec.\nat R .9"}
        if is_binary
        else {"accuracy": "pool\naccuracy", "macro_f1": "pool\nmacro F1"}
    )
    for heading in (*shown.values(), "sec.", "GB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        timed = [value for value in row["seconds"] if value is not None]
        memory = [value for value in row["gigabytes"] if value is not None]
        table.add_row(
            row["name"],
            *(mean_sd(row[key]) if None not in row.get(key, [None]) else "" for key in shown),
            f"{max(timed):.1f}" if timed else "",
            f"{max(memory):.1f}" if memory else "",
        )
    return table


if __name__ == "__main__":
    run_command(main)
