"""Looks at the held-out fold while a network trains: average precision at the natural prevalence."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers import stopping
from trainers.fold_task import FoldTask
from trainers.lessons import Lesson
from trainers.scoring import score_rows
from trainers.torchvision_ops import declare_missing_ops
from trainers.training_record import draw, newest, save
from trainers.training_state import TrainingState

declare_missing_ops()

from torch.utils.tensorboard import SummaryWriter  # noqa: E402  (after the operators that torchvision looks up exist)
from torchmetrics.functional.classification import (  # noqa: E402
    binary_average_precision,
    multiclass_average_precision,
)

WATCHED = ("ap",)


def note(state: TrainingState) -> str:
    """What the progress bar says beside the steps: newest loss, and newest AP of the held-out fold."""
    ap = newest(state, "ap")
    return f"loss {state.curves[-1]['loss']:.4f}" + ("" if ap is None else f" AP {ap:.3f}")


def facts(state: TrainingState) -> dict[str, Any]:
    """The newest AP, and with `keep: best` the best one and the step of the weights that are kept."""
    kept = state.curves[-1]
    if state.best_weights is not None:
        kept = max((row for row in state.curves if row["ap"] is not None), key=lambda row: row["ap"] or 0.0)
    return {
        "held_out_ap": newest(state, "ap"),
        "best_held_out_ap": None if state.best_weights is None else state.best,
        "kept_step": kept["step"],
    }


def look_is_due(state: TrainingState, task: FoldTask) -> bool:
    """Whether the training was stopped between a logged step and its look at the held-out fold."""
    at_look = state.step > 0 and (state.step % task.train.eval_steps == 0 or state.step == task.train.steps)
    # Under another eval_every_steps than before, the step that it stopped at has no row.
    is_logged = bool(state.curves) and state.curves[-1]["step"] == state.step
    return at_look and len(task.data.held_rows) > 0 and is_logged and state.curves[-1]["ap"] is None


def look(
    state: TrainingState, task: FoldTask, mean: Tensor, std: Tensor, lesson: Lesson, writer: SummaryWriter | None
) -> None:
    """Judge the network on the held-out fold; a stop in the middle saves, and the look is taken when resumed."""
    try:
        _evaluate(state, task, mean, std, lesson, writer)
    except stopping.Stopped:
        save(state, task.out)
        raise


def _evaluate(
    state: TrainingState, task: FoldTask, mean: Tensor, std: Tensor, lesson: Lesson, writer: SummaryWriter | None
) -> None:
    """Average precision on the held-out fold, every process a share of its rows, pooled before the metric."""
    data, rank, world = task.data, state.accelerator.process_index, state.accelerator.num_processes
    if world > 1:  # batch statistics differ between processes; those of the first are the ones that are saved
        for buffer in state.predictor.buffers():
            torch.distributed.broadcast(buffer, 0)
    own = score_rows(
        state.predictor,
        task.pixels,
        data.held_rows[rank::world],
        mean=mean,
        std=std,
        # Without gradients four times the images of a training pass need less memory than that.
        batch_size=min(4 * state.micro_batch, max(256, state.micro_batch)),
        size_setting="train.micro_batch",
        autocast=state.accelerator.autocast,
        after_batch=stopping.raise_if_asked if world == 1 else None,  # or the others would wait for this one
    )
    logits = np.empty((len(data.held_rows), data.num_outputs))
    for other, part in enumerate(_gather(own[:, lesson.columns], world)):
        logits[other::world] = part
    ap = _watched_average_precision(logits - lesson.shift, data.held_targets, data.num_classes)
    state.curves[-1]["ap"] = ap
    draw(writer, {"held_out/average_precision": ap}, state.step)
    if task.train.keep == "best" and ap is not None and ap > state.best:
        state.best = ap
        state.best_weights = {key: value.detach().clone() for key, value in state.predictor.state_dict().items()}


def _gather(own: np.ndarray, world: int) -> list[np.ndarray]:
    if world == 1:
        return [own]
    gathered: list[Any] = [None] * world
    torch.distributed.all_gather_object(gathered, own)
    return gathered


def _watched_average_precision(logits: np.ndarray, targets: np.ndarray, num_classes: int) -> float | None:
    """torchmetrics' AP (multi-class: macro) of logits at the natural prevalence; None when a class has no held row."""
    if len(np.unique(targets)) < num_classes:
        return None
    scores, truth = torch.from_numpy(logits), torch.from_numpy(targets)
    if scores.shape[1] == 1:  # float64 probabilities, so that torchmetrics neither guesses a sigmoid nor saturates
        return float(binary_average_precision(torch.sigmoid(scores[:, 0]), truth))
    return float(multiclass_average_precision(torch.softmax(scores, dim=1), truth, num_classes))
