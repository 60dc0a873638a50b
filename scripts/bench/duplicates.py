"""`rarefind bench duplicates`: how many planted copies `rarefind neighbours` finds, and how many pairs are false.

Copies are resized, saved again as JPEG, cropped and mirrored, of Fashion-MNIST's garments (28x28, of which many truly
look alike), of patches of photographs, and of digits (8x8). The rule was fitted on the other half of the images.
"""

import json
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scripts.command import run_command

if TYPE_CHECKING:
    import numpy as np

    from scripts.bench.planted_duplicates import Planted

PATCH_SIDES = (48, 64, 96, 128)
PATCH_SIZE = 64  # working size of patches
COPIES = 10  # originals for each copy, of patches and digits one
SETS = ("garments", "photographs", "digits")


def main(
    images: Annotated[
        int, typer.Option(min=100, max=30_000, help="garments, beside which a tenth is planted")
    ] = 20_000,
    idx: Annotated[Path | None, typer.Option(help="folder of Fashion-MNIST's IDX files; default: Debian's")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the images and their copies")] = 0,
    fit: Annotated[
        bool, typer.Option("--fit", help="fit the rule on the half that is not measured, and show it")
    ] = False,
) -> None:
    """Plant copies, search, and count what was found, missed and taken for a copy."""
    from rich.console import Console

    if fit:
        print(json.dumps({"benchmark": "duplicates", "fit": fitted_rule(images, idx, seed=seed)}))
        return
    console, results = Console(), {}
    for name in SETS:
        planted = planted_set(name, num=images, idx=idx, seed=seed, measured=True)
        result = searched(planted)
        results[name] = result
        console.print(
            f"[bold]{name}[/]: {result['num_originals']:,} and {result['num_copies']:,} copies, of which "
            f"{result['recall']:.1%} found; {result['num_false']:,} of {result['num_reported']:,} pairs false "
            f"({result['false_share']:.2%}), {result['num_false_of_originals']} of these two look-alike originals; "
            f"{result['seconds']:.0f} s"
        )
        for kind, share in result["recall_by_kind"].items():
            console.print(f"  {kind:<46} {share:.1%}")
    print(json.dumps({"benchmark": "duplicates", "seed": seed, **results}))


def searched(planted: "Planted") -> dict[str, Any]:
    """What the search finds among planted copies; those of plain images are counted as missed."""
    from trainers import duplicates

    started = time.perf_counter()
    compared = duplicates.compare(planted.thumbnails)
    seconds = time.perf_counter() - started
    pairs = compared.chosen(compared.log_odds >= duplicates.MIN_LOG_ODDS)
    is_true = planted.is_true(pairs.left, pairs.right)
    by_kind = planted.found(pairs.left, pairs.right)
    num_false, num_wrong_candidates = (
        int((~is_true).sum()),
        int((~planted.is_true(compared.left, compared.right)).sum()),
    )
    return {
        "num_originals": planted.num_originals,
        "num_copies": len(planted.kind) - planted.num_originals,
        "num_plain": int(duplicates.is_plain(planted.thumbnails).sum()),
        "recall": round(sum(by_kind.values()) / len(by_kind), 4),
        "recall_by_kind": {kind: round(share, 4) for kind, share in by_kind.items()},
        "num_reported": len(is_true),
        "num_false": num_false,
        # Two originals that look alike may be two photographs of one thing, or one photograph twice.
        "num_false_of_originals": int((~is_true & (planted.kind[pairs.right] < 0)).sum()),
        "false_share": round(num_false / max(1, len(is_true)), 4),
        "num_candidates": len(compared.left),
        "false_share_of_candidates": round(num_false / max(1, num_wrong_candidates), 4),
        "seconds": round(seconds, 2),
        "peak_gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def fitted_rule(num: int, idx: Path | None, *, seed: int) -> dict[str, float]:
    """Intercept, weights and the log-odds at which 1% of the pairs is false, of candidates that are not measured."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    from trainers import duplicates

    measures, truths = [], []
    for name in ("garments", "photographs"):
        planted = planted_set(name, num=num, idx=idx, seed=seed, measured=False)
        compared = duplicates.compare(planted.thumbnails)
        measures.append(compared.measures)
        truths.append(planted.is_true(compared.left, compared.right))
    values, is_true = np.concatenate(measures), np.concatenate(truths)
    model = LogisticRegression(C=100.0, max_iter=1000).fit(values, is_true)
    log_odds = model.decision_function(values)
    order = np.argsort(-log_odds)
    false_share = np.cumsum(~is_true[order]) / np.arange(1, len(order) + 1)
    allowed = np.flatnonzero(false_share <= 0.01).max(initial=0)
    return {
        "INTERCEPT": float(model.intercept_[0]),
        **dict(zip(duplicates.WEIGHTS, model.coef_[0].tolist(), strict=True)),
        "MIN_LOG_ODDS": float(log_odds[order[allowed]]),
    }


def planted_set(name: str, *, num: int, idx: Path | None, seed: int, measured: bool) -> "Planted":
    """One of SETS with its copies, from the half of the images that is measured or from the other one."""
    import numpy as np

    from scripts.bench.planted_duplicates import plant

    rng = np.random.default_rng([seed, measured])
    if name == "garments":
        pictures = _garments(num, idx, seed=seed, measured=measured)
        return plant(pictures, num_copies=len(pictures) // COPIES, image_size=28, rng=rng)
    pictures = [*(patches() if name == "photographs" else digits())][int(measured) :: 2]
    if name == "photographs":  # a third are patches of sky, which are not compared
        pictures = not_plain(pictures, image_size=PATCH_SIZE)
    size = PATCH_SIZE if name == "photographs" else 8
    return plant(pictures, num_copies=len(pictures), image_size=size, rng=rng)


def _garments(num: int, idx: Path | None, *, seed: int, measured: bool) -> "list[np.ndarray]":
    import numpy as np

    from trainers.fashion import DEBIAN_FOLDER
    from trainers.idx import read_idx_images

    folder = idx or DEBIAN_FOLDER
    plain = folder / "train-images-idx3-ubyte"
    images = read_idx_images(plain if plain.exists() else plain.with_suffix(".gz"))
    halves = np.array_split(np.random.default_rng(seed).permutation(len(images)), 2)
    return [np.array(images[row]) for row in halves[int(measured)][:num]]


def patches() -> "list[np.ndarray]":
    """Squares of scikit-learn's photographs and matplotlib's, uint8 (side, side, 3); those of a size lie apart."""
    import numpy as np
    from matplotlib import get_data_path
    from PIL import Image
    from sklearn.datasets import load_sample_images

    with Image.open(Path(get_data_path()) / "sample_data" / "grace_hopper.jpg") as portrait:
        pictures = [*load_sample_images().images, np.asarray(portrait)]
    return [
        picture[top : top + side, left : left + side]
        for picture in pictures
        for side in PATCH_SIDES
        for top in range(0, picture.shape[0] - side + 1, side)
        for left in range(0, picture.shape[1] - side + 1, side)
    ]


def not_plain(pictures: "list[np.ndarray]", *, image_size: int) -> "list[np.ndarray]":
    """The pictures that show enough to be compared."""
    import numpy as np

    from scripts.bench.planted_duplicates import plant
    from trainers.duplicates import is_plain

    plain = is_plain(plant(pictures, num_copies=0, image_size=image_size, rng=np.random.default_rng(0)).thumbnails)
    return [picture for picture, is_one in zip(pictures, plain, strict=True) if not is_one]


def digits() -> "list[np.ndarray]":
    """scikit-learn's handwritten digits, uint8 (8, 8)."""
    import numpy as np
    from sklearn.datasets import load_digits

    return [np.round(image * (255 / 16)).astype(np.uint8) for image in load_digits().images]


if __name__ == "__main__":
    run_command(main)
