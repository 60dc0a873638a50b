"""Semi-supervised training: a network's moving average (weak views) teaches it (strong views), made for rare positives.

Tarvainen and Valpola 2017 (mean teacher) with the weak and strong views of FixMatch (Sohn et al. 2020). What is ours is
where targets hold: the network learns from balanced batches, and a teacher that is taken at its word would flood the
pool with false positives, so its opinion is moved to the pool's class shares before it becomes a target, and the
network's logits are moved there before they are compared with one.

Options: hard targets with thresholds that adapt (FreeMatch), distribution alignment (ReMixMatch), a second, balanced
head (ABC; Lee, Shin and Kim 2021), and one that tells clusters of negatives apart (trainers.semi.background).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from augment.policies import Policy
from trainers.fold_task import FoldTask
from trainers.lessons import check_not_mixed, squeezed
from trainers.loader import Pixels, TrainingImages, stacked
from trainers.losses import build_sample_loss, cross_entropy
from trainers.pool_batches import LabelledAndPool, drawn_evenly, shift_to_pool
from trainers.prior import log_odds_shift
from trainers.progress import tell
from trainers.provenance import derive_seed
from trainers.samplers import BatchSampler
from trainers.semi.background import NO_CLUSTER
from trainers.semi.columns import OutputColumns, StepColumns, narrowed, widen_classifier
from trainers.semi.running import Running, alarm_text
from trainers.semi.targets import (
    Targets,
    adaptive_thresholds,
    aligned,
    as_outputs,
    balanced_weights,
    class_probabilities,
    hard_targets,
    ramp,
)
from trainers.training_state import TrainingState

UNKNOWN_PRIOR = (
    "semi.prevalence estimate: the pool's class shares could not be told from the scores, or too few images were seen, "
    "so those of the labels were used"
)


class WeakAndStrong(TrainingImages):
    """Strong views of all rows of a batch, then weak views of those from position `num_labelled` on, the pool's."""

    def __init__(
        self, pixels: Pixels, rows: np.ndarray, targets: Tensor, *, strong: Policy, weak: Policy, num_labelled: int
    ) -> None:
        super().__init__(pixels, rows, targets, strong)
        self.weak, self.num_labelled = weak, num_labelled

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        strong, weak = [], []
        for index, draw in items:
            image = self.pixels[int(self.rows[index])]  # decoded once
            strong.append(self.policy(image, index=index, draw=draw))
            if index >= self.num_labelled:
                weak.append(self.weak(image, index=index, draw=draw))
        return stacked(strong + weak), self.targets[[index for index, _ in items]]


class TeacherAndPool:
    """Labelled rows, and rows of the pool whose targets the network's own average gives, step by step.

    The loader's targets are [own target | 1 for a pool row | cluster]; `batch` makes StepColumns of them. `network` is
    given the further outputs that the options need.
    """

    def __init__(
        self,
        task: FoldTask,
        network: nn.Module,
        sampler: BatchSampler,
        targets: Tensor,
        shift: np.ndarray,
        *,
        strong: Policy,
        weak: Policy,
        clusters: np.ndarray | None,
    ) -> None:
        semi, data = task.semi, task.data
        assert semi is not None
        check_not_mixed(task)
        self.config, self.description = semi.config, task.description
        self.ramp_steps = semi.config.ramp_up * task.train.steps
        seed = derive_seed(task.seed, "pool")
        of_pool = drawn_evenly(len(semi.rows), batch_size=semi.config.batch_size, seed=seed)
        self.sampler = LabelledAndPool(sampler, of_pool, num_labelled=len(data.train_rows), seed=seed)
        self.images = WeakAndStrong(
            task.pixels,
            np.concatenate([data.train_rows, semi.rows]),
            _loader_targets(targets, len(semi.rows), clusters),
            strong=strong,
            weak=weak,
            num_labelled=len(data.train_rows),
        )
        self.outputs = OutputColumns.build(
            data.num_outputs,
            balanced_head=semi.config.balanced_head,
            num_clusters=semi.config.background_classes,
        )
        self.step_columns = StepColumns(data.num_outputs)
        extra = self.outputs.num_extra
        self._classifier = widen_classifier(network, extra, task.model.backbone) if extra else None
        self._class_counts, self._class_shares = data.class_counts, sampler.class_shares
        self._own_shift = shift
        balanced = semi.config.balanced_head
        self.columns = self.outputs.balanced if balanced else self.outputs.own
        self.shift = _shift_of_even_classes(data.class_counts) if balanced else shift
        self._of_labelled = build_sample_loss(
            task.train.loss, class_counts=data.class_counts.tolist(), class_shares=sampler.class_shares.tolist()
        )

    def batch(self, state: TrainingState, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The strong views, and targets in which what the teacher says of the weak ones has been filled in."""
        running = self._running = self._running_of(state, inputs.device)
        total, columns, num_outputs = len(targets), self.step_columns, self.outputs.own.stop
        known, is_pool = targets[:, :num_outputs], targets[:, num_outputs] == 1
        opinion = self._opinion(state, inputs[total:])
        own = self._own_targets(opinion[:, self.outputs.own], running, state.step)
        # The mean over the batch is then the mean labelled loss and the weighted mean loss of the pool, for any cut.
        per_labelled = total / (~is_pool).sum()
        per_pool = self.config.loss_weight * ramp(state.step, self.ramp_steps) * total / is_pool.sum()
        packed = columns.empty(total, targets)
        packed[:, columns.target] = known
        packed[is_pool, columns.target] = as_outputs(own.values, num_outputs)
        packed[~is_pool, columns.labelled] = per_labelled
        packed[is_pool, columns.pool] = per_pool * own.weights
        packed[is_pool, columns.selected] = own.weights
        packed[:, columns.is_pool] = is_pool.float()
        packed[:, columns.cluster] = targets[:, -1]
        if self.config.balanced_head:
            taught = self._balanced_targets(opinion[:, self.outputs.balanced], running)
            shares = torch.from_numpy(self._class_shares).to(known)
            packed[:, columns.balanced_target] = known
            packed[is_pool, columns.balanced_target] = as_outputs(taught.values, num_outputs)
            packed[~is_pool, columns.balanced] = per_labelled * balanced_weights(_classes_of(known[~is_pool]), shares)
            packed[is_pool, columns.balanced] = per_pool * taught.weights
        return inputs[:total], packed

    @torch.no_grad()
    def _opinion(self, state: TrainingState, weak: Tensor) -> Tensor:
        """What the moving average gives for weak views, float32 (rows, outputs)."""
        assert state.ema is not None, "checked with the config"
        teacher = state.predictor.eval()
        with state.accelerator.autocast():
            pieces = [teacher(piece) for piece in weak.split(max(256, state.micro_batch))]
        return torch.cat(pieces).float()

    def _own_targets(self, opinion: Tensor, running: Running, step: int) -> Targets:
        if self.config.prevalence == "estimate":
            running.estimate_prior(class_probabilities(opinion - torch.from_numpy(self._own_shift).to(opinion)), step)
        prior = running.prior.cpu().double().numpy()
        self._to_pool = torch.from_numpy(shift_to_pool(self._own_shift, self._class_counts, prior / prior.sum())).to(
            opinion
        )
        probabilities = class_probabilities(opinion - self._to_pool)
        running.follow(probabilities)
        if self.config.align:
            probabilities = aligned(probabilities, running.mean, running.prior)
        if self.config.targets == "soft":
            return Targets(probabilities, torch.ones_like(probabilities[:, 0]))
        return hard_targets(
            probabilities,
            torch.full_like(running.prior, self.config.threshold)
            if self.config.thresholds == "fixed"
            else adaptive_thresholds(running.confidence, running.mean, running.prior),
        )

    def _balanced_targets(self, opinion: Tensor, running: Running) -> Targets:
        taught = class_probabilities(opinion)
        running.follow_balanced(taught)
        weights = torch.ones_like(taught[:, 0])
        if self.config.targets == "hard":
            adapted = float(running.values["balanced_confidence"])
            least = self.config.threshold if self.config.thresholds == "fixed" else adapted
            taught, weights = hard_targets(taught, torch.full_like(running.prior, least))
        return Targets(taught, weights * balanced_weights(taught, running.prior))

    def loss(self, outputs: Tensor, packed: Tensor) -> Tensor:
        columns = self.step_columns
        own, target = outputs[:, self.outputs.own], squeezed(packed[:, columns.target])
        at_pool = own - self._to_pool
        losses = packed[:, columns.labelled] * self._of_labelled(squeezed(own), target)
        losses = losses + packed[:, columns.pool] * cross_entropy(squeezed(at_pool), target)
        if self.config.balanced_head:
            head = squeezed(outputs[:, self.outputs.balanced])
            of_head = cross_entropy(head, squeezed(packed[:, columns.balanced_target]))
            losses = losses + packed[:, columns.balanced] * of_head
        if self.config.background_classes:
            cluster = packed[:, columns.cluster].long()
            apart = F.cross_entropy(
                outputs[:, self.outputs.clusters], cluster, ignore_index=NO_CLUSTER, reduction="none"
            )
            losses = losses + self.config.background_weight * apart
        self._count(at_pool.detach(), packed)
        return losses.mean()

    def _count(self, at_pool: Tensor, packed: Tensor) -> None:
        columns = self.step_columns
        rows = packed[:, columns.is_pool] == 1
        taught = _classes_of(packed[rows, columns.target])
        agrees = class_probabilities(at_pool[rows]).argmax(dim=1) == taught.argmax(dim=1)
        self._running.count(taught, packed[rows, columns.selected], agrees)

    def take_figures(self, state: TrainingState) -> dict[str, float | None]:
        """Positive rate, mask rate and agreement since they were taken last; warns when the first is not credible."""
        running = self._running
        if state.step <= self.ramp_steps:
            running.forget_watch()
        else:
            alarm = running.watch(torch.from_numpy(self._class_counts), self.config.prevalence, state.step)
            if alarm is not None:
                tell(f"[yellow]warning:[/] {self.description}: {alarm}")
        return running.take_figures()

    def kept(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return weights if self._classifier is None else narrowed(weights, self._classifier, self.columns)

    def facts(self, state: TrainingState) -> dict[str, Any]:
        alarm = state.running.get("alarm")
        is_unknown = self.config.prevalence == "estimate" and not state.running["estimates"]
        return {
            "alarm": None if alarm is None else alarm_text(alarm.tolist()),
            "unknown_prior": UNKNOWN_PRIOR if is_unknown else None,
            "pool_prior": state.running["prior"].tolist(),
        }

    def _running_of(self, state: TrainingState, device: torch.device) -> Running:
        counts = torch.from_numpy(self._class_counts).float().to(device)
        return Running(state.running, labelled=counts / counts.sum(), momentum=self.config.momentum)


def _loader_targets(labelled: Tensor, num_pool: int, clusters: np.ndarray | None) -> Tensor:
    """(rows, outputs + 2): own targets, whether a row is of the pool, its cluster."""
    known = labelled.reshape(len(labelled), -1)
    own = torch.cat([known, known.new_zeros(num_pool, known.shape[1])])
    is_pool = torch.cat([torch.zeros(len(labelled)), torch.ones(num_pool)])
    cluster = torch.full((len(own),), NO_CLUSTER) if clusters is None else torch.from_numpy(clusters)
    return torch.cat([own, is_pool[:, None].to(own), cluster[:, None].to(own)], dim=1)


def _shift_of_even_classes(class_counts: np.ndarray) -> np.ndarray:
    """What a head adds to its logits that sees every class equally often, of labels and of the pool."""
    ones = np.ones(len(class_counts))
    return log_odds_shift(
        class_counts=class_counts, class_shares=ones / len(ones), class_weights=ones, logit_adjustment=0.0
    )


def _classes_of(targets: Tensor) -> Tensor:
    """(rows, classes) of targets (rows, outputs)."""
    return torch.cat([1 - targets, targets], dim=1) if targets.shape[1] == 1 else targets
