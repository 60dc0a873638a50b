"""`rarefind cluster --compare`: ways of using the pool on the same features and folds, beside the trained networks.

Each method works on the features of one network in a process of its own, which tells its time and memory, and is a
stage, so that a comparison that was interrupted goes on.
"""

import itertools
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.markup import escape
from rich.table import Table

from configs.errors import InputError, counted
from configs.networks import EmbeddedNetworkConfig
from configs.schema import RunConfig
from ensembles.wording import number, percent
from scripts.steps.embed import networks_to_embed
from scripts.steps.run_state import CONSOLE, Pipeline, rows_digest, show, tell, truth_of
from trainers import atomic
from trainers.provenance import code_version
from trainers.stages import Stage, StageOutcome, StageRecord
from trainers.table import ImageTable, read_table

if TYPE_CHECKING:
    from ensembles.comparison import Opinions
    from ensembles.fold_graphs import FoldGraphs

FOLDER = "comparison"
COMPARISON_FILE = f"{FOLDER}/comparison.json"
VOICES_ALONE = "voices alone"


def compare_learners_step(pipeline: Pipeline) -> None:
    """Bring comparison/ up to date and show it."""
    from ensembles import comparison

    config, run_dir = pipeline.config, pipeline.run_dir
    table = read_table(run_dir / "table.parquet")
    entries: list[dict[str, Any]] = []
    found: dict[str, Opinions] = {}
    records = []
    pairs = list(itertools.product(networks_to_embed(config), comparison.METHODS))
    for place, (network, method) in enumerate(pairs, start=1):
        name = f"{method} on {network.name}"
        entry: dict[str, Any] = {"name": name, "method": method, "features": network.name}
        try:
            record = _learn(pipeline, table, network, method, told=f"{place}/{len(pairs)}")
        except InputError as error:  # the others can
            tell("note:", f"{name}: not possible: {error}", style="yellow", indent=len("note: "))
            entries.append({**entry, "not_possible": str(error)})
            continue
        records.append(record)
        found[name] = _read(run_dir / _output(network.name, method), table)
        entries.append({**entry, **record.facts, "optimistic": network.each_fold and _keeps_best(config)})
    for arm, own in _trained(config, table).items():
        found[arm] = own
        trained = arm != VOICES_ALONE
        facts = {"method": f"networks, {arm}" if trained else arm, "features": "", "setting": "", "trained": trained}
        entries.append({"name": arm, **facts, "optimistic": trained and _keeps_best(config)})
    result = _judged(config, table, entries, found)
    atomic.write_json(run_dir / COMPARISON_FILE, result)
    pipeline.say("compare", records, COMPARISON_FILE, summary=f"{len(entries)} ways of using the same labels")
    for kind in ("oof", "pool"):
        if any(kind in entry for entry in result["entries"]):
            show(_shown(result, kind, table))
    CONSOLE.print(f"[dim]{escape(_legend(table, pool=any('pool' in entry for entry in result['entries'])))}[/]")
    if any(entry.get("optimistic") for entry in result["entries"]):
        CONSOLE.print("[dim]* optimistic: checkpoints were chosen on the rows that judge them (train.keep: best)[/]")
    for line in result["verdicts"]:
        tell("", line, indent=0)


def _keeps_best(config: RunConfig) -> bool:
    return any(config.train_for(model).keep == "best" for model in config.models)


def _legend(table: ImageTable, *, pool: bool) -> str:
    parts = [
        "settings are the best of those tried by out-of-fold AP, sec. and GB those of one setting and of the process"
    ]
    if table.is_binary:
        parts.append(f"recall: so many of the images of {table.classes[1]!r} are taken for it")
    if pool:
        farthest = "of the class whose share of the pool is farthest from the truth"
        parts.append(f"share: {'of the pool taken for it' if table.is_binary else farthest}")
    return "; ".join([*parts, f"recalls per class and all settings: {COMPARISON_FILE}"])


def _output(network: str, method: str) -> str:
    return f"{FOLDER}/{network}/{method.replace(' ', '-').replace(',', '')}.parquet"


def _learn(
    pipeline: Pipeline, table: ImageTable, network: EmbeddedNetworkConfig, method: str, *, told: str
) -> StageRecord:
    """Bring the opinions of one method on the features of one network up to date, for the best of its settings.

    `told` says in the terminal which of all it is.
    """
    from ensembles import comparison
    from trainers.embedding_files import fold_name, read_facts

    config, output = pipeline.config, _output(network.name, method)
    names = [fold_name(network.name, k) if network.each_fold else network.name for k in range(table.num_folds)]
    stage = Stage(
        output.removesuffix(".parquet"),
        {
            "method": method,
            "embeddings": [read_facts(config.run_dir, name)["sha256"] for name in names],
            "rows": rows_digest(table, np.concatenate([table.rows("train"), table.rows("pool")])),
            "propagate": config.propagate.model_dump(mode="json") if method in comparison.OURS else None,
            "seed": config.seed,
            "code_version": code_version(),
        },
        (output,),
    )

    def work(partial: Path) -> StageOutcome:
        tried = counted(len(comparison.settings_of(method)), "setting")
        CONSOLE.print(f"[dim]{told}  {escape(method)} on {escape(network.name)}, {tried}[/]")
        facts = _in_a_process(config, names, method, partial / output)
        return StageOutcome(f"{method}: {facts['setting'] or 'one setting'}", facts, seconds=facts["seconds_in_all"])

    return pipeline.stage(stage, work)


def _in_a_process(config: RunConfig, names: Sequence[str], method: str, output: Path) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, config, names, method, output), daemon=True)
    process.start()
    sender.close()
    try:
        facts: dict[str, Any] = receiver.recv()
    except EOFError:
        process.join()
        raise InputError(
            f"{method}: its process ended with exit code {process.exitcode}; without a message above, memory may have "
            "run out: compare fewer images"
        ) from None
    process.join()
    if "problem" in facts:
        raise InputError(facts["problem"])
    return facts


def _work(sender: Any, config: RunConfig, names: Sequence[str], method: str, output: Path) -> None:
    """All settings of a method; the opinions of the best, by out-of-fold AP, are written."""
    import resource

    from ensembles import comparison
    from trainers.embedding_files import open_embeddings

    table = read_table(config.run_dir / "table.parquet")
    opened = {name: open_embeddings(config.run_dir, name, table) for name in dict.fromkeys(names)}
    features = [opened[name] for name in names]
    labelled = table.targets[table.rows("train")]
    best, best_ap, facts, begun = None, -1.0, {}, time.perf_counter()
    graphs: dict[int, FoldGraphs] = {}
    try:
        for setting in comparison.settings_of(method):
            started = time.perf_counter() - sum(graph.search_seconds for graph in graphs.values())  # each has a graph
            found = comparison.opinions(
                method, setting, features, table, config.propagate, seed=config.seed, graphs=graphs
            )
            seconds = time.perf_counter() - started
            ap = comparison.figures(labelled, found.oof, is_binary=table.is_binary)["ap"]
            if ap > best_ap:
                best, best_ap = found, ap
                facts = {"setting": comparison.setting_name(setting), "seconds": round(seconds, 2)}
    except InputError as error:
        sender.send({"problem": str(error)})
        return
    if best is None:
        sender.send({"problem": "average precision is not defined: label some images of every class"})
        return
    _write(output, table, best)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tried = len(comparison.settings_of(method))
    sender.send(
        {
            **facts,
            "num_settings": tried,
            "gigabytes": round(memory / 1e9, 2),
            "seconds_in_all": round(time.perf_counter() - begun, 2),
        }
    )


def _write(output: Path, table: ImageTable, found: "Opinions") -> None:
    rows = np.concatenate([table.rows("train"), found.pool_rows])
    columns = [f"probability_{number}" for number in range(len(table.classes))]
    frame = pd.DataFrame(np.concatenate([found.oof, found.pool]), columns=columns)
    frame.insert(0, "id", table.frame["id"].to_numpy()[rows])
    atomic.write_parquet(output, frame.assign(kind=np.repeat(["oof", "pool"], [len(found.oof), len(found.pool)])))


def _read(path: Path, table: ImageTable) -> "Opinions":
    from ensembles.comparison import Opinions

    frame = pd.read_parquet(path)
    parts = {kind: frame[frame["kind"] == kind] for kind in ("oof", "pool")}
    columns = [f"probability_{number}" for number in range(len(table.classes))]
    pool = parts["pool"]
    rows = pd.Index(table.frame["id"]).get_indexer(pool["id"])
    return Opinions(parts["oof"][columns].to_numpy(), pool[columns].to_numpy(), rows)


def _trained(config: RunConfig, table: ImageTable) -> dict[str, "Opinions"]:
    """The equal-weight ensembles of the arms that are trained, where their scores are of these rows and folds.

    With `ensemble.voices`: without them, beside them, and the voices alone.
    """
    from ensembles.predictions import NOT_TRAINED, VOICES, members_of, prediction_files, read_predictions

    folder = config.run_dir / "predictions"
    if not prediction_files(folder):
        return {}
    try:
        everything = read_predictions(folder, table=table)
    except InputError as error:
        CONSOLE.print(f"[yellow]note:[/] the trained networks are left out: {escape(str(error).partition(chr(10))[0])}")
        return {}
    arms = set(everything["arm"])
    result = {}
    for arm in sorted(arms - NOT_TRAINED):
        result[str(arm)] = _blended(everything[everything["arm"] == arm], table)
        if VOICES in arms:
            result[f"{arm} and voices"] = _blended(members_of(everything, arm), table)
    if VOICES in arms:
        result[VOICES_ALONE] = _blended(everything[everything["arm"] == VOICES], table)
    return result


def _blended(members: pd.DataFrame, table: ImageTable) -> "Opinions":
    """What the equal-weight ensemble of these rows of the prediction table says of labelled rows and the pool."""
    from ensembles.blending import blend_scores, fit_logits, score_columns
    from ensembles.comparison import Opinions

    ids = table.frame["id"]
    blend = fit_logits(members)
    scores = blend_scores(blend, members).set_index("id")
    probabilities = pd.DataFrame(
        blend.probabilities(scores[score_columns(blend.num_outputs)].to_numpy(dtype=np.float64)), index=scores.index
    )
    if table.is_binary:
        probabilities = pd.DataFrame({0: 1 - probabilities[0], 1: probabilities[0]})
    pool = table.rows("pool")[ids.iloc[table.rows("pool")].isin(scores.index).to_numpy()]
    return Opinions(
        probabilities.loc[ids.iloc[table.rows("train")]].to_numpy(), probabilities.loc[ids.iloc[pool]].to_numpy(), pool
    )


def _judged(
    config: RunConfig, table: ImageTable, entries: Sequence[dict[str, Any]], found: dict[str, "Opinions"]
) -> dict[str, Any]:
    from ensembles import comparison
    from ensembles.evaluation import json_safe
    from ensembles.known_rows import known_targets
    from ensembles.recipe_gains import recipe_gains

    truth = truth_of(config.data)
    if truth is not None:
        truth = truth[truth["id"].isin(table.frame["id"].iloc[table.rows("pool")])]
    known = known_targets(table, truth, ())
    labelled = known[table.rows("train")]
    judged = []
    for entry in entries:
        if "not_possible" in entry:
            judged.append(entry)
            continue
        own = found[entry["name"]]
        blocks = {"oof": comparison.figures(labelled, own.oof, is_binary=table.is_binary)}
        targets = known[own.pool_rows]
        if (targets >= 0).any():
            blocks["pool"] = comparison.figures(
                targets[targets >= 0], own.pool[targets >= 0], is_binary=table.is_binary
            ) | {"num_rows": int((targets >= 0).sum())}
        judged.append({**entry, **blocks})
    gains = recipe_gains(judged, found, known, table=table, metrics=config.metrics, seed=config.seed)
    judged = [entry | ({"gain": gains[entry["name"]]} if entry["name"] in gains else {}) for entry in judged]
    return json_safe(
        {
            "classes": table.classes,
            "num_labelled": len(labelled),
            "entries": judged,
            "verdicts": _verdicts(config, table, judged, found, known),
            "seed": config.seed,
            "code_version": code_version(),
        }
    )


def _verdicts(
    config: RunConfig,
    table: ImageTable,
    judged: Sequence[dict[str, Any]],
    found: dict[str, "Opinions"],
    known: np.ndarray,
) -> list[str]:
    """The best trained ensemble against the best of the others, each chosen by out-of-fold AP, on the same rows."""
    from ensembles import comparison
    from trainers.paired import paired_difference
    from trainers.provenance import derive_seed

    best = {
        trained: max(
            (entry for entry in judged if "oof" in entry and bool(entry.get("trained")) == trained),
            key=lambda entry: entry["oof"]["ap"],
            default=None,
        )
        for trained in (True, False)
    }
    network, other = best[True], best[False]
    if network is None or other is None:
        return ["No network is trained yet: `rarefind run CONFIG`, then compare again."]
    train = table.rows("train")
    sides = [comparison.ranking(found[one["name"]].oof, is_binary=table.is_binary) for one in (network, other)]
    gain = paired_difference(
        known[train],
        *sides,
        groups=table.units[train],
        replicates=config.metrics.replicates,
        confidence=config.metrics.confidence,
        rng=np.random.default_rng(derive_seed(config.seed, "comparison")),
    )
    name = "AP" if table.is_binary else "macro AP"
    setting = f" ({other['setting']})" if other["setting"] else ""
    against = f"{network['method']}, less {other['name']}{setting}"
    lines = [f"Out of fold, {name} of {against}: {gain.estimate:+z.3f} [{gain.low:+z.3f}, {gain.high:+z.3f}]."]
    one, two = found[network["name"]], found[other["name"]]
    shared = np.intersect1d(one.pool_rows, two.pool_rows)
    shared = shared[known[shared] >= 0]
    if len(shared) > 1:
        predicted = [own.pool[np.searchsorted(own.pool_rows, shared)].argmax(axis=1) for own in (one, two)]
        more, low, high = comparison.accuracy_difference(
            known[shared], *predicted, groups=table.units[shared], confidence=config.metrics.confidence
        )
        lines.append(f"On the pool, accuracy of the same: {more:+z.4f} [{low:+z.4f}, {high:+z.4f}].")
    return lines


def _shown(result: dict[str, Any], kind: str, table: ImageTable) -> Table:
    """A line per way, the best first, below its network where there are several.

    Out of fold with time and memory, or of the pool with what it is taken for.
    """
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    shown.add_column("labelled, out of fold" if kind == "oof" else "the pool, by its truth", overflow="fold")
    headings = ["AP" if table.is_binary else "macro\nAP"]
    headings += ["recall\nat P .9", "prec.\nat R .9"] if table.is_binary else []
    headings += ["accur.", "macro\nF1", "recall" if table.is_binary else "lowest\nrecall"]
    headings += ["sec.", "GB"] if kind == "oof" else ["ARI", "share" if table.is_binary else "share\noff by"]
    for heading in headings:
        shown.add_column(heading, justify="right", no_wrap=True)
    judged = [own for own in result["entries"] if kind in own]
    judged.sort(key=lambda own: -1.0 if own[kind]["ap"] is None else own[kind]["ap"], reverse=True)
    features = list(dict.fromkeys(own["features"] for own in judged))  # the best first
    several = len([name for name in features if name]) > 1
    for name in features if several else [None]:
        if several:
            shown.add_row(escape(name or "trained networks"))
        for entry in judged:
            if name in (None, entry["features"]):
                method = ("  " if several else "") + entry["method"] + " *" * entry["optimistic"]
                shown.add_row(escape(method), *_cells(entry, kind, is_binary=table.is_binary))
    return shown


def _cells(entry: dict[str, Any], kind: str, *, is_binary: bool) -> list[str]:
    figures = entry[kind]
    recalls = [recall for recall in figures["recall"] if recall is not None]
    cells = [number(figures["ap"])]
    cells += [number(figures[key]) for key in ("recall_at_precision_0.9", "precision_at_recall_0.9") if key in figures]
    cells += [number(figures["accuracy"]), number(figures["macro_f1"])]
    cells.append(number(figures["recall"][1] if is_binary else min(recalls)))
    if kind == "oof":
        timed = "seconds" in entry
        return cells + ([f"{entry['seconds']:.1f}", f"{entry['gigabytes']:.1f}"] if timed else ["", ""])
    off = np.array(figures["balance"]) - np.array(figures["true_balance"])
    share = percent(figures["balance"][1]) if is_binary else f"{100 * off[np.abs(off).argmax()]:+z.1f}%"
    return [*cells, number(figures["ari"]), share]
