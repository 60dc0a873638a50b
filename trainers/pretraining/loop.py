"""Learn a backbone from images without labels, which are not even handed over.

    out/
      checkpoints/   resume points (removed when the training is complete)
      final/         the backbone's weights under timm's names, without classifier, with all that is needed to use them
      curves.csv     step, loss, lr, seconds, and at the looks the watched figures
      tensorboard/

`run` is resumable in the same way as supervised training: views, batches and what else is random are functions of
(seed, step). Embeddings are watched, without labels, and a collapse stops the training.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from torch import Tensor

from augment.policies import Policy, build_policy
from configs.errors import InputError
from configs.pretraining import PretrainConfig
from configs.schema import AugmentConfig, ComputeConfig, ModelConfig
from trainers import atomic, memory, stopping, training_record
from trainers.backbones import Backbone, build_backbone, to_input
from trainers.checkpoints import read_final
from trainers.devices import build_accelerator, num_workers
from trainers.fold_task import TrainResult
from trainers.loader import Pixels, TrainingViews, naming_lost_workers, training_loader
from trainers.pretraining.distill import teacher_targets
from trainers.pretraining.method import num_features
from trainers.pretraining.methods import METHODS, Sizes
from trainers.pretraining.watch import Watch
from trainers.progress import progress_bar, tell
from trainers.provenance import code_version, derive_seed
from trainers.samplers import StepBatches, build_sampler
from trainers.torchvision_ops import declare_missing_ops
from trainers.training_state import TrainingState, build_training, resume, take_step

declare_missing_ops()

from torch.utils.tensorboard import SummaryWriter  # noqa: E402


@dataclass(frozen=True)
class PretrainTask:
    """One backbone to learn, on which rows of the image table, and where to write.

    `teacher` is a file of embeddings of all rows of the table, float32 (num_images, dim), where the method has one.
    """

    model: ModelConfig
    pretrain: PretrainConfig
    augment: AugmentConfig
    compute: ComputeConfig
    rows: np.ndarray
    pixels: Pixels
    image_size: int
    channels: int
    seed: int
    out: Path
    teacher: Path | None = None
    description: str = "pretraining"


def run(task: PretrainTask) -> TrainResult:
    """Train to `pretrain.steps`, from the newest resume point in `out` if there is one, and write `out/final`.

    Raises InputError for settings that do not fit each other or the images, NonFiniteLoss when training diverges, and
    Collapse when all images come to look alike.
    """
    config = task.pretrain
    if len(task.rows) < config.batch_size:
        raise InputError(
            f"pretrain.batch_size {config.batch_size}: there are {len(task.rows)} images to learn from (pretrain.rows: "
            f"{config.rows}); "
            + (f"set it to {len(task.rows)} or less" if len(task.rows) > 1 else "there must be more")
        )
    task.out.mkdir(parents=True, exist_ok=True)
    atomic.clear_temporary(task.out)
    final = task.out / "final"
    if not final.exists():
        with memory.told(f"pretraining with pretrain.batch_size {config.batch_size}", "make the network smaller"):
            _train(task)
    if (task.out / "checkpoints").exists():  # the resume points have served
        shutil.rmtree(task.out / "checkpoints")
    return TrainResult(final, read_final(final).state)


def _train(task: PretrainTask) -> None:
    config, seed = task.pretrain, task.seed
    accelerator = build_accelerator(task.compute)
    device = accelerator.device
    torch.manual_seed(derive_seed(seed, "weights"))
    backbone = build_backbone(
        task.model.backbone,
        channels=task.channels,
        num_outputs=0,
        pretrained=task.model.pretrained,
        options=task.model.options,
        image_size=task.image_size,
    )
    targets = _targets(task)
    sizes = Sizes(
        num_features=num_features(backbone.model, channels=task.channels, image_size=task.image_size),
        channels=task.channels,
        image_size=task.image_size,
        target_dim=targets.shape[1],
    )
    method = METHODS[config.method](backbone.model, config, sizes)
    state = build_training(method, config, accelerator)
    problems = resume(state, task.out / "checkpoints")
    used = f"the resume point of step {state.step} is used" if state.step else "training starts from the beginning"
    for problem in problems:
        tell(f"[yellow]warning:[/] {escape(problem)}; {used}")
    if state.step:
        tell(f"{escape(task.description)}: going on from step {state.step} of {config.steps}")

    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (backbone.mean, backbone.std))
    policy = _views(task)
    batches = StepBatches(_sampler(task), start_step=state.step, stop_step=config.steps)
    view_bytes = method.num_views * task.image_size**2 * task.channels
    workers = num_workers(task.compute, batch_bytes=config.batch_size * view_bytes)
    loader = training_loader(
        TrainingViews(task.pixels, task.rows, targets, policy, num_views=method.num_views),
        batches,
        workers=workers,
        pin=device.type == "cuda",
    )
    watch = Watch(task.pixels, task.rows, policy, mean=mean, std=std, seed=derive_seed(seed, "watch"))
    writer = SummaryWriter(task.out / "tensorboard", purge_step=state.step and state.step + 1)

    state.forward.train()
    started = time.perf_counter() - state.seconds
    saved_at = time.perf_counter()
    with (
        stopping.deferred(),
        naming_lost_workers(workers),
        progress_bar(task.description, config.steps, done=state.step) as bar,
    ):
        if _look_is_due(state, config):  # the stop came before it
            _look(state, watch, config, writer)
        for views, batch_targets in loader:
            # Masks and dropout draw from torch's global generator: seeded by the step, it needs no saving.
            torch.manual_seed(derive_seed(seed, "draws", state.step))
            inputs = to_input(views.to(device, non_blocking=True), mean, std)
            batch_targets = batch_targets.to(device, non_blocking=True)
            state.losses.append(take_step(state, config, inputs, batch_targets, method.loss))
            bar.advance()
            state.seconds = time.perf_counter() - started

            look = _is_look(state, config)
            if look or state.step % config.log_every_steps == 0:
                training_record.log(state, writer, task.out, watched=Watch.FIGURES)
                if look and not stopping.asked():
                    _look(state, watch, config, writer)
                bar.note(_note(state))
            if stopping.asked():
                training_record.save(state, task.out)
                stopping.stop()
            by_time = 0 < config.checkpoint_every_seconds < time.perf_counter() - saved_at
            by_steps = config.checkpoint_every_steps and state.step % config.checkpoint_every_steps == 0
            if (by_time or by_steps) and state.step < config.steps:
                training_record.save(state, task.out)
                saved_at = time.perf_counter()
        training_record.check_finite(state, task.out)
        state.seconds = time.perf_counter() - started  # now that a GPU has done all its steps
        with atomic.naming(task.out / "tensorboard"):
            writer.close()
        training_record.finish(state, _encoder_weights(state), _facts(task, backbone, state), task.out)
    stopping.raise_if_asked()  # of a signal that came too late to stop the loop


def _targets(task: PretrainTask) -> Tensor:
    """What a teacher says of each row, (rows, dim); without one there are no columns."""
    if task.teacher is None:
        return torch.empty(len(task.rows), 0)
    return teacher_targets(torch.from_numpy(np.load(task.teacher, mmap_mode="r")[task.rows]))


def _views(task: PretrainTask) -> Policy:
    augment, views = task.augment, task.pretrain.views
    arguments = augment.policy_arguments | {"strength": views.strength, "min_crop": views.min_crop}
    return build_policy(
        "views",
        image_size=task.image_size,
        channels=task.channels,
        seed=derive_seed(task.seed, "views"),
        **arguments,
    )


def _sampler(task: PretrainTask) -> Any:
    return build_sampler(
        "natural",
        np.zeros(len(task.rows), dtype=np.int64),
        num_classes=1,
        batch_size=task.pretrain.batch_size,
        seed=derive_seed(task.seed, "sampler"),
        balance=0.0,
        positives=1,
    )


def _is_look(state: TrainingState, config: PretrainConfig) -> bool:
    return state.step % config.watch_steps == 0 or state.step == config.steps


def _look_is_due(state: TrainingState, config: PretrainConfig) -> bool:
    """Whether the training was stopped between a logged step and its look at the embeddings."""
    # Under another watch_every_steps than before, the step that it stopped at has no row.
    is_logged = bool(state.curves) and state.curves[-1]["step"] == state.step
    return state.step > 0 and _is_look(state, config) and is_logged and state.curves[-1]["spread"] is None


def _look(state: TrainingState, watch: Watch, config: PretrainConfig, writer: SummaryWriter) -> None:
    """Watch the embeddings of the weights that would be kept; raises Collapse."""
    before = next((row for row in reversed(state.curves) if row["spread"] is not None), None)
    figures = watch.look(state.predictor)  # type: ignore[arg-type]
    state.curves[-1] |= figures
    training_record.draw(writer, {f"embeddings/{name}": value for name, value in figures.items()}, state.step)
    if before is not None:
        watch.check(before, figures, state.step, min_spread=config.min_spread)


def _note(state: TrainingState) -> str:
    rank = training_record.newest(state, "effective_rank")
    return f"loss {state.curves[-1]['loss']:.4f}" + ("" if rank is None else f" rank {rank:.1f}")


def _encoder_weights(state: TrainingState) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = state.predictor.encoder.state_dict()  # type: ignore[union-attr]
    return weights


def _facts(task: PretrainTask, backbone: Backbone, state: TrainingState) -> dict[str, Any]:
    """Everything needed to use the weights and to know where they come from."""
    model, config = task.model, task.pretrain
    return {
        "backbone": model.backbone,
        "options": model.options,
        "pretrained": model.pretrained,
        "channels": task.channels,
        "image_size": task.image_size,
        "num_outputs": 0,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "channels_last": config.channels_last,
        "method": config.method,
        "rows": config.rows,
        "num_images": len(task.rows),
        "steps": config.steps,
        "seed": task.seed,
        "code_version": code_version(),
        **{name: training_record.newest(state, name) for name in Watch.FIGURES},
    }
