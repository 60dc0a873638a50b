"""Train one network on the labelled rows outside one fold, and on the pool where the arm does (trainers.lessons).

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
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from torch import nn

from augment.mixing import mix_batch
from augment.policies import Policy, build_policy
from configs.errors import InputError
from configs.schema import TrainConfig
from trainers import atomic, held_out, memory, stopping, training_record
from trainers.backbones import Backbone, build_backbone, start_from, to_input
from trainers.checkpoints import read_final
from trainers.devices import build_accelerator, launch, num_devices, num_workers
from trainers.fold_task import FoldData, FoldTask, TrainResult
from trainers.lessons import Labels, LabelsAndPool, Lesson
from trainers.loader import naming_lost_workers, training_loader
from trainers.losses import class_weights, logit_adjustment, soft_targets
from trainers.prior import log_odds_shift, warn_double_counting, warn_no_adjustment
from trainers.progress import progress_bar, tell
from trainers.provenance import code_version, derive_seed
from trainers.samplers import BatchSampler, StepBatches, build_sampler
from trainers.semi.background import clusters
from trainers.semi.lesson import TeacherAndPool
from trainers.torchvision_ops import declare_missing_ops
from trainers.training_state import build_training, resume, take_step

declare_missing_ops()

from torch.utils.tensorboard import SummaryWriter  # noqa: E402


def run(task: FoldTask) -> TrainResult:
    """Train to `train.steps`, from the newest resume point in `out` if there is one, and write `out/final`.

    Raises InputError for settings that do not fit each other, NonFiniteLoss (naming the step) when training diverges.
    """
    # What the pool's running averages are made of would have to be gathered from several devices at every step.
    world = 1 if task.semi else num_devices(task.compute, batch_size=_batch_size(task))
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
    if task.start is not None:
        backbone = start_from(backbone, task.model.backbone, task.start)
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (backbone.mean, backbone.std))
    batch_size = _batch_size(task)
    lesson = _lesson(task, backbone.model, device)
    state = build_training(backbone.model, train, accelerator, batch_size=batch_size)
    problems = resume(state, task.out / "checkpoints")
    used = f"the resume point of step {state.step} is used" if state.step else "training starts from the beginning"
    for problem in problems if rank == 0 else ():
        tell(f"[yellow]warning:[/] {escape(problem)}; {used}")
    if state.step and rank == 0:
        tell(f"{escape(task.description)}: going on from step {state.step} of {train.steps}")

    batches = StepBatches(lesson.sampler, start_step=state.step, stop_step=train.steps, rank=rank, world_size=world)
    views = batch_size + (task.semi.config.batch_size if task.semi else 0)  # of pool images a weak and a strong one
    workers = num_workers(task.compute, batch_bytes=views * task.image_size**2 * task.channels)
    loader = training_loader(lesson.images, batches, workers=workers, pin=device.type == "cuda")

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
        if held_out.look_is_due(state, task):  # the stop came before or in the middle of it
            held_out.look(state, task, mean, std, lesson, writer)
        for images, batch_targets in loader:
            # Dropout draws from torch's global generator: seeded by the step, it needs no saving to resume exactly.
            torch.manual_seed(derive_seed(seed, "dropout", state.step, rank))
            inputs, batch_targets = mix_batch(
                *lesson.batch(
                    state,
                    to_input(images.to(device, non_blocking=True), mean, std),
                    batch_targets.to(device, non_blocking=True),
                ),
                mixup_alpha=augment.mixup_alpha,
                cutmix_alpha=augment.cutmix_alpha,
                probability=augment.mix_probability,
                generator=torch.Generator().manual_seed(derive_seed(seed, "mixing", state.step, rank)),
            )
            state.losses.append(take_step(state, train, inputs, batch_targets, lesson.loss))
            bar.advance()
            state.seconds = time.perf_counter() - started

            evaluate = state.step % train.eval_steps == 0 or state.step == train.steps
            if evaluate or state.step % train.log_every_steps == 0:
                training_record.log(state, writer, task.out, lesson.take_figures(state), watched=held_out.WATCHED)
                bar.note(held_out.note(state))
            if _stop_is_agreed(votes):
                training_record.save(state, task.out)
                stopping.stop()
            if evaluate and len(data.held_rows):
                held_out.look(state, task, mean, std, lesson, writer)
                bar.note(held_out.note(state))
            by_time = 0 < train.checkpoint_every_seconds < time.perf_counter() - saved_at
            by_steps = train.checkpoint_every_steps and state.step % train.checkpoint_every_steps == 0
            if (by_time or by_steps) and state.step < train.steps:
                training_record.save(state, task.out)
                saved_at = time.perf_counter()
        training_record.check_finite(state, task.out)
        state.seconds = time.perf_counter() - started  # now that a GPU has done all its steps
        if writer is not None:
            with atomic.naming(task.out / "tensorboard"):
                writer.close()
            weights = state.predictor.state_dict() if state.best_weights is None else state.best_weights
            facts = _facts(task, backbone, lesson.shift) | held_out.facts(state) | lesson.facts(state)
            training_record.finish(state, lesson.kept(weights), facts, task.out)
    accelerator.wait_for_everyone()
    stopping.raise_if_asked()  # of a signal that came too late to stop the loop


def _batch_size(task: FoldTask) -> int:
    """Images of a step, labelled and of the pool."""
    of_pool = task.pool.batch_size if task.pool is not None else task.semi.config.batch_size if task.semi else 0
    return task.train.batch_size + of_pool


def _lesson(task: FoldTask, network: nn.Module, device: torch.device) -> Lesson:
    """What is taught; `network` gets further outputs where that needs them."""
    train, data, seed = task.train, task.data, task.seed
    sampler = _sampler(train, data, seed=seed)
    targets = soft_targets(
        torch.from_numpy(data.train_targets),
        num_outputs=data.num_outputs,
        label_smoothing=train.loss.label_smoothing,
        positive_target=train.loss.positive_target,
    )
    shift = _log_odds_shift(task, sampler.class_shares)
    policy = _policy(task, task.augment.policy, "augment")
    if task.semi is None:
        kind = Labels if task.pool is None else LabelsAndPool
        return kind(task, sampler, targets, shift, policy)
    split = task.semi.config.background_classes > 0
    return TeacherAndPool(
        task,
        network,
        sampler,
        targets,
        shift,
        strong=policy,
        weak=_policy(task, "none" if task.augment.policy == "none" else "light", "weak"),
        clusters=clusters(task, device=device, batch_size=train.batch_size) if split else None,
    )


def _policy(task: FoldTask, name: str, purpose: str) -> Policy:
    return build_policy(
        name,
        image_size=task.image_size,
        channels=task.channels,
        seed=derive_seed(task.seed, purpose),
        **task.augment.policy_arguments,
    )


def _stop_is_agreed(votes: Any) -> bool:
    """Whether to stop here: several processes, of which one may have been told first, ask each other."""
    if votes is None:
        return stopping.asked()
    asked = torch.tensor([stopping.asked()], dtype=torch.uint8)
    torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, group=votes)
    return bool(asked)


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
        "start": None if task.start is None else read_final(task.start).state,
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
