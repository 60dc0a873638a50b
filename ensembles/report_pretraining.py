"""The report's look at pretraining: loss and effective rank of each backbone, and what probes made of its features."""

from typing import Any

import numpy as np
import pandas as pd

from ensembles import figures
from ensembles.report_sections import stage_summaries
from ensembles.run_files import RunFiles

PROBE_FAMILY = "pretrain-probe"  # of stages whose summaries the log has, one a backbone


def pretraining_panels(files: RunFiles) -> list[dict[str, Any]]:
    """One entry for each backbone that this run's networks begin with; empty where nothing was pretrained.

    `first` and `last` are the watched figures before and after, `probe` what was said of the frozen features or None.
    """
    if not files.config.pretrains:
        return []
    panels = []
    for model, curve in sorted(files.pretraining.items()):
        role = figures.series_role(files.model_index(model))
        looks = curve.dropna(subset=["effective_rank"])
        panels.append(
            {
                "model": model,
                "role": role,
                "loss": _figure(curve, "loss", "Loss", model, role),
                "rank": _figure(looks, "effective_rank", "Effective rank", model, role) if len(looks) else None,
                "first": _look(looks, 0),
                "last": _look(looks, -1),
                "probe": _probed(files, model),
            }
        )
    return panels


def _figure(curve: pd.DataFrame, column: str, label: str, model: str, role: str) -> Any:
    line = figures.Curve(curve["step"].to_numpy(), curve[column].to_numpy(dtype=np.float64), role, 1.6)
    return figures.line_figure([line], y_label=label, name=f"pretrain/{column}/{model}")


def _look(looks: pd.DataFrame, position: int) -> dict[str, float] | None:
    if looks.empty:
        return None
    return {name: float(looks[name].iloc[position]) for name in ("effective_rank", "spread")}


def _probed(files: RunFiles, model: str) -> str | None:
    return stage_summaries(files.events).get(PROBE_FAMILY, {}).get(f"{PROBE_FAMILY}/{model}")
