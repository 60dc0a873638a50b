"""`rarefind bench metrics`: bootstrap replicates of average precision, scikit-learn in a loop against ours, one thread.

Both sides resample positives and negatives separately, from the same scores, and both times include the drawing.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Annotated

import typer

from scripts.command import run_command


def main(
    replicates: Annotated[int, typer.Option(min=10, help="bootstrap replicates on each side")] = 2000,
    positives: Annotated[int, typer.Option(min=2, help="positive rows")] = 293,
    negatives: Annotated[int, typer.Option(min=2, help="negative rows")] = 5000,
    repeats: Annotated[int, typer.Option(min=1, help="timed runs of each side; the median is reported")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="of the scores and the resamples")] = 0,
) -> None:
    """Time the interval of average precision on one core against a loop over scikit-learn's function."""
    import numpy as np
    import sklearn
    from rich.console import Console
    from rich.table import Table
    from sklearn.metrics import average_precision_score
    from threadpoolctl import threadpool_limits

    from trainers.intervals import average_precision_interval

    rng = np.random.default_rng(seed)
    targets = np.repeat([1, 0], [positives, negatives])
    scores = rng.normal(size=len(targets)) + 1.9 * targets

    def loop() -> float:
        draws = np.random.default_rng(seed)
        values = []
        for _ in range(replicates):
            rows = np.concatenate(
                [draws.integers(0, positives, positives), positives + draws.integers(0, negatives, negatives)]
            )
            values.append(average_precision_score(targets[rows], scores[rows]))
        return float(np.std(values, ddof=1))

    def ours() -> float:
        draws = np.random.default_rng(seed)
        return average_precision_interval(targets, scores, replicates=replicates, rng=draws).sd

    with threadpool_limits(limits=1):
        sklearn_seconds, sklearn_sd = _median_seconds(loop, repeats)
        our_seconds, our_sd = _median_seconds(ours, repeats)
    table = Table(title=f"{replicates} replicates of AP, {positives + negatives} rows, {positives} positives, 1 thread")
    for heading in ("", "seconds (median)", "bootstrap sd of AP"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row(f"loop over scikit-learn {sklearn.__version__}", f"{sklearn_seconds:.3f}", f"{sklearn_sd:.5f}")
    table.add_row("rarefind", f"{our_seconds:.3f}", f"{our_sd:.5f}")
    Console().print(table)
    result = {
        "benchmark": "metrics",
        "replicates": replicates,
        "num_positives": positives,
        "num_negatives": negatives,
        "repeats": repeats,
        "sklearn_seconds": round(sklearn_seconds, 4),
        "rarefind_seconds": round(our_seconds, 4),
        "speedup": round(sklearn_seconds / our_seconds, 1),
        "sklearn_sd": round(sklearn_sd, 6),
        "rarefind_sd": round(our_sd, 6),
    }
    print(json.dumps(result))


def _median_seconds(work: Callable[[], float], repeats: int) -> tuple[float, float]:
    """Median time of `work` and what it returned; one run before, unmeasured, takes the first-call costs."""
    value = work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), value


if __name__ == "__main__":
    run_command(main)
