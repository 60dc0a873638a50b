"""`rarefind bench blend`: exact average precisions of a blend of two models, scikit-learn and numpy against ours.

All sides start from the two models' scores and the same weights, and mix them themselves. Ties: scores rounded to a
grid. The three take turns, and each side's fastest turn counts, so that what else the machine does weighs on none.
"""

import json
import time
from collections.abc import Callable
from typing import Annotated

import typer

from scripts.command import run_command


def main(
    blends: Annotated[int, typer.Option(min=10, help="weights that each side evaluates in a turn")] = 400,
    positives: Annotated[int, typer.Option(min=1, help="positive rows")] = 293,
    negatives: Annotated[int, typer.Option(min=1, help="negative rows")] = 5000,
    turns: Annotated[int, typer.Option(min=1, help="timed turns of each side")] = 7,
    seed: Annotated[int, typer.Option(min=0, help="of scores and weights")] = 0,
) -> None:
    """Time exact average precisions of blended scores on one core, without ties and with many."""
    import numpy as np
    import sklearn
    from rich.console import Console
    from rich.table import Table
    from sklearn.metrics import average_precision_score
    from threadpoolctl import threadpool_limits

    from trainers.fast_ranking import average_precisions

    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.repeat([True, False], [positives, negatives]))
    first = rng.uniform(size=blends)
    weights = np.stack([first, 1.0 - first], axis=1)
    smooth = rng.normal(size=(2, len(targets))) + 1.9 * targets
    # with both scores on a grid of quarters and weights of eighths the blends are full of ties
    cases = {"no ties": (smooth, weights), "many ties": (np.round(4 * smooth) / 4, np.round(8 * weights) / 8)}

    def by_sklearn(scores: np.ndarray, mixes: np.ndarray) -> np.ndarray:
        return np.array([average_precision_score(targets, mix @ scores) for mix in mixes])

    def by_argsort(scores: np.ndarray, mixes: np.ndarray) -> np.ndarray:
        values = np.empty(len(mixes))
        for number, mix in enumerate(mixes):
            mixed = mix @ scores
            order = np.argsort(-mixed)
            ordered = mixed[order]
            last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # of each run of ties
            found = np.cumsum(targets[order])[last]
            values[number] = (np.diff(found, prepend=0) * found / (last + 1)).sum() / positives
        return values

    def ours(scores: np.ndarray, mixes: np.ndarray) -> np.ndarray:
        return average_precisions(mixes @ scores[:, targets], mixes @ scores[:, ~targets])

    sides: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        f"loop over scikit-learn {sklearn.__version__}": by_sklearn,
        f"loop over argsort, numpy {np.__version__}": by_argsort,
        "rarefind": ours,
    }
    rates: dict[str, dict[str, float]] = {}
    differences: dict[str, float] = {}
    with threadpool_limits(limits=1):
        for case, (scores, mixes) in cases.items():
            fastest = dict.fromkeys(sides, float("inf"))
            found: dict[str, np.ndarray] = {}
            for _ in range(turns):
                for side, work in sides.items():
                    started = time.perf_counter()
                    found[side] = work(scores, mixes)
                    fastest[side] = min(fastest[side], time.perf_counter() - started)
            rates[case] = {side: blends / seconds for side, seconds in fastest.items()}
            reference, _, own = found.values()
            differences[case] = float(np.abs(own - reference).max())
    table = Table(title=f"exact APs per second, {positives + negatives} rows, {positives} positives, 1 core")
    table.add_column("")
    for case in cases:
        table.add_column(case, justify="right")
    for side in sides:
        table.add_row(side, *(f"{rates[case][side]:,.0f}" for case in cases))
    table.add_row("largest difference from scikit-learn", *(f"{differences[case]:.1e}" for case in cases))
    Console().print(table)
    names = ("sklearn", "argsort", "rarefind")
    result = {
        "benchmark": "blend",
        "num_positives": positives,
        "num_negatives": negatives,
        "blends": blends,
        "turns": turns,
    }
    for case, by_side in rates.items():
        named = {f"{name}_per_second": round(rate) for name, rate in zip(names, by_side.values(), strict=True)}
        result[case.replace(" ", "_")] = {**named, "largest_difference": differences[case]}
    print(json.dumps(result))


if __name__ == "__main__":
    run_command(main)
