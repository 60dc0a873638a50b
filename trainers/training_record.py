"""What a training leaves in its folder: resume points, curves for tensorboard and curves.csv, the weights that predict.

Nothing is kept that is not finite: `NonFiniteLoss` names the step at which training diverged.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from configs.errors import InputError
from trainers import atomic
from trainers.checkpoints import Checkpoint, load_latest, save_latest, write_checkpoint
from trainers.torchvision_ops import declare_missing_ops
from trainers.training_state import TrainingState, is_finite, snapshot

declare_missing_ops()

from torch.utils.tensorboard import SummaryWriter  # noqa: E402  (after the operators that torchvision looks up exist)

CURVE_COLUMNS = ("step", "loss", "lr", "seconds")


class NonFiniteLoss(InputError):
    """The loss became NaN or infinite."""


def save(state: TrainingState, out: Path) -> None:
    """Write a resume point (the first process does)."""
    check_finite(state, out)
    if state.accelerator.is_main_process:
        save_latest(out / "checkpoints", state.step, snapshot(state))
        _write_curves(state, out)


def log(
    state: TrainingState,
    writer: SummaryWriter | None,
    out: Path,
    figures: Mapping[str, float | None] = MappingProxyType({}),
    *,
    watched: Sequence[str],
) -> None:
    """Add a curve row: the mean loss since the last one, `figures`, and `watched` to be filled in.

    Raises NonFiniteLoss.
    """
    losses = torch.stack(state.losses).cpu()
    bad = torch.nonzero(~torch.isfinite(losses)).flatten()
    if len(bad):
        step = state.step - len(losses) + int(bad[0]) + 1
        raise _diverged(state, out, f"the loss became {float(losses[bad[0]])} at step {step}")
    row = {
        "step": state.step,
        "loss": float(losses.double().mean()),
        "lr": float(state.optimizer.param_groups[0]["lr"]),
        "seconds": round(state.seconds, 3),
    }
    state.losses = []
    state.curves.append(row | dict.fromkeys(watched) | dict(figures))
    draw(writer, {"train/loss": row["loss"], "train/lr": row["lr"]}, state.step)
    draw(writer, {f"pool/{name}": value for name, value in figures.items()}, state.step)


def draw(writer: SummaryWriter | None, points: dict[str, float | None], step: int) -> None:
    """Add a point to each curve that tensorboard shows; of a full disk its writing thread tells the next caller."""
    if writer is None:
        return
    with atomic.naming(Path(writer.log_dir)):
        for curve, value in points.items():
            if value is not None:
                writer.add_scalar(curve, value, step)


def check_finite(state: TrainingState, out: Path) -> None:
    """The last loss is that of the weights before the update, so weights are looked at before they are kept."""
    if not is_finite(state):
        raise _diverged(state, out, f"the weights are not finite after step {state.step}")


def finish(state: TrainingState, weights: dict[str, Tensor], facts: dict[str, Any], out: Path) -> None:
    """Write the weights that are kept, with `facts` and what is known of how they were trained."""
    _write_curves(state, out)
    facts = facts | {
        "micro_batch": state.micro_batch,
        "seconds": round(state.seconds, 3),
        "device": str(state.accelerator.device),
        "num_devices": state.accelerator.num_processes,
        "precision": state.accelerator.mixed_precision,
    }
    write_checkpoint(out / "final", Checkpoint({"model": weights}, facts))


def newest(state: TrainingState, watched: str) -> float | None:
    """The last value of a watched figure, if there is one."""
    return next((row[watched] for row in reversed(state.curves) if row[watched] is not None), None)


def _write_curves(state: TrainingState, out: Path) -> None:
    columns = list(state.curves[0]) if state.curves else list(CURVE_COLUMNS)
    atomic.write_csv(out / "curves.csv", pd.DataFrame(state.curves, columns=columns))


def _diverged(state: TrainingState, out: Path, what: str) -> NonFiniteLoss:
    name = state.section
    good, _ = load_latest(out / "checkpoints")
    kept = f"the checkpoint of step {good.state['step']} is kept" if good else "no checkpoint had been saved yet"
    return NonFiniteLoss(
        f"{out}: {what}; {kept}. Lower {name}.lr, lengthen {name}.warmup_steps or set {name}.clip_norm, then run "
        "again with --restart"
    )
