"""What the cells of a study of the pool come to: methods against `supervised` over the seeds, and the gate's choices.

Differences are paired by seed. The gate's regret is what the better of supervised and the arm has on the test rows,
less what was kept; half the gap is half of what the pool's true labels are worth, oracle minus supervised. A method's
minutes are its own: networks and features from other cells are not counted twice.
"""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from configs.pool_study import ORACLE, SUPERVISED
from scripts.bench.pool_figures import Cell, Figures
from scripts.bench.spread import mean_sd, paired, signed

if TYPE_CHECKING:
    from rich.table import Table


def scenario_rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """One row for each method of one scenario, in the order of the cells; what is not known is None or empty."""
    by_method: dict[str, dict[int, Cell]] = {}
    for cell in cells:
        by_method.setdefault(cell.method, {})[cell.seed] = cell
    supervised, oracle = (by_method.get(name, {}) for name in (SUPERVISED, ORACLE))
    return [_row(method, own, supervised, oracle) for method, own in by_method.items()]


def _row(method: str, own: dict[int, Cell], supervised: dict[int, Cell], oracle: dict[int, Cell]) -> dict[str, Any]:
    mine = list(own.values())
    tests = [cell.test for cell in mine if cell.test is not None]
    row: dict[str, Any] = {
        "method": method,
        "seeds": list(own),
        "ap": [cell.oof.ap for cell in mine],
        "worst_recall": _worst([cell.oof for cell in mine]),
        "test_ap": [figures.ap for figures in tests],
        "test_worst_recall": _worst(tests),
        "gain": None, "gain_ci": None, "test_gain": None, "test_gain_ci": None,
        "half_gap": None, "half_gap_reached": None, "gate": None,
        "minutes": [cell.minutes for cell in mine],
        "notes": [cell.note for cell in mine if cell.note],
    }  # fmt: skip
    pairs = [(own[seed], supervised[seed]) for seed in own if seed in supervised]
    if method == SUPERVISED or not pairs:
        return row
    if method != ORACLE:  # whose out-of-fold rows are others
        row["gain"], row["gain_ci"] = paired([a.oof.ap for a, _ in pairs], [b.oof.ap for _, b in pairs])
    looked = [(a.test, b.test) for a, b in pairs if a.test is not None and b.test is not None]
    if looked:
        row["test_gain"], row["test_gain_ci"] = paired([a.ap for a, _ in looked], [b.ap for _, b in looked])
    if method != ORACLE:
        row |= _against_half_gap(own, supervised, oracle)
    if any(cell.kept is not None for cell in mine):
        row["gate"] = _gate(pairs)
    return row


def _against_half_gap(
    own: dict[int, Cell], supervised: dict[int, Cell], oracle: dict[int, Cell]
) -> dict[str, float | bool | None]:
    """(O - S) / 2 in mean test AP over the seeds that all three have, and whether P - S comes up to it."""
    figures = [
        (own[seed].test, supervised[seed].test, oracle[seed].test)
        for seed in own
        if seed in supervised and seed in oracle
    ]
    known = [(p.ap, s.ap, o.ap) for p, s, o in figures if p is not None and s is not None and o is not None]
    if not known:
        return {}
    half = statistics.fmean(o - s for _, s, o in known) / 2
    return {"half_gap": half, "half_gap_reached": statistics.fmean(p - s for p, s, _ in known) >= half}


def _gate(pairs: Sequence[tuple[Cell, Cell]]) -> dict[str, Any]:
    """What the gate kept, seed by seed; with test figures also its true gain and its regret."""
    regrets = [
        cell.best_test.ap - cell.kept_test.ap
        for cell, _ in pairs
        if cell.best_test is not None and cell.kept_test is not None
    ]
    return {
        "kept": [cell.kept for cell, _ in pairs],
        "adopted": sum(cell.kept != SUPERVISED for cell, _ in pairs),
        "of": len(pairs),
        "supervised_ap": [supervised.oof.ap for _, supervised in pairs],
        "supervised_test_ap": [supervised.test.ap for _, supervised in pairs if supervised.test is not None],
        "ap": [cell.kept_oof.ap for cell, _ in pairs if cell.kept_oof is not None],
        "test_ap": [cell.kept_test.ap for cell, _ in pairs if cell.kept_test is not None],
        "regret": regrets,
        "mean_regret": statistics.fmean(regrets) if regrets else None,
    }


def _worst(figures: Sequence[Figures]) -> list[float]:
    return [each.worst_recall for each in figures if each.worst_recall is not None]


def rich_tables(rows: Sequence[dict[str, Any]], title: str) -> list["Table"]:
    """What is known out of fold; of the test rows, if they were looked at; and of the gate, if there was one."""
    tables = [
        _table(
            f"{title}, out of fold",
            {
                "method": [row["method"] for row in rows],
                "out of fold": [_cells(row["ap"]) for row in rows],
                "minus supervised": [signed(row["gain"], row["gain_ci"]) for row in rows],
                "worst recall": [_cells(row["worst_recall"]) for row in rows],
                "minutes of its own": [f"{sum(row['minutes']):.0f}" for row in rows],
            },
        )
    ]
    looked = [row for row in rows if row["test_ap"]]
    if looked:
        tables.append(
            _table(
                f"{title}, test",
                {
                    "method": [row["method"] for row in looked],
                    "test": [_cells(row["test_ap"]) for row in looked],
                    "minus supervised": [signed(row["test_gain"], row["test_gain_ci"]) for row in looked],
                    "half the gap": [_half_gap(row) for row in looked],
                    "worst recall": [_cells(row["test_worst_recall"]) for row in looked],
                },
            )
        )
    gated = [row for row in rows if row["gate"]]
    if gated:
        tables.append(_gate_table(gated, title))
    return tables


def _gate_table(rows: Sequence[dict[str, Any]], title: str) -> "Table":
    """The arms whose test rows were looked at; if there are none all of them, out of fold, which the gate went by."""
    looked = [row for row in rows if row["gate"]["regret"]]
    rows, on_test = looked or rows, bool(looked)
    ap, gain = ("test_ap", "test_gain") if on_test else ("ap", "gain")
    return _table(
        f"{title}, the gate, {'test' if on_test else 'out of fold'}",
        {
            "arm of": [row["method"] for row in rows],
            "adopted": [f"{row['gate']['adopted']} of {row['gate']['of']}" for row in rows],
            "supervised": [f"{statistics.fmean(row['gate'][f'supervised_{ap}']):.3f}" for row in rows],
            "arm": [f"{statistics.fmean(row[ap]):.3f}" for row in rows],
            "kept": [f"{statistics.fmean(row['gate'][ap]):.3f}" for row in rows],
            "gain": [signed(row[gain], None) for row in rows],
            "mean regret": [f"{row['gate']['mean_regret']:.3f}" if on_test else "" for row in rows],
        },
    )


def _table(title: str, columns: dict[str, list[str]]) -> "Table":
    """The columns that say something."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    shown = {heading: texts for heading, texts in columns.items() if any(texts)}
    for position, heading in enumerate(shown):
        table.add_column(heading, justify="right" if position else "left")
    for texts in zip(*shown.values(), strict=True):
        table.add_row(*texts)
    return table


def _cells(values: Sequence[float]) -> str:
    return mean_sd(values) if values else ""


def _half_gap(row: dict[str, Any]) -> str:
    if row["half_gap"] is None:
        return ""
    return f"{row['half_gap']:+z.3f} {'reached' if row['half_gap_reached'] else 'missed'}"
