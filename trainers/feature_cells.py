"""Features that tell places apart: means of a network's feature maps over the cells of a grid, from chosen stages.

A network's own features are means over the whole image, made for photographs that show their object anywhere. Where
images are centred, as clothes, specimens or lesions are, what is seen *where* is most of what there is to know, and
stages before the last, which know less of the classes of ImageNet, describe other images better: configs/LOG.md.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.errors import InputError


class CellFeatures(nn.Module):
    """Images (batch, channels, height, width) -> (batch, grid * grid * the stages' channels).

    Stage by stage, in each its channels, in each its cells, row by row. Cells are those of
    `torch.nn.functional.adaptive_avg_pool2d`: where maps cannot be cut evenly they overlap.
    """

    def __init__(self, model: nn.Module, *, stages: Sequence[int], grid: int) -> None:
        super().__init__()
        self.model, self.stages, self.grid = model, sorted(stages), grid

    def forward(self, images: Tensor) -> Tensor:
        """Raises InputError where a stage's map has fewer places than the grid has cells."""
        maps = self.model.forward_intermediates(  # type: ignore[operator]
            images, indices=[stage - 1 for stage in self.stages], intermediates_only=True, output_fmt="NCHW",
            stop_early=True,
        )  # fmt: skip
        for stage, features in zip(self.stages, maps, strict=True):
            height, width = features.shape[-2:]
            if min(height, width) < self.grid:
                raise InputError(
                    f"stage {stage} has a map of {height} x {width} places for images of {images.shape[-2]} x "
                    f"{images.shape[-1]} pixels, fewer than the {self.grid} x {self.grid} cells of `grid`; choose an "
                    "earlier stage, a smaller grid or a larger image_size"
                )
        return torch.cat([F.adaptive_avg_pool2d(features, self.grid).flatten(1) for features in maps], dim=1)


def with_cells(model: nn.Module, *, stages: Sequence[int], grid: int) -> nn.Module:
    """The model itself for its own pooled features (no stages, a grid of 1), else with the features of cells.

    `stages` count from 1, as timm's `feature_info` lists them; none is the last. Raises InputError for a stage that
    the model does not have, and for a model that does not show its stages.
    """
    if not stages and grid == 1:
        return model
    if not hasattr(model, "forward_intermediates"):
        raise InputError("timm shows no stages of this network; leave `stages` and `grid` out, or choose another one")
    num_stages = len(model.feature_info)  # type: ignore[arg-type]
    unknown = [stage for stage in stages if stage > num_stages]
    if unknown:
        raise InputError(f"there is no stage {unknown[0]}; expected 1 to {num_stages}")
    return CellFeatures(model, stages=stages or [num_stages], grid=grid)
