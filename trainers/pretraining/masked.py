"""Masked images: hide patches and reconstruct them by a U-Net style decoder whose encoder is the backbone."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.errors import InputError
from trainers.pretraining.method import Method

PATCHES_PER_SIDE = 7  # unless the size of a patch is set


class Masked(Method):
    """Mean squared error on the hidden patches of one view (He et al. 2022; as a U-Net: Ronneberger et al. 2015)."""

    num_views = 1

    def __init__(
        self, encoder: nn.Module, *, channels: int, image_size: int, share: float, patch: int | None, width: int
    ) -> None:
        super().__init__(encoder, head=None)
        self.share = share
        self.patch = max(1, image_size // PATCHES_PER_SIDE) if patch is None else patch
        if self.patch > image_size // 2:
            raise InputError(
                f"pretrain.masked.patch {self.patch}: expected at most half of data.image_size {image_size}, so that "
                "there is something to reconstruct from"
            )
        with torch.no_grad():
            maps = _feature_maps(encoder.eval(), torch.zeros(1, channels, image_size, image_size))
        encoder.train()
        self.decoder = Decoder([feature_map.shape[1] for feature_map in maps], width=width, channels=channels)

    def forward(self, views: Tensor) -> Tensor:
        images = views[:, 0]
        hidden = random_patches(images, share=self.share, patch=self.patch)  # (batch, 1, height, width)
        drawn = self.decoder(_feature_maps(self.encoder, images * ~hidden), size=images.shape[2:])
        # The error and not the drawing: only here the hidden pixels are known.
        errors = (drawn.float() - images).square().mean(dim=1, keepdim=True) * hidden
        return errors.sum(dim=(1, 2, 3)) / hidden.sum(dim=(1, 2, 3))  # (batch,)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean()


class Decoder(nn.Module):
    """From the deepest of the feature maps up: twice the size, the skip connection beside it, a convolution."""

    def __init__(self, map_channels: list[int], *, width: int, channels: int) -> None:
        super().__init__()
        # Deepest first; a decoder that is wider than the maps it reads would do the work of the backbone.
        widths = [min(width, number) for number in reversed(map_channels)]
        self.entrance = nn.Conv2d(map_channels[-1], widths[0], 1)
        skips = list(reversed(map_channels))[1:]
        self.blocks = nn.ModuleList(
            _convolution(before + skip, after) for (before, after), skip in zip(pairwise(widths), skips, strict=True)
        )
        self.exit = nn.Sequential(_convolution(widths[-1], widths[-1]), nn.Conv2d(widths[-1], channels, 1))

    def forward(self, maps: list[Tensor], size: torch.Size) -> Tensor:
        """Images (batch, channels, *size) from feature maps in the order of the backbone, finest first."""
        x = self.entrance(maps[-1])
        for block, skip in zip(self.blocks, reversed(maps[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, size=skip.shape[2:], mode="nearest"), skip], dim=1))
        drawn: Tensor = self.exit(F.interpolate(x, size=size, mode="nearest"))
        return drawn


def random_patches(images: Tensor, *, share: float, patch: int) -> Tensor:
    """Which pixels are hidden, bool (batch, 1, height, width): the same number of patches in every image.

    At least one patch is hidden and one is not. From torch's global generator.
    """
    rows, columns = -(-images.shape[2] // patch), -(-images.shape[3] // patch)
    num_hidden = min(max(1, round(share * rows * columns)), rows * columns - 1)
    order = torch.rand(len(images), rows * columns, device=images.device).argsort(dim=1)
    hidden = (order < num_hidden).view(-1, 1, rows, columns)
    hidden = hidden.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
    return hidden[:, :, : images.shape[2], : images.shape[3]]


def _feature_maps(encoder: nn.Module, images: Tensor) -> list[Tensor]:
    """What the backbone's stages give, one map per size, finest first; the last is what it pools."""
    stages: Callable[[Tensor], tuple[Tensor, list[Tensor]]] | None = getattr(encoder, "forward_intermediates", None)
    if stages is None:
        raise InputError(
            f"pretrain.method masked needs the feature maps of the backbone's stages, which timm does not offer for "
            f"{type(encoder).__name__}; choose another backbone or method"
        )
    last, maps = stages(images)
    by_size = {feature_map.shape[2]: feature_map for feature_map in [*maps, last]}  # of one size the deepest
    return [by_size[size] for size in sorted(by_size, reverse=True)]


def _convolution(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )
