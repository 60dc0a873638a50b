"""The table of a study of the pool: pairs by seed, half of the gap to the oracle, what the gate kept and missed."""

import numpy as np
import pytest
import sklearn.metrics
from rich.console import Console
from scipy import stats

from scripts.bench.pool_figures import Cell, Figures, judged
from scripts.bench.pool_table import rich_tables, scenario_rows
from trainers.metrics import one_vs_rest_log_odds
from trainers.table import ImageTable


def cell(
    method: str, seed: int, oof: float, test: float | None = None, kept: str | None = None, supervised: float = 0.0
) -> Cell:
    """A cell whose gate kept its arm `semi` or, with `supervised` of that test AP, the other."""
    of_test = None if test is None else Figures(test)
    best_test = max(own for own in (supervised, test) if own is not None) if kept and test is not None else None
    return Cell(
        "base", seed, method, Figures(oof), of_test, minutes=2.0, kept=kept,
        best_test=None if best_test is None else Figures(best_test),
        kept_oof=Figures(oof) if kept else None,
        kept_test=(of_test if kept == "semi" else Figures(supervised)) if kept and test is not None else None,
    )  # fmt: skip


def rows_of(cells: list[Cell]) -> dict:
    return {row["method"]: row for row in scenario_rows(cells)}


def test_gains_are_paired_by_seed_whatever_the_order_of_the_cells() -> None:
    supervised = {0: 0.50, 1: 0.60, 2: 0.55}
    own = {2: 0.60, 0: 0.52, 1: 0.63}
    cells = [cell("supervised", seed, ap) for seed, ap in supervised.items()]
    row = rows_of([*cells, *(cell("mine", seed, ap) for seed, ap in own.items())])["mine"]
    values, others = [own[seed] for seed in (0, 1, 2)], [supervised[seed] for seed in (0, 1, 2)]
    assert row["gain"] == pytest.approx(np.mean(np.subtract(values, others)))
    reference = stats.ttest_rel(values, others).confidence_interval(0.95)
    assert row["gain_ci"] == pytest.approx([reference.low, reference.high])
    assert row["test_gain"] is row["half_gap"] is row["gate"] is None


def test_seeds_that_are_not_done_are_left_out_of_the_pairs() -> None:
    cells = [cell("supervised", 1, 0.6), cell("mine", 0, 0.1), cell("mine", 1, 0.7)]
    row = rows_of(cells)["mine"]
    assert (row["gain"], row["gain_ci"]) == (pytest.approx(0.1), None)
    assert row["ap"] == [0.1, 0.7]
    assert rows_of([cell("mine", 0, 0.1)])["mine"]["gain"] is None


@pytest.mark.parametrize(("gains", "reached"), [((0.06, 0.04), True), ((0.05, 0.03), False)])
def test_half_of_the_gap_is_reached_in_the_mean(gains: tuple[float, float], reached: bool) -> None:
    cells = []
    for seed, (gain, supervised) in enumerate(zip(gains, (0.60, 0.65), strict=True)):
        cells += [
            cell("supervised", seed, 0.5, supervised),
            cell("mine", seed, 0.5, supervised + gain),
            cell("oracle", seed, 0.9, supervised + 0.09),
        ]
    rows = rows_of(cells)
    assert rows["mine"]["half_gap"] == pytest.approx(0.045)
    assert rows["mine"]["half_gap_reached"] is reached
    assert rows["oracle"]["gain"] is rows["oracle"]["half_gap"] is None, "its out-of-fold rows are others"
    assert rows["oracle"]["test_gain"] == pytest.approx(0.09)


def test_the_regret_of_the_gate_is_what_the_better_one_had_more() -> None:
    supervised, arm = (0.60, 0.60, 0.60), (0.65, 0.58, 0.64)
    kept = ("semi", "semi", "supervised")
    cells = [cell("supervised", seed, 0.5, ap) for seed, ap in enumerate(supervised)]
    cells += [cell("mine", seed, 0.55, ap, kept[seed], supervised=0.60) for seed, ap in enumerate(arm)]
    gate = rows_of(cells)["mine"]["gate"]
    assert (gate["adopted"], gate["of"], gate["kept"]) == (2, 3, list(kept))
    assert gate["test_ap"] == pytest.approx([0.65, 0.58, 0.60])
    assert gate["regret"] == pytest.approx([0.0, 0.02, 0.04])
    assert gate["mean_regret"] == pytest.approx(0.02)


def test_without_a_look_the_gate_has_no_regret_and_the_table_no_test_columns() -> None:
    rows = scenario_rows([cell("supervised", 0, 0.5), cell("mine", 0, 0.55, None, "semi")])
    assert rows[1]["gate"]["adopted"] == 1
    assert rows[1]["gate"]["regret"] == [] and rows[1]["gate"]["mean_regret"] is None
    tables = [[column.header for column in table.columns] for table in rich_tables(rows, "t")]
    assert tables == [
        ["method", "out of fold", "minus supervised", "minutes of its own"],
        ["arm of", "adopted", "supervised", "arm", "kept", "gain"],
    ]


def test_the_tables_of_a_look_fit_a_terminal_and_say_whether_half_of_the_gap_is_reached() -> None:
    cells = [cell("supervised", seed, 0.5, 0.6 + seed / 100) for seed in range(3)]
    cells += [cell("naive hard threshold", seed, 0.55, 0.63, "semi") for seed in range(3)]
    cells += [cell("pseudo", seed, 0.55, None, "semi") for seed in range(3)]  # not looked at
    cells += [cell("oracle", seed, 0.9, 0.7) for seed in range(3)]
    console = Console(width=80)
    with console.capture() as captured:
        for table in rich_tables(scenario_rows(cells), "base, 3 seed(s): average precision"):
            console.print(table)
    lines = captured.get().splitlines()
    assert any("naive hard threshold" in line and "+0.045 missed" in line for line in lines)
    gate = [line for line in lines if "3 of 3" in line]
    assert len(gate) == 1 and gate[0].split()[6:] == ["0.610", "0.630", "0.630", "+0.020", "0.000"]
    assert all(len(line) <= 80 for line in lines) and "…" not in captured.get()


def test_several_classes_are_judged_by_macro_ap_and_the_class_that_is_found_least() -> None:
    rng = np.random.default_rng(0)
    targets = np.arange(60) % 3
    logits = rng.normal(size=(60, 3)) + 1.5 * np.eye(3)[targets]
    table = ImageTable(frame=None, classes=["u", "v", "w"], positive_label=None)  # type: ignore[arg-type]
    figures = judged(table, targets, one_vs_rest_log_odds(logits))
    odds = one_vs_rest_log_odds(logits)
    expected = sklearn.metrics.average_precision_score(np.eye(3)[targets], odds, average="macro")
    recalls = sklearn.metrics.recall_score(targets, logits.argmax(axis=1), average=None)
    assert figures.ap == pytest.approx(expected)
    assert figures.worst_recall == pytest.approx(recalls.min())
