"""The section that report.html has of the probe: simple heads on frozen features beside the trained models.

The figures are those of probe.json, the words in `report_probe.html.j2`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ensembles.probe import PROBE_FILE, table_blocks


def section(
    run_dir: Path, *, made_from: Mapping[str, Any] | None, rows: str, predictions: Mapping[str, str]
) -> dict[str, Any] | None:
    """What is shown of the probe: None where there is none, {"outdated": True} where it is of other rows.

    `made_from` are the inputs of the probe's stage; `rows` and `predictions` are digests of what the report is of.
    Figures of models that have been trained anew since, and the verdict with them, are left out.
    """
    path = run_dir / PROBE_FILE
    if not path.is_file() or made_from is None:
        return None
    if made_from["rows"] != rows:
        return {"outdated": True}
    figures = json.loads(path.read_text(encoding="utf-8"))
    is_current = made_from["predictions"] == dict(predictions)
    if not is_current:
        figures["models"] = {}
    return {
        "outdated": False,
        "figures": figures,
        "blocks": list(table_blocks(figures)),
        "precisions": _precisions(figures),
        "verdict": figures["verdict"] if is_current else None,
        "optimistic": any(entry["optimistic"] for arms in figures["models"].values() for entry in arms.values()),
    }


def _precisions(figures: Mapping[str, Any]) -> list[str]:
    """The precisions at which recalls are known."""
    entries = [entry for _, own in table_blocks(figures) for entry in own.values()]
    return next((list(entry["recall_at_precision"]) for entry in entries if "recall_at_precision" in entry), [])
