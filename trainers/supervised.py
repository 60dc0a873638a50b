"""Train one network on the labelled rows outside one fold: arm `supervised`.

    out/
      checkpoints/   resume points (removed when the training is complete)
      final/         the weights that predict, with all that is needed to use them
      curves.csv     step, loss, lr, seconds, ap
      tensorboard/

`run` is resumable: batches, augmentations, mixing and dropout are functions of (seed, step), and weights, moving
average, optimiser and scaler come back from the newest verified checkpoint, so that on a CPU an interrupted training
ends with the very weights of an uninterrupted one.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.markup import escape
from torch import Tensor

from augment.mixing import mix_batch
from augment.policies import build_policy
from configs.errors import InputError
from configs.schema import AugmentConfig, ComputeConfig, ModelConfig, TrainConfig
from trainers import atomic, memory, stopping
from trainers.backbones import Backbone, build_backbone, to_input
from trainers.checkpoints import (
    Checkpoint,
    load_latest,
    read_final,
    save_latest,
    write_checkpoint,
)
from trainers.devices import build_accelerator, launch, num_devices, num_workers
from trainers.loader import Pixels, TrainingImages, naming_lost_workers, training_loader
from trainers.losses import build_loss, class_weights, logit_adjustment, soft_targets
from trainers.prior import log_odds_shift, warn_double_counting, warn_no_adjustment
from trainers.progress import progress_bar, tell
from trainers.provenance import code_version, derive_seed
from trainers.samplers import BatchSampler, StepBatches, build_sampler
from trainers.scoring import score_rows
from trainers.torchvision_ops import declare_missing_ops
from trainers.training_state import TrainingState, build_training, is_finite, resume, snapshot, take_step

declare_missing_ops()

from torch.utils.tensorboard import SummaryWriter  # noqa: E402
from torchmetrics.functional.classification import (  # noqa: E402
    binary_average_precision,
    multiclass_average_precision,
)

CURVE_COLUMNS = ("step", "loss", "lr", "seconds", "ap")


class NonFiniteLoss(InputError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class FoldData:
    """The rows one training sees, learnt and held out: table positions, and targets (int64, 0/1 or class index)."""

    train_rows: np.ndarray
    train_targets: np.ndarray
    held_rows: np.ndarray
    held_targets: np.ndarray
    num_outputs: int

    @property
    def num_classes(self) -> int:
        return max(2, self.num_outputs)

    @property
    def class_counts(self) -> np.ndarray:
        return np.bincount(self.train_targets, minlength=self.num_classes)


@dataclass(frozen=True)
class FoldTask:
    """One network to train on one fold: the sections of the config that matter, the data, and where to write."""

    model: ModelConfig
    train: TrainConfig
    augment: AugmentConfig
    compute: ComputeConfig
    data: FoldData
    pixels: Pixels
    image_size: int
    channels: int
    seed: int
    out: Path
    description: str = "training"


@dataclass(frozen=True)
class TrainResult:
    """Where the trained network is and what is known of it."""

    final: Path
    facts: dict[str, Any]


def run(task: FoldTask) -> TrainResult:
    """Train to `train.steps`, from the newest resume point in `out` if there is one, and write `out/final`.

    Raises InputError for settings that do not fit each other, NonFiniteLoss (naming the step) when training diverges.
    """
    world = num_devices(task.compute, batch_size=task.train.batch_size)
    if task.train.micro_batch == "auto" and world > 1:
        raise InputError(
            f"train.micro_batch auto is for one device, and {world} would train here; set it to a number of images per "
            "device and forward pass, or set compute.num_devices to 1"
        )
    task.out.mkdir(parents=True, exist_ok=True)
    atomic.clear_temporary(task.out)
    final = task.out / "final"
    if not final.exists():
        # Steps tell more; this is for what comes before them, above all the network itself.
        with memory.told(f"training with train.batch_size {task.train.batch_size}", "make the network smaller"):
            launch(_train, (task,), num_processes=world)
    if (task.out / "checkpoints").exists():  # the resume points have served
        shutil.rmtree(task.out / "checkpoints")
    return TrainResult(final, read_final(final).state)


def setting_warnings(train: TrainConfig, data: FoldData) -> list[str]:
    """What is odd about sampler, class weights and loss taken together, in the user's words."""
    shares = _sampler(train, data, seed=0).class_shares
    adjustment = logit_adjustment(train.loss)
    warnings = [
        warn_double_counting(
            class_counts=data.class_counts,
            class_shares=shares,
            class_weights=class_weights(train.loss.class_weight, data.class_counts.tolist()).numpy(),
            logit_adjustment=adjustment,
        ),
        warn_no_adjustment(class_shares=shares, logit_adjustment=adjustment),
    ]
    return [warning for warning in warnings if warning is not None]


def _sampler(train: TrainConfig, data: FoldData, *, seed: int) -> BatchSampler:
    return build_sampler(
        train.sampler.name,
        data.train_targets,
        num_classes=data.num_classes,
        batch_size=train.batch_size,
        seed=derive_seed(seed, "sampler"),
        balance=train.sampler.balance,
        positives=train.sampler.positives,
    )


def _train(task: FoldTask) -> None:
    train, augment, data, seed = task.train, task.augment, task.data, task.seed
    accelerator = build_accelerator(task.compute)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    torch.manual_seed(derive_seed(seed, "weights"))
    backbone = build_backbone(
        task.model.backbone,
        channels=task.channels,
        num_outputs=data.num_outputs,
        pretrained=task.model.pretrained,
        options=task.model.options,
        image_size=task.image_size,
    )
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (backbone.mean, backbone.std))
    state = build_training(backbone.model, train, accelerator)
    problems = resume(state, task.out / "checkpoints")
    used = f"the resume point of step {state.step} is used" if state.step else "training starts from the beginning"
    for problem in problems if rank == 0 else ():
        tell(f"[yellow]warning:[/] {escape(problem)}; {used}")
    if state.step and rank == 0:
        tell(f"{escape(task.description)}: going on from step {state.step} of {train.steps}")

    sampler = _sampler(train, data, seed=seed)
    policy = build_policy(
        augment.policy,
        image_size=task.image_size,
        channels=task.channels,
        seed=derive_seed(seed, "augment"),
        **augment.policy_arguments,
    )
    targets = soft_targets(
        torch.from_numpy(data.train_targets),
        num_outputs=data.num_outputs,
        label_smoothing=train.loss.label_smoothing,
        positive_target=train.loss.positive_target,
    )
    batches = StepBatches(
        sampler,
        start_step=state.step,
        stop_step=train.steps,
        rank=rank,
        world_size=world,
    )
    workers = num_workers(task.compute, batch_bytes=train.batch_size * task.image_size**2 * task.channels)
    loader = training_loader(
        TrainingImages(task.pixels, data.train_rows, targets, policy),
        batches,
        workers=workers,
        pin=device.type == "cuda",
    )
    shift = _log_odds_shift(task, sampler.class_shares)
    loss_function = build_loss(
        train.loss, class_counts=data.class_counts.tolist(), class_shares=sampler.class_shares.tolist()
    )
    writer = SummaryWriter(task.out / "tensorboard", purge_step=state.step and state.step + 1) if rank == 0 else None
    # Over the CPU, so that asking at every step does not make it wait for the GPU.
    votes = torch.distributed.new_group(backend="gloo") if world > 1 else None

    state.forward.train()
    started = time.perf_counter() - state.seconds
    saved_at = time.perf_counter()
    with (
        stopping.deferred(),
        naming_lost_workers(workers),
        progress_bar(task.description, train.steps, done=state.step, shown=rank == 0) as bar,
    ):
        if _look_is_due(state, task):  # the stop came before or in the middle of it
            _look(state, task, mean, std, shift, writer)
        for images, batch_targets in loader:
            # Dropout draws from torch's global generator: seeded by the step, it needs no saving to resume exactly.
            torch.manual_seed(derive_seed(seed, "dropout", state.step, rank))
            inputs, batch_targets = mix_batch(
                to_input(images.to(device, non_blocking=True), mean, std),
                batch_targets.to(device, non_blocking=True),
                mixup_alpha=augment.mixup_alpha,
                cutmix_alpha=augment.cutmix_alpha,
                probability=augment.mix_probability,
                generator=torch.Generator().manual_seed(derive_seed(seed, "mixing", state.step, rank)),
            )
            state.losses.append(take_step(state, train, inputs, batch_targets, loss_function))
            bar.advance()
            state.seconds = time.perf_counter() - started

            evaluate = state.step % train.eval_steps == 0 or state.step == train.steps
            if evaluate or state.step % train.log_every_steps == 0:
                _log(state, writer, task.out)
                bar.note(_note(state))
            if _stop_is_agreed(votes):
                _save(state, task.out)
                stopping.stop()
            if evaluate and len(data.held_rows):
                _look(state, task, mean, std, shift, writer)
                bar.note(_note(state))
            by_time = 0 < train.checkpoint_every_seconds < time.perf_counter() - saved_at
            by_steps = train.checkpoint_every_steps and state.step % train.checkpoint_every_steps == 0
            if (by_time or by_steps) and state.step < train.steps:
                _save(state, task.out)
                saved_at = time.perf_counter()
    _check_finite(state, task.out)
    if writer is not None:
        with atomic.naming(task.out / "tensorboard"):
            writer.close()
        _finish(state, _facts(task, backbone, shift), task.out)
    accelerator.wait_for_everyone()
    stopping.raise_if_asked()  # of a signal that came too late to stop the loop


def _stop_is_agreed(votes: Any) -> bool:
    """Whether to stop here: several processes, of which one may have been told first, ask each other."""
    if votes is None:
        return stopping.asked()
    asked = torch.tensor([stopping.asked()], dtype=torch.uint8)
    torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, group=votes)
    return bool(asked)


def _save(state: TrainingState, out: Path) -> None:
    """Write a resume point (the first process does)."""
    _check_finite(state, out)
    if state.accelerator.is_main_process:
        save_latest(out / "checkpoints", state.step, snapshot(state))
        _write_curves(state, out)


def _look_is_due(state: TrainingState, task: FoldTask) -> bool:
    """Whether the training was stopped between a logged step and its look at the held-out fold."""
    at_look = state.step > 0 and (state.step % task.train.eval_steps == 0 or state.step == task.train.steps)
    # Under another eval_every_steps than before, the step that it stopped at has no row.
    is_logged = bool(state.curves) and state.curves[-1]["step"] == state.step
    return at_look and len(task.data.held_rows) > 0 and is_logged and state.curves[-1]["ap"] is None


def _log(state: TrainingState, writer: SummaryWriter | None, out: Path) -> None:
    losses = torch.stack(state.losses).cpu()
    bad = torch.nonzero(~torch.isfinite(losses)).flatten()
    if len(bad):
        step = state.step - len(losses) + int(bad[0]) + 1
        raise _diverged(out, f"the loss became {float(losses[bad[0]])} at step {step}")
    row = {
        "step": state.step,
        "loss": float(losses.double().mean()),
        "lr": float(state.optimizer.param_groups[0]["lr"]),
        "seconds": round(state.seconds, 3),
        "ap": None,
    }
    state.losses = []
    state.curves.append(row)
    _draw(writer, {"train/loss": row["loss"], "train/lr": row["lr"]}, state.step)


def _draw(writer: SummaryWriter | None, points: dict[str, float | None], step: int) -> None:
    """Add a point to each curve that tensorboard shows; of a full disk its writing thread tells the next caller."""
    if writer is None:
        return
    with atomic.naming(Path(writer.log_dir)):
        for curve, value in points.items():
            if value is not None:
                writer.add_scalar(curve, value, step)


def _check_finite(state: TrainingState, out: Path) -> None:
    """The last loss is that of the weights before the update, so weights are looked at before they are kept."""
    if not is_finite(state):
        raise _diverged(out, f"the weights are not finite after step {state.step}")


def _diverged(out: Path, what: str) -> NonFiniteLoss:
    good, _ = load_latest(out / "checkpoints")
    kept = f"the checkpoint of step {good.state['step']} is kept" if good else "no checkpoint had been saved yet"
    return NonFiniteLoss(
        f"{out}: {what}; {kept}. Lower train.lr, lengthen train.warmup_steps or set train.clip_norm, then run again "
        "with --restart"
    )


def _look(
    state: TrainingState, task: FoldTask, mean: Tensor, std: Tensor, shift: np.ndarray, writer: SummaryWriter | None
) -> None:
    """Judge the network on the held-out fold; a stop in the middle saves, and the look is taken when resumed."""
    try:
        _evaluate(state, task, mean, std, shift, writer)
    except stopping.Stopped:
        _save(state, task.out)
        raise


def _evaluate(
    state: TrainingState, task: FoldTask, mean: Tensor, std: Tensor, shift: np.ndarray, writer: SummaryWriter | None
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
    for other, part in enumerate(_gather(own, world)):
        logits[other::world] = part
    ap = _watched_average_precision(logits - shift, data.held_targets, data.num_classes)
    state.curves[-1]["ap"] = ap
    _draw(writer, {"held_out/average_precision": ap}, state.step)
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


def _log_odds_shift(task: FoldTask, class_shares: np.ndarray) -> np.ndarray:
    """What sampler, class weights and loss add to the logits, (outputs,)."""
    loss, counts = task.train.loss, task.data.class_counts
    return log_odds_shift(
        class_counts=counts,
        class_shares=class_shares,
        class_weights=class_weights(loss.class_weight, counts.tolist()).numpy(),
        logit_adjustment=logit_adjustment(loss),
    )


def _facts(task: FoldTask, backbone: Backbone, shift: np.ndarray) -> dict[str, Any]:
    """Everything needed to use the weights and to know where they come from."""
    model, train = task.model, task.train
    return {
        "backbone": model.backbone,
        "options": model.options,
        "pretrained": model.pretrained,
        "channels": task.channels,
        "image_size": task.image_size,
        "num_outputs": task.data.num_outputs,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "channels_last": train.channels_last,
        "log_odds_shift": shift.tolist(),
        "class_counts": task.data.class_counts.tolist(),
        "steps": train.steps,
        "keep": train.keep,
        "seed": task.seed,
        "code_version": code_version(),
    }


def _finish(state: TrainingState, facts: dict[str, Any], out: Path) -> None:
    """Write the predicting weights."""
    weights = state.predictor.state_dict() if state.best_weights is None else state.best_weights
    _write_curves(state, out)
    evaluated = [row for row in state.curves if row["ap"] is not None]
    kept = state.curves[-1] if state.best_weights is None else max(evaluated, key=lambda row: row["ap"] or 0.0)
    facts = facts | {
        "held_out_ap": evaluated[-1]["ap"] if evaluated else None,
        "best_held_out_ap": state.best if state.best_weights is not None else None,
        "kept_step": kept["step"],
        "micro_batch": state.micro_batch,
        "seconds": round(state.seconds, 3),
        "device": str(state.accelerator.device),
        "num_devices": state.accelerator.num_processes,
        "precision": state.accelerator.mixed_precision,
    }
    write_checkpoint(out / "final", Checkpoint({"model": weights}, facts))


def _write_curves(state: TrainingState, out: Path) -> None:
    atomic.write_csv(out / "curves.csv", pd.DataFrame(state.curves, columns=list(CURVE_COLUMNS)))


def _note(state: TrainingState) -> str:
    row = state.curves[-1]
    evaluated = [entry["ap"] for entry in state.curves if entry["ap"] is not None]
    return f"loss {row['loss']:.4f}" + (f" AP {evaluated[-1]:.3f}" if evaluated else "")
