"""`rarefind bench propagate`: label spreading on a neighbour graph, graph included, against scikit-learn's.

Each turn is a process of its own, whose greatest resident memory is what it took. Sides take turns.
"""

import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from scripts.command import run_command

NUM_NEIGHBOURS, NUM_CLASSES, ALPHA, LABELLED = 15, 10, 0.2, 0.01
TOLERANCE = 1e-6
LATENT, NOISE, CHUNK = 16, 0.05, 50_000  # of the features
SAMPLE = 1000  # rows whose approximate neighbours are compared with the exact ones


def main(
    rows: Annotated[
        list[int] | None, typer.Option("--rows", help="sizes compared with scikit-learn's knn (256 features)")
    ] = None,
    alone: Annotated[
        int, typer.Option(help="size at which scikit-learn's rbf would not fit (256 features); 0 = none")
    ] = 50_000,
    growth: Annotated[
        list[int] | None, typer.Option("--growth", help="sizes of the approximate graph (64 features); needs faiss")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="turns of each side at the compared sizes")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="of the features and labels")] = 0,
) -> None:
    """Time label spreading with a sparse graph, the graph included, and what memory it takes."""
    from rich.console import Console
    from rich.table import Table

    from trainers.knn import has_faiss

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("", "rows", "seconds", "range", "times", "resident GB", "agreement"):
        table.add_column(heading, justify="left" if not heading else "right")
    compared = [_compared(size, repeats, seed) for size in (rows if rows is not None else [20_000, 40_000])]
    for case in compared:
        for name in ("scikit-learn", "rarefind"):
            own = case[name]
            ratio = f"{case['speedup']:.2f}" if name == "rarefind" else "1"
            agreement = f"{case['largest_difference']:.1e}" if name == "rarefind" else ""
            table.add_row(
                f"{name}, knn", f"{case['rows']:,}", *_timed(own), ratio, f"{own['gigabytes']:.2f}", agreement
            )
    single = None
    if alone:
        single = _turn("rarefind", alone, 256, seed)
        del single["sample"]
        matrix = alone**2 * 8 / 1e9
        table.add_row(
            "rarefind, knn", f"{alone:,}", f"{single['seconds']:.2f}", "", "", f"{single['gigabytes']:.2f}", ""
        )
        table.add_row("scikit-learn, rbf", f"{alone:,}", "", "", "", f"> {matrix:.0f}", "the matrix alone")
    sizes = growth if growth is not None else [10_000, 100_000, 1_000_000]
    grown = [_turn("approximate", size, 64, seed) for size in sizes] if has_faiss() else []
    for size, own in zip(sizes, grown, strict=False):
        table.add_row(
            "rarefind, approximate",
            f"{size:,}",
            f"{own['seconds']:.2f}",
            f"graph {own['graph_seconds']:.2f}",
            "",
            f"{own['gigabytes']:.2f}",
            f"recall {own['recall']:.3f}",
        )
    exponent = None
    if len(grown) > 1:
        exponent = math.log(grown[-1]["seconds"] / grown[0]["seconds"]) / math.log(sizes[-1] / sizes[0])
    console = Console(highlight=False)
    console.print(table)
    for case in compared:
        console.print(_limits(case))
    if exponent is not None:
        console.print(f"from {sizes[0]:,} to {sizes[-1]:,} rows the time grows as rows^{exponent:.2f}")
    if not grown:
        console.print("the approximate graph was left out: faiss is not installed (extra knn)")
    result = {
        "benchmark": "propagate",
        "num_neighbours": NUM_NEIGHBOURS,
        "tolerance": TOLERANCE,
        "compared": compared,
        "alone": single,
        "approximate": [{"rows": size, **own} for size, own in zip(sizes, grown, strict=False)],
        "growth_exponent": exponent,
    }
    print(json.dumps(result))


def _compared(size: int, repeats: int, seed: int) -> dict[str, Any]:
    """Both sides on the same rows and neighbours, in turns."""
    import numpy as np

    turns: dict[str, list[dict[str, Any]]] = {"scikit-learn": [], "rarefind": []}
    for repeat in range(repeats):
        order = list(turns) if repeat % 2 == 0 else list(reversed(turns))
        for name in order:
            turns[name].append(_turn(name, size, 256, seed))
    samples = {name: np.asarray(own[0]["sample"]) for name, own in turns.items()}
    both = {name: _middle(own) for name, own in turns.items()}
    return {
        "rows": size,
        **both,
        "speedup": both["scikit-learn"]["seconds"] / both["rarefind"]["seconds"],
        "processor_speedup": both["scikit-learn"]["processor_seconds"] / both["rarefind"]["processor_seconds"],
        "largest_difference": float(np.abs(samples["scikit-learn"] - samples["rarefind"]).max()),
        "gflop": 2 * size**2 * 256 / 2 / 1e9,  # half of the products, by symmetry
    }


def _middle(turns: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [own["seconds"] for own in turns]
    return {
        "seconds": statistics.median(seconds),
        "range": [min(seconds), max(seconds)],
        "gigabytes": max(own["gigabytes"] for own in turns),
        **{
            key: statistics.median(own[key] for own in turns)
            for key in ("processor_seconds", "graph_seconds", "gflops")
            if key in turns[0]
        },
    }


def _timed(own: dict[str, Any]) -> tuple[str, str]:
    return f"{own['seconds']:.2f}", f"{own['range'][0]:.2f} to {own['range'][1]:.2f}"


def _limits(case: dict[str, Any]) -> str:
    """The same by processor time, which other work does not lengthen, and against a plain product in float32."""
    own = case["rarefind"]
    floor = case["gflop"] / own["gflops"]
    return (
        f"{case['rows']:,} rows: {case['processor_speedup']:.2f} times by processor time; the graph took "
        f"{own['graph_seconds']:.2f} s, a float32 product of half the pairs ({case['gflop']:.0f} GFLOP) {floor:.2f} s"
    )


def _turn(side: str, size: int, dim: int, seed: int) -> dict[str, Any]:
    """One side in a process of its own."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_in_process, args=(sender, side, size, dim, seed))
    process.start()
    sender.close()
    try:
        told: dict[str, Any] = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the process of {side} on {size:,} rows ended with exit code {process.exitcode}") from None
    process.join()
    return told


def _in_process(sender: Any, side: str, size: int, dim: int, seed: int) -> None:
    import resource

    result = SIDES[side](*_problem(size, dim, seed))
    result["gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    sender.send(result)
    sender.close()


def _problem(size: int, dim: int, seed: int) -> tuple[Any, Any]:
    """Features (size, dim) and targets, -1 where unlabelled: overlapping clusters on a curved surface of 16 dimensions.

    Embeddings of networks lie close to such surfaces; in noise of as many dimensions as there are features, which no
    index of neighbours can order, every row is about as far as any other.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    of = rng.integers(NUM_CLASSES, size=size)
    centres = rng.standard_normal((NUM_CLASSES, LATENT), dtype=np.float32)
    turn, mix = (
        rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[0]))
        for shape in ((LATENT, dim), (dim, dim))
    )
    features = np.empty((size, dim), dtype=np.float32)
    for start in range(0, size, CHUNK):  # so that the largest problem takes no more memory than its solution
        rows = slice(start, min(start + CHUNK, size))
        place = centres[of[rows]] + rng.standard_normal((rows.stop - start, LATENT), dtype=np.float32)
        noise = rng.standard_normal((rows.stop - start, dim), dtype=np.float32)
        features[rows] = np.tanh(place @ turn) @ mix + np.float32(NOISE) * noise
    targets = np.where(rng.random(size) < LABELLED, of, -1)
    return features, targets


def _by_sklearn(features: Any, targets: Any) -> dict[str, Any]:
    """Its k counts each row among its own neighbours, which changes nothing."""
    from sklearn.semi_supervised import LabelSpreading

    started, worked = time.perf_counter(), time.process_time()
    learner = LabelSpreading(kernel="knn", n_neighbors=NUM_NEIGHBOURS + 1, alpha=ALPHA).fit(features, targets)
    seconds, processor = time.perf_counter() - started, time.process_time() - worked
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "sample": learner.label_distributions_[:SAMPLE].tolist(),
    }


def _ours(features: Any, targets: Any) -> dict[str, Any]:
    import torch

    from ensembles.graph import affinity
    from ensembles.propagate import spread
    from trainers.knn import nearest

    started, worked = time.perf_counter(), time.process_time()
    neighbours = nearest(features, NUM_NEIGHBOURS, metric="euclidean", method="exact")
    graph_seconds = time.perf_counter() - started
    weights = affinity(neighbours, metric="euclidean", weights="connectivity", ties="directed")
    found = spread(weights, targets, num_classes=NUM_CLASSES, alpha=ALPHA, tolerance=TOLERANCE)
    seconds, processor = time.perf_counter() - started, time.process_time() - worked
    block = torch.from_numpy(features[:4000])
    rate = 2 * len(block) ** 2 * block.shape[1] / 1e9 / min(_seconds(lambda: block @ block.T) for _ in range(5))
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "graph_seconds": graph_seconds,
        "gflops": rate,
        "sample": found[:SAMPLE].tolist(),
    }


def _approximate(features: Any, targets: Any) -> dict[str, Any]:
    from ensembles.graph import affinity
    from ensembles.propagate import spread
    from trainers.knn import Neighbours, nearest, recall

    started = time.perf_counter()
    neighbours = nearest(features, NUM_NEIGHBOURS, metric="euclidean", method="approximate")
    graph_seconds = time.perf_counter() - started
    weights = affinity(neighbours, metric="euclidean", weights="self_tuning", ties="union")
    spread(weights, targets, num_classes=NUM_CLASSES, alpha=ALPHA, tolerance=TOLERANCE)
    seconds = time.perf_counter() - started
    exact = nearest(features, NUM_NEIGHBOURS + 1, metric="euclidean", queries=features[:SAMPLE], method="exact")
    others = Neighbours(exact.index[:, 1:], exact.distance[:, 1:])  # the nearest of a row is itself
    sample = Neighbours(neighbours.index[:SAMPLE], neighbours.distance[:SAMPLE])
    return {"seconds": seconds, "graph_seconds": graph_seconds, "recall": recall(sample, others)}


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


SIDES: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "scikit-learn": _by_sklearn,
    "rarefind": _ours,
    "approximate": _approximate,
}


if __name__ == "__main__":
    run_command(main)
