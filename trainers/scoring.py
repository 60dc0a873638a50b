"""Score table rows with a network: test-time views, mixed precision, logits in float32, the order kept."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from augment.views import VIEWS
from configs.schema import ViewConfig
from trainers import memory
from trainers.backbones import build_backbone, to_input
from trainers.checkpoints import read_final
from trainers.loader import Pixels, ScoringImages, naming_lost_workers, scoring_loader
from trainers.progress import progress_bar

PLAIN_VIEW = (ViewConfig(),)


@dataclass(frozen=True)
class Scorer:
    """A network in evaluation mode with what its inputs need. `mean` and `std` are (channels, 1, 1) on its device."""

    model: nn.Module
    mean: Tensor
    std: Tensor
    log_odds_shift: np.ndarray
    facts: dict[str, Any]


def load_scorer(folder: Path, *, device: torch.device | str) -> Scorer:
    """The trained network of a `final/` folder, verified against its manifest."""
    checkpoint = read_final(folder)
    facts = checkpoint.state
    backbone = build_backbone(
        facts["backbone"], channels=facts["channels"], num_outputs=facts["num_outputs"], options=facts["options"]
    )
    backbone.model.load_state_dict(checkpoint.tensors["model"])
    model = backbone.model.to(device).eval()
    if facts["channels_last"]:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean, std = (torch.tensor(facts[key], device=device).view(-1, 1, 1) for key in ("mean", "std"))
    return Scorer(model, mean, std, np.asarray(facts["log_odds_shift"], dtype=np.float64), facts)


def score_rows(
    model: nn.Module,
    pixels: Pixels,
    rows: np.ndarray,
    *,
    views: Sequence[ViewConfig] = PLAIN_VIEW,
    **settings: Any,
) -> np.ndarray:
    """Logits of the given table rows, float64 (rows, outputs): the weighted mean over the views.

    `settings` and errors are those of `score_views`.
    """
    return mean_of_views(score_views(model, pixels, rows, views=views, **settings), views)


def mean_of_views(logits: np.ndarray, views: Sequence[ViewConfig]) -> np.ndarray:
    """The weighted mean (rows, outputs) of logits (rows, views, outputs)."""
    if len(views) == 1:
        return logits[:, 0]
    weights = np.array([view.weight for view in views])
    return np.tensordot(logits, weights / weights.sum(), axes=([1], [0]))


@torch.inference_mode()
def score_views(
    model: nn.Module,
    pixels: Pixels,
    rows: np.ndarray,
    *,
    mean: Tensor,
    std: Tensor,
    batch_size: int,
    views: Sequence[ViewConfig] = PLAIN_VIEW,
    workers: int = 0,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    description: str = "",
    size_setting: str = "predict.batch_size",
    after_batch: Callable[[], object] | None = None,
    parts: Sequence[int] = (),
) -> np.ndarray:
    """Logits of each test-time view of the given table rows, float64 (rows, views, outputs). Leaves the mode as is.

    `description` names the progress bar; empty = none. `after_batch` is called between batches and may raise. `parts`
    are those of `trainers.loader.scoring_loader`. Raises
    ValueError when there are no rows, OutOfMemory naming `size_setting`, InputError when a loader process dies.
    """
    if not len(rows):
        raise ValueError("score_views: there are no rows to score")
    device = mean.device
    loader = scoring_loader(
        ScoringImages(pixels, rows), batch_size=batch_size, workers=workers, pin=device.type == "cuda", parts=parts
    )
    batches: list[Tensor] = []
    was_training = model.training
    model.eval()
    try:
        with (
            progress_bar(description, len(rows), shown=bool(description)) as bar,
            naming_lost_workers(workers),
            memory.told(f"scoring {batch_size} images at a time", f"set {size_setting} to {max(1, batch_size // 2)}"),
        ):
            for images in loader:
                inputs = to_input(images.to(device, non_blocking=True), mean, std)
                with autocast():
                    logits = torch.stack([model(VIEWS[view.view](inputs)).float() for view in views], dim=1)
                batches.append(logits.cpu())
                bar.advance(len(images))
                if after_batch is not None:
                    after_batch()
    finally:
        model.train(was_training)
    return torch.cat(batches).double().numpy()
