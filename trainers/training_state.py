"""The state of a training: network, moving average, optimiser, schedule; one step of it, and resume points.

Loops own their batches and losses; what is built, stepped, saved and brought back is the same for all of them.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from configs.errors import InputError
from configs.sections import OptimisationConfig
from trainers import memory
from trainers.checkpoints import Checkpoint, flatten_optimizer, load_latest, unflatten_optimizer
from trainers.progress import tell
from trainers.torchvision_ops import declare_missing_ops

declare_missing_ops()

from timm.optim import create_optimizer_v2  # noqa: E402  (after the operators timm looks up exist)
from timm.scheduler import CosineLRScheduler  # noqa: E402
from timm.utils import ModelEmaV3  # noqa: E402


class MovingAverage(ModelEmaV3):
    """timm's, but tensors are looked up once and not at every step, 2 of 80 ms for a small network on a CPU."""

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        # The warm-up keeps a short training from averaging in its random start.
        super().__init__(network, decay=decay, use_warmup=True)
        self._averaged: list[tuple[Tensor, Tensor]] = []
        self._copied: list[tuple[Tensor, Tensor]] = []

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        """Move towards `model`, the same one at every step."""
        if not self._averaged:  # not earlier: to prepare a network for several processes may give it other tensors
            pairs = list(zip(self.module.state_dict().values(), model.state_dict().values(), strict=True))
            self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
            self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]
        averages, values = zip(*self._averaged, strict=True)
        self._foreach_lerp_(list(averages), list(values), weight=1.0 - decay)
        for mine, its in self._copied:
            mine.copy_(its)


@dataclass
class TrainingState:
    """What changes while training, and what a resume point must bring back.

    `network` is the bare one; `forward` is the same, wrapped for several devices or compiled. `losses` are those of the
    steps since the last row of `curves`, the rows of curves.csv; `best` is the highest watched metric and
    `best_weights` are the weights it was reached with; `running` is what a lesson remembers.
    `micro_batch` is the most images that go forward at once.
    """

    accelerator: Accelerator
    network: nn.Module
    forward: nn.Module
    optimizer: Any
    schedule: CosineLRScheduler
    ema: MovingAverage | None
    micro_batch: int
    section: str  # of the config, for messages
    step: int = 0
    seconds: float = 0.0
    best: float = float("-inf")
    best_weights: dict[str, Tensor] | None = None
    losses: list[Tensor] = field(default_factory=list)
    curves: list[dict[str, float | None]] = field(default_factory=list)
    running: dict[str, Tensor] = field(default_factory=dict)

    @property
    def predictor(self) -> nn.Module:
        """The network that predicts: the moving average where there is one."""
        return self.network if self.ema is None else self.ema.module


def build_training(
    network: nn.Module, train: OptimisationConfig, accelerator: Accelerator, *, batch_size: int | None = None
) -> TrainingState:
    """Put the network on its device and make what trains it, at step 0.

    `batch_size` is that of a step when it is not `train.batch_size` alone.
    """
    network = network.to(accelerator.device)
    if train.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = create_optimizer_v2(
        network,
        opt=train.optimizer,
        lr=train.lr,
        weight_decay=train.weight_decay,
        momentum=train.momentum,
        fused=accelerator.device.type == "cpu" or None,  # torch's own choice is as fast on a GPU, not on a CPU
    )
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=train.steps - train.num_warmup_steps,
        lr_min=train.lr * train.min_lr_fraction,
        warmup_t=train.num_warmup_steps,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    ema = MovingAverage(network, decay=train.ema_decay) if train.ema_decay else None
    forward, optimizer = accelerator.prepare(network, optimizer)
    if train.compile:
        forward = torch.compile(forward)
    own_share = (batch_size or train.batch_size) // accelerator.num_processes
    micro_batch = min(train.micro_batch, own_share) if isinstance(train.micro_batch, int) else own_share
    return TrainingState(accelerator, network, forward, optimizer, schedule, ema, micro_batch, train.section)


def take_step(
    state: TrainingState,
    train: OptimisationConfig,
    inputs: Tensor,
    targets: Tensor,
    loss_function: Any,
) -> Tensor:
    """One optimiser step, in micro-batches if asked; the mean loss of the batch, still on the device.

    The loss is `loss_function(outputs, targets)` of what the network gives, in float32.
    With `micro_batch: auto` a batch that memory has no room for is taken again in pieces of half the size, as if it had
    never been tried in larger ones. Raises OutOfMemory when that is not allowed or does not help.
    """
    state.schedule.step_update(state.step + 1)  # so that the first step is not wasted on a rate of zero
    gradients = _gradients_that_fit if train.micro_batch == "auto" else _gradients
    try:
        loss = gradients(state, inputs, targets, loss_function)
        if train.clip_norm:
            state.accelerator.clip_grad_norm_(state.network.parameters(), train.clip_norm)
        state.optimizer.step()
    except (RuntimeError, MemoryError) as error:
        with memory.told(*_size_and_remedy(state, train)):
            raise error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        name = train.section
        raise InputError(
            f"{name}.micro_batch {state.micro_batch} of {name}.batch_size {train.batch_size}: the network's batch "
            "normalisation cannot learn from one image at a time; set micro_batch to 2 or more, or to a size that "
            "leaves no single image"
        ) from error
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    if state.ema is not None:
        state.ema.update(state.network, step=state.step)
    return loss


def _gradients(state: TrainingState, inputs: Tensor, targets: Tensor, loss_function: Any) -> Tensor:
    """Add up the gradients of the batch in pieces of at most `state.micro_batch`; the mean loss."""
    total = torch.zeros((), device=inputs.device)
    num_pieces = -(-len(inputs) // state.micro_batch)  # of nearly equal size: one image alone has no batch statistics
    pieces = list(zip(inputs.tensor_split(num_pieces), targets.tensor_split(num_pieces), strict=True))
    for number, (piece, piece_targets) in enumerate(pieces, start=1):
        synchronise = number == len(pieces)
        with nullcontext() if synchronise else state.accelerator.no_sync(state.forward):
            with state.accelerator.autocast():
                outputs = state.forward(piece)
            loss = loss_function(outputs.float(), piece_targets) * (len(piece) / len(inputs))
            state.accelerator.backward(loss)
        total += loss.detach()
    return total


def _gradients_that_fit(state: TrainingState, inputs: Tensor, targets: Tensor, loss_function: Any) -> Tensor:
    """`_gradients` in pieces halved for as long as memory runs out; says so, and later steps begin with that size."""
    tried = state.micro_batch
    # What a failed attempt changes beside gradients: batch statistics, and the generators that dropout draws from.
    buffers = [buffer.clone() for buffer in state.network.buffers()]
    generators = _generator_states(inputs.device)
    while True:
        try:
            loss = _gradients(state, inputs, targets, loss_function)
            break
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error) or state.micro_batch == 1:
                raise
        # After the except clause and not in it, where the traceback still holds the tensors of the failed attempt.
        state.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in zip(state.network.buffers(), buffers, strict=True):
                buffer.copy_(before)
        _set_generator_states(inputs.device, generators)
        state.micro_batch //= 2
        if inputs.device.type == "cuda":
            torch.cuda.empty_cache()
    if state.micro_batch < tried:
        tell(
            f"[yellow]warning:[/] memory ran out at step {state.step + 1} with {tried} images per forward pass; from "
            f"here on it is {state.micro_batch} ({state.section}.micro_batch: auto), and a step is of as many images "
            "as before"
        )
    return loss


def _generator_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_generator_states(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def _size_and_remedy(state: TrainingState, train: OptimisationConfig) -> tuple[str, str]:
    name = train.section
    what = (
        f"step {state.step + 1} with {name}.batch_size {train.batch_size}, {state.micro_batch} images per forward pass"
    )
    smaller = "make data.image_size or the network smaller"
    if train.needs_whole_batch:
        return what, f"set {name}.batch_size to {train.batch_size // 2}, or {smaller}"
    if state.micro_batch == 1:
        return what, smaller
    auto = "" if state.accelerator.num_processes > 1 else " (auto finds how many fit)"
    return what, f"set {name}.micro_batch to {state.micro_batch // 2}{auto}, which keeps the batch, or {smaller}"


def is_finite(state: TrainingState) -> bool:
    """Whether every weight and statistic of the network and of its moving average is finite."""
    networks = [state.network] if state.ema is None else [state.network, state.ema.module]
    tensors = [tensor for network in networks for tensor in network.state_dict().values() if tensor.is_floating_point()]
    return bool(torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all())


def snapshot(state: TrainingState) -> Checkpoint:
    """Everything that `resume` brings back."""
    optimizer_tensors, optimizer_rest = flatten_optimizer(state.optimizer.state_dict())
    tensors = {"model": state.network.state_dict(), "optimizer": optimizer_tensors}
    if state.ema is not None:
        tensors["ema"] = state.ema.module.state_dict()
    if state.best_weights is not None:
        tensors["best"] = state.best_weights
    if state.running:
        tensors["running"] = state.running
    scaler = state.accelerator.scaler
    return Checkpoint(
        tensors,
        {
            "step": state.step,
            "micro_batch": state.micro_batch,
            "seconds": state.seconds,
            "best": None if state.best_weights is None else state.best,
            "losses": [float(loss) for loss in state.losses],
            "curves": state.curves,
            "optimizer": optimizer_rest,
            "scaler": None if scaler is None else scaler.state_dict(),
        },
    )


def resume(state: TrainingState, folder: Path) -> list[str]:
    """Bring back the newest verified resume point, if any; what was wrong with newer ones.

    Raises InputError when it does not fit the network.
    """
    checkpoint, problems = load_latest(folder)
    if checkpoint is None:
        return problems
    tensors, facts = checkpoint.tensors, checkpoint.state
    try:
        state.network.load_state_dict(tensors["model"])
    except RuntimeError as error:  # its settings are the same, so the code that builds it is another
        raise InputError(
            f"{folder}: the resume point of step {facts['step']} is of another network "
            f"({str(error).splitlines()[-1].strip()}), as after an update of timm or rarefind; delete that folder "
            "to begin this training again"
        ) from None
    if state.ema is not None:
        state.ema.module.load_state_dict(tensors["ema"])
    state.optimizer.load_state_dict(unflatten_optimizer(tensors["optimizer"], facts["optimizer"]))
    _match_layout(state.optimizer)
    if facts["scaler"] is not None and state.accelerator.scaler is not None:
        state.accelerator.scaler.load_state_dict(facts["scaler"])
    if facts["best"] is not None:
        device = state.accelerator.device
        state.best, state.best_weights = facts["best"], {k: v.to(device) for k, v in tensors["best"].items()}
    state.running = {key: value.to(state.accelerator.device) for key, value in tensors.get("running", {}).items()}
    state.step, state.seconds, state.curves = facts["step"], facts["seconds"], facts["curves"]
    state.micro_batch = facts["micro_batch"]  # under `auto` what was found; else as set
    state.losses = [torch.tensor(loss, device=state.accelerator.device) for loss in facts["losses"]]
    return problems


def _match_layout(optimizer: Any) -> None:
    """Give restored moments the memory layout of their parameters, so that the same kernels run as before."""
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
