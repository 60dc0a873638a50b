"""Images that are there twice: the same bytes, the same pixels, or a picture resized, re-encoded, cropped, mirrored.

Candidates for the last are the nearest neighbours of small grey thumbnails, of their middles and of their mirror images
(and of network embeddings, where there are some); each candidate is then laid over its partner (`trainers.alignment`),
and a rule on what differs decides. Copies in other brightness or colours, turned or cropped by much more than a tenth
are not found, and plain images (a sky, a blank page) are not compared.

The search takes the time of six exact neighbour searches in 144 dimensions (quadratic in the images up to 200,000;
above that approximate, where faiss is installed), the rest grows with the images: a kilobyte and some candidates each.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist
from torch import Tensor

from trainers.alignment import blurred, overlay, window_of
from trainers.folds import joined_groups
from trainers.knn import nearest
from trainers.progress import progress_bar

THUMBNAIL_SIDE = 32  # pixels; of smaller images their own size
DESCRIPTOR_SIDE = 12
SCALES = (1.0, 0.95, 0.9)  # middles of an image, among which a cropped copy finds its like
VIEWS = tuple(product(SCALES, (False, True)))  # (scale, mirrored) of the image that asks
NEIGHBOURS = 4  # of each view
CANDIDATES = 8  # of each image, over all views
MAX_DISTANCE = 14.0  # grey levels, root mean square between the descriptors of candidates
MIN_CONTRAST = 3.0  # grey levels, standard deviation; a thumbnail with less is plain
CHUNK = 256  # pairs laid over each other at a time, few enough for the processor's cache
CHUNK_IMAGES = 4096
FEW_PAIRS = 100_000  # distances at a time

# Log-odds that a candidate is a copy: logistic regression on Fashion-MNIST garments and patches of photographs with
# planted copies, `rarefind bench duplicates --fit`. Asked is more than even odds, because real pairs are rarer there.
INTERCEPT = -17.17
WEIGHTS = {
    "log_difference": -2.03,
    "log_smooth_difference": -9.88,
    "log_contrast": 4.64,
    "log_detail_lost": -0.59,
    "log_stretch": -5.67,
}
MIN_LOG_ODDS = 0.5


@dataclass(frozen=True)
class Looks:
    """What the search needs of images: grey thumbnails uint8 (num_images, side, side), and a digest of all pixels."""

    thumbnails: np.ndarray
    digests: list[str]


@dataclass(frozen=True)
class Compared:
    """Candidates laid over each other. `left` < `right` are positions of images, the rest is float32 (num_pairs,)."""

    left: np.ndarray
    right: np.ndarray
    mirrored: np.ndarray
    correlation: np.ndarray
    difference: np.ndarray
    measures: np.ndarray  # (num_pairs, measures of WEIGHTS)

    def chosen(self, rows: np.ndarray) -> "Compared":
        """Some of the pairs, by position or by truth."""
        return Compared(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def with_others(self, others: "Compared") -> "Compared":
        """These pairs, and those of the others that are not among them, in order."""
        both = Compared(
            *(np.concatenate([getattr(own, n) for own in (self, others)]) for n in self.__dataclass_fields__)
        )
        first = np.unique(np.stack([both.left, both.right]), axis=1, return_index=True)[1]
        return both.chosen(first)

    @property
    def log_odds(self) -> np.ndarray:
        """How sure it is that each pair shows the same picture."""
        return INTERCEPT + self.measures @ np.array(list(WEIGHTS.values()))


def look_at(pixels: Callable[[int], np.ndarray], rows: Sequence[int] | np.ndarray) -> Looks:
    """Thumbnails and digests of images that `pixels` gives, uint8 (height, width, channels), by their rows."""
    thumbnails, digests = [], []
    with progress_bar("Looking at images", len(rows)) as bar:
        for row in rows:
            image = np.ascontiguousarray(pixels(int(row)))
            thumbnails.append(thumbnail(image))
            digests.append(hashlib.sha256(image.data).hexdigest())
            bar.advance()
    return Looks(np.stack(thumbnails) if thumbnails else np.zeros((0, 1, 1), dtype=np.uint8), digests)


def thumbnail(image: np.ndarray) -> np.ndarray:
    """A grey uint8 (side, side) of an image uint8 (height, width, channels)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.shape[-1] == 3 else image[..., 0]
    side = min(THUMBNAIL_SIDE, *grey.shape)
    return np.asarray(cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA))


def identical_sets(hashes: Sequence[str], looks: Looks) -> np.ndarray:
    """Number of the set of each image (int64): images with the same bytes or the same pixels share it."""
    return joined_groups(looks.digests, hashes)


def near_pairs(thumbnails: np.ndarray, *, embeddings: Sequence[np.ndarray] = ()) -> Compared:
    """The pairs of different images that show the same picture. `embeddings` (num_images, dim) give more candidates."""
    compared = compare(thumbnails, embeddings=embeddings)
    return compared.chosen(compared.log_odds >= MIN_LOG_ODDS)


def duplicate_sets(hashes: Sequence[str], looks: Looks) -> np.ndarray:
    """Number of the set of each image (int64): identical images and near-duplicates, also through others, share it."""
    identical = identical_sets(hashes, looks)
    firsts = np.unique(identical, return_index=True)[1]
    pairs = near_pairs(looks.thumbnails[firsts])
    return linked_sets(identical, identical[firsts[pairs.left]], identical[firsts[pairs.right]])


def linked_sets(sets: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`sets` (num_images,) after the sets left[i] and right[i] have become one, for all i; numbered anew from 0."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = int(sets.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(size, size))
    return pd.factorize(connected_components(graph, directed=False)[1][sets])[0].astype(np.int64)


def is_plain(thumbnails: np.ndarray) -> np.ndarray:
    """Which images show too little to be compared, bool (num_images,)."""
    plain = np.zeros(len(thumbnails), dtype=bool)
    for start in range(0, len(thumbnails), CHUNK_IMAGES):
        images = blurred(_as_floats(thumbnails[start : start + CHUNK_IMAGES]), 1.0)
        plain[start : start + CHUNK_IMAGES] = (images.std(dim=(1, 2)) < MIN_CONTRAST).numpy()
    return plain


@torch.inference_mode()
def compare(thumbnails: np.ndarray, *, embeddings: Sequence[np.ndarray] = ()) -> Compared:
    """All candidate pairs of images that are not plain, laid over each other; the rule has not been asked."""
    rows = np.flatnonzero(~is_plain(thumbnails))
    return _compared(thumbnails, rows, _candidates(thumbnails[rows], [features[rows] for features in embeddings]))


@torch.inference_mode()
def near_pairs_between(thumbnails: np.ndarray, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Compared:
    """The pairs that show the same picture, of each image of a part and the one most like it of the other part.

    `parts` are two lists of rows each. A picture with many copies has its nearest neighbours among these; this finds
    whether one of a certain part is.
    """
    shown = ~is_plain(thumbnails)
    seen = [(one[shown[one]], two[shown[two]]) for one, two in parts]
    seen = [(one, two) for one, two in seen if len(one) and len(two)]
    if not seen:
        return _compared(thumbnails, np.zeros(0, dtype=np.int64), _no_pairs())
    rows = np.unique(np.concatenate([own for sides in seen for own in sides]))
    at_rest = _descriptors(thumbnails[rows], 1.0, mirrored=False)
    found = []
    for view, (scale, mirrored) in enumerate(VIEWS):
        moving = at_rest if view == 0 else _descriptors(thumbnails[rows], scale, mirrored=mirrored)
        for asking, other in (sides for one, two in seen for sides in ((one, two), (two, one))):
            own, theirs = np.searchsorted(rows, asking), np.searchsorted(rows, other)
            if len(own) * len(theirs) <= FEW_PAIRS:  # of which there may be thousands of parts
                distances = cdist(moving[own], at_rest[theirs])
                nearby, distance = distances.argmin(axis=1), distances.min(axis=1)
            else:
                neighbours = nearest(at_rest[theirs], 1, metric="euclidean", queries=moving[own])
                nearby, distance = neighbours.index[:, 0], neighbours.distance[:, 0]
            found.append(np.stack([own, theirs[nearby], np.full(len(own), view), distance / DESCRIPTOR_SIDE]))
    pairs = pd.DataFrame(np.concatenate(found, axis=1).T, columns=["asking", "other", "view", "distance"])
    pairs = _each_once(pairs.astype({"asking": np.int64, "other": np.int64, "view": np.int64}))
    compared = _compared(thumbnails, rows, pairs.reset_index(drop=True))
    return compared.chosen(compared.log_odds >= MIN_LOG_ODDS)


def _compared(thumbnails: np.ndarray, rows: np.ndarray, found: pd.DataFrame) -> Compared:
    """Candidates, by their positions among `rows`, laid over each other."""
    measured = []
    with progress_bar("Comparing pairs", len(found)) as bar:
        for start in range(0, len(found), CHUNK):
            part = found.iloc[start : start + CHUNK]
            measured.append(_laid_over(thumbnails[rows], part))
            bar.advance(len(part))
    asking, other = rows[found["asking"].to_numpy()], rows[found["other"].to_numpy()]
    values = np.concatenate(measured) if measured else np.zeros((0, 2 + len(WEIGHTS)), dtype=np.float32)
    views = np.array([mirrored for _, mirrored in VIEWS])
    order = np.lexsort([np.maximum(asking, other), np.minimum(asking, other)])
    return Compared(
        left=np.minimum(asking, other),
        right=np.maximum(asking, other),
        mirrored=views[found["view"].to_numpy()],
        correlation=values[:, 0],
        difference=values[:, 1],
        measures=values[:, 2:],
    ).chosen(order)


def _candidates(thumbnails: np.ndarray, embeddings: Sequence[np.ndarray]) -> pd.DataFrame:
    """Pairs worth a closer look, each once: `asking` and `other`, the `view` of the first, and their `distance`."""
    num = len(thumbnails)
    k = min(NEIGHBOURS + 1, num)  # among them often the image itself
    if num < 2:
        return _no_pairs()
    points = _descriptors(thumbnails, 1.0, mirrored=False)
    parts = []
    for view, (scale, mirrored) in enumerate(VIEWS):
        asking = points if view == 0 else _descriptors(thumbnails, scale, mirrored=mirrored)
        neighbours = nearest(points, k, metric="euclidean", queries=asking)
        parts.append(_as_pairs(neighbours.index, neighbours.distance / DESCRIPTOR_SIDE, view))
    pairs = pd.concat([*parts, *_embedding_candidates(thumbnails, points, embeddings)])
    pairs = _each_once(pairs)
    by_asking, by_other = (pairs.groupby(end, sort=False).cumcount() for end in ("asking", "other"))
    rank = np.minimum(by_asking, by_other)
    return pairs[rank < CANDIDATES].reset_index(drop=True)


def _no_pairs() -> pd.DataFrame:
    return pd.DataFrame({name: np.zeros(0, dtype=np.int64) for name in ("asking", "other", "view", "distance")})


def _each_once(pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs of two images that are near enough, the nearest first, each in the view in which it is nearest."""
    pairs = pairs[(pairs["asking"] != pairs["other"]) & (pairs["other"] >= 0) & (pairs["distance"] <= MAX_DISTANCE)]
    pairs = pairs.sort_values(["distance", "asking", "other"], kind="stable")
    ends = np.sort(pairs[["asking", "other"]].to_numpy(), axis=1)
    return pairs[~pd.DataFrame(ends).duplicated().to_numpy()]


def _as_pairs(index: np.ndarray, distance: np.ndarray, view: int) -> pd.DataFrame:
    near = distance.ravel() <= MAX_DISTANCE  # which most are not, so that little is kept
    asking = np.repeat(np.arange(len(index)), index.shape[1])
    columns = {"asking": asking[near], "other": index.ravel()[near], "distance": distance.ravel()[near]}
    return pd.DataFrame(columns).assign(view=view)


def _embedding_candidates(
    thumbnails: np.ndarray, points: np.ndarray, embeddings: Sequence[np.ndarray]
) -> list[pd.DataFrame]:
    """Neighbours by what networks say, each in the view in which the thumbnails are nearest."""
    parts: list[pd.DataFrame] = []
    if not embeddings:
        return parts
    pairs = set()
    for features in embeddings:
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        neighbours = nearest(
            features / np.maximum(lengths, 1e-12), min(NEIGHBOURS, len(points) - 1), metric="euclidean"
        )
        pairs |= {(row, int(other)) for row, others in enumerate(neighbours.index) for other in others if other >= 0}
    asking, other = np.array(sorted(pairs), dtype=np.int64).T
    for view, (scale, mirrored) in enumerate(VIEWS):
        own = _descriptors(thumbnails, scale, mirrored=mirrored)
        distance = np.concatenate(
            [
                np.linalg.norm(own[asking[chunk]] - points[other[chunk]], axis=1)
                for chunk in np.array_split(np.arange(len(asking)), len(asking) // CHUNK_IMAGES + 1)
            ]
        )
        parts.append(
            pd.DataFrame({"asking": asking, "other": other, "distance": distance / DESCRIPTOR_SIDE}).assign(view=view)
        )
    return parts


def _descriptors(thumbnails: np.ndarray, scale: float, *, mirrored: bool) -> np.ndarray:
    """A coarse picture of the middle of each image, `scale` of its width, in grey levels: float32 (num_images, 144)."""
    parts = []
    for start in range(0, len(thumbnails), CHUNK_IMAGES):
        images = _as_floats(thumbnails[start : start + CHUNK_IMAGES])
        images = images.flip(-1) if mirrored else images
        images = window_of(images, scale) if scale < 1 else images
        parts.append(F.adaptive_avg_pool2d(blurred(images, 1.0)[:, None], DESCRIPTOR_SIDE).flatten(1).numpy())
    return np.concatenate(parts)


def _laid_over(thumbnails: np.ndarray, pairs: pd.DataFrame) -> np.ndarray:
    """Correlation, difference and the measures of WEIGHTS of candidates, float32 (num_pairs, 2 + measures)."""
    scales, mirrored = (torch.tensor(values) for values in zip(*VIEWS, strict=True))
    view = torch.tensor(pairs["view"].to_numpy())
    moving = _as_floats(thumbnails[pairs["asking"].to_numpy()])
    moving = torch.where(mirrored[view].view(-1, 1, 1), moving.flip(-1), moving)
    found = overlay(_as_floats(thumbnails[pairs["other"].to_numpy()]), moving, scales[view])
    measures = {
        "log_difference": (found.difference.clamp(min=0.5) / 10).log(),
        "log_smooth_difference": (found.smooth_difference.clamp(min=0.25) / 10).log(),
        "log_contrast": (found.contrast.clamp(min=1) / 50).log(),
        "log_detail_lost": (1 - found.detail_correlation).clamp(min=1e-3).log(),
        "log_stretch": found.stretch.log(),
    }
    return torch.stack([found.correlation, found.difference, *(measures[name] for name in WEIGHTS)], dim=1).numpy()


def _as_floats(thumbnails: np.ndarray) -> Tensor:
    return torch.from_numpy(thumbnails.astype(np.float32))
