"""Looks at the embeddings while a backbone learns: without labels, and with an alarm when they collapse."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from augment.policies import Policy
from configs.errors import InputError
from trainers.backbones import to_input
from trainers.loader import Pixels
from trainers.pretraining.method import Method
from trainers.pretraining.spread import alignment, effective_rank, spread, uniformity

Figures = dict[str, float | None]

NUM_WATCHED = 512  # images
UNSEEN_DRAWS = 2**40  # draws from here on do not come in any training
MIN_RANK = 1.5  # two clusters of images have 1
GROWTH = 1.1  # from one look to the next; slower is no recovery


class Collapse(InputError):
    """All images came to look alike."""


class Watch:
    """Looks at the embeddings of a few images, always the same ones and the same views of them."""

    FIGURES = ("spread", "effective_rank", "alignment", "uniformity", "head_spread")

    def __init__(
        self, pixels: Pixels, rows: np.ndarray, policy: Policy, *, mean: Tensor, std: Tensor, seed: int
    ) -> None:
        chosen = np.random.default_rng(seed).permutation(len(rows))[:NUM_WATCHED]
        plain = [pixels[int(row)] for row in rows[chosen]]
        varied = [
            [
                policy(image, index=int(index), draw=UNSEEN_DRAWS + view)
                for index, image in zip(chosen, plain, strict=True)
            ]
            for view in range(2)
        ]
        self._mean, self._std = mean, std
        self._images = [_batch(images) for images in (plain, *varied)]

    @torch.inference_mode()
    def look(self, method: Method) -> Figures:
        """The figures of the backbone's embeddings and of what its head makes of them; the mode is left as it was."""
        was_training = method.training
        method.eval()
        (plain, vectors), (first, _), (second, _) = (self._embed(method, images) for images in self._images)
        method.train(was_training)
        return {
            "spread": spread(plain),
            "effective_rank": effective_rank(plain),
            "alignment": alignment(first, second),
            "uniformity": uniformity(plain),
            "head_spread": None if vectors is None else method.head_spread(vectors),
        }

    def _embed(self, method: Method, images: Tensor) -> tuple[Tensor, Tensor | None]:
        batches = [
            method.encoder(to_input(batch.to(self._mean.device), self._mean, self._std)) for batch in images.split(128)
        ]
        vectors = None if method.head is None else torch.cat([method.head(batch) for batch in batches]).float().cpu()
        return torch.cat(batches).float().cpu(), vectors

    @staticmethod
    def check(before: Figures, now: Figures, step: int, *, min_spread: float) -> None:
        """Raise Collapse when what is compared hardly differs, or along one line only, and is not about to recover.

        An untrained network sees little difference either, so one look alone cannot tell.
        """
        limits = {"spread": min_spread, "head_spread": min_spread, "effective_rank": MIN_RANK}
        for name, limit in limits.items():
            was, value = before[name], now[name]
            if was is not None and value is not None and value < limit and value <= GROWTH * was:
                raise Collapse(
                    f"pretraining collapsed: at step {step} all images look nearly alike to the network ({name} "
                    f"{was:.4g}, then {value:.4g}, where less than {limit:g} is a collapse); lower pretrain.lr, raise "
                    "pretrain.batch_size or choose another pretrain.method (in the first hundred steps a network may "
                    "not have begun to learn: then raise pretrain.steps)"
                )


def _batch(images: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
