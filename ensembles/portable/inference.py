"""Score images with the exported ensemble beside this file: `python inference.py IMAGES --out scores.csv`.

IMAGES is a folder or a CSV. Needs torch, timm, numpy, Pillow and safetensors, and no network. README.md says what the
scores mean. Exit status: 0 all images scored, 1 some could not be read, 2 nothing done, with the reason.
"""

import argparse
import csv
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if (HERE / "lib").is_dir():  # as exported: the modules of rarefind that are needed lie there
    sys.path.insert(0, str(HERE / "lib"))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from configs.errors import InputError, counted, listed  # noqa: E402
from ensembles.portable.blend import probabilities_of  # noqa: E402
from ensembles.portable.listing import Listing, list_images  # noqa: E402
from ensembles.portable.order import strictly_ordered  # noqa: E402
from ensembles.portable.scoring import Ensemble, load_ensemble, read_config, read_pixels, score_pixels  # noqa: E402
from trainers.decode import UnreadableImage  # noqa: E402

MAX_THREADS = 8
MAX_TOLD = 1000  # unreadable images
SCORED, UNREADABLE, REFUSED = 0, 1, 2  # exit status

Decoded = np.ndarray | UnreadableImage


def decoded_batches(
    settings: dict[str, Any], listing: Listing, *, batch_size: int, threads: int
) -> Iterator[tuple[list[tuple[str, str]], list[Decoded]]]:
    """The (id, path) of each batch with its pixels or the reasons for none; the next one is decoded meanwhile."""

    def read(image: tuple[str, str]) -> Decoded:
        try:
            return read_pixels(settings, listing.root, image[1])
        except UnreadableImage as error:
            return error

    batches = (listing.images[at : at + batch_size] for at in range(0, len(listing.images), batch_size))
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        coming: list[tuple[list[tuple[str, str]], list[Future[Decoded]]]] = []
        for batch in batches:
            coming.append((batch, [pool.submit(read, image) for image in batch]))
            if len(coming) == 2:
                ready, futures = coming.pop(0)
                yield ready, [future.result() for future in futures]
        for ready, futures in coming:
            yield ready, [future.result() for future in futures]


def _columns(config: dict[str, Any], *, submission: bool) -> list[str]:
    if submission:
        return [name for name, _ in config["submission"]]
    if config["positive_label"] is None:
        return ["id", "predicted", *(f"probability_{name}" for name in config["classes"])]
    return ["id", "probability", "score", *(["flagged"] if config["threshold"] is not None else [])]


def _rows(config: dict[str, Any], ids: Sequence[str], scores: np.ndarray, *, submission: bool) -> Iterator[list[Any]]:
    """Rows of the output as text; numbers in full. A submission's are to be given all at once, to keep their order."""
    probabilities = probabilities_of(config["blend"], scores, config["calibration"])
    if submission and config["positive_label"] is not None:
        probabilities = strictly_ordered(probabilities[:, 0], scores[:, 0])[:, None]
    for id_, row, score in zip(ids, probabilities.tolist(), scores.tolist(), strict=True):
        if submission:
            yield [id_ if output is None else repr(row[output]) for _, output in config["submission"]]
        elif config["positive_label"] is None:
            yield [id_, config["classes"][int(np.argmax(score))], *map(repr, row)]
        else:
            threshold = config["threshold"]
            yield [id_, repr(row[0]), repr(score[0]), *([] if threshold is None else [int(score[0] >= threshold)])]


def score_to_csv(
    ensemble: Ensemble, listing: Listing, out: Path, *, batch_size: int, threads: int, skip: bool, submission: bool
) -> list[str]:
    """Write the scores of all readable images; what could not be read, as text.

    With unreadable ones and not `skip`, the file is `<out>.incomplete.csv` and what was `out` stays.
    """
    config = ensemble.config
    unreadable: list[str] = []
    kept_ids: list[str] = []
    kept_scores: list[np.ndarray] = []
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    done, shown = 0, sys.stderr.isatty()
    try:
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(_columns(config, submission=submission))
            batches = decoded_batches(config["images"], listing, batch_size=batch_size, threads=threads)
            for images, decoded in batches:
                pairs = list(zip(images, decoded, strict=True))
                unreadable += [f"id {id_!r}, {path}: {e}" for (id_, path), e in pairs if isinstance(e, UnreadableImage)]
                readable = [(id_, pixels) for (id_, _), pixels in pairs if isinstance(pixels, np.ndarray)]
                if readable:
                    kept_ids += [id_ for id_, _ in readable]
                    kept_scores.append(score_pixels(ensemble, np.stack([pixels for _, pixels in readable])))
                    if not submission:
                        writer.writerows(_rows(config, kept_ids, kept_scores[0], submission=False))
                        kept_ids, kept_scores = [], []
                done += len(images)
                if shown:
                    print(f"\rscored {done:,} of {len(listing.images):,}", end="", file=sys.stderr, flush=True)
            if kept_ids:
                writer.writerows(_rows(config, kept_ids, np.concatenate(kept_scores), submission=True))
            stream.flush()
            os.fsync(stream.fileno())
        whole = skip or not unreadable
        os.replace(temporary, out if whole else incomplete(out))
    finally:
        if shown:
            print(file=sys.stderr)
        temporary.unlink(missing_ok=True)
    return unreadable


def incomplete(out: Path) -> Path:
    """Where scores go when some images could not be read.

    >>> incomplete(Path("scores.csv")).name
    'scores.incomplete.csv'
    """
    return out.with_name(f"{out.stem}.incomplete{out.suffix}")


def _arguments(config: dict[str, Any], argv: Sequence[str] | None) -> argparse.Namespace:
    found = argparse.ArgumentParser(description="Score images with the exported ensemble in this folder.")
    table = config["table"]
    found.add_argument("images", type=Path, help="a folder of images, or a CSV with a row per image")
    found.add_argument("--out", type=Path, required=True, help="CSV to write")
    found.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps")
    found.add_argument("--batch-size", type=int, default=64, help="images at a time (default %(default)s)")
    found.add_argument("--threads", type=int, default=min(MAX_THREADS, os.cpu_count() or 1), help="that decode images")
    found.add_argument(
        "--unreadable",
        choices=("error", "skip"),
        default="error",
        help="images that cannot be read: exit status 1 (default), or leave them out; they are listed in any case",
    )
    found.add_argument("--submission", action="store_true", help="write the columns of the run's submission")
    found.add_argument("--root", type=Path, help="folder that a CSV's paths are relative to (default: the CSV's)")
    found.add_argument("--id-column", default=table["id_column"], help="of a CSV (default %(default)s)")
    found.add_argument("--path-column", help=f"of a CSV (default {table['path_column']})")
    found.add_argument("--path-format", help="path made from a CSV's columns, e.g. test/{image_name}.jpg")
    chosen = found.parse_args(argv)
    if chosen.batch_size < 1 or chosen.threads < 1:
        found.error("--batch-size and --threads must be at least 1")
    if chosen.path_column is None:
        chosen.path_column = table["path_column"]
        chosen.path_format = chosen.path_format or table["path_format"]
    return chosen


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: torch cannot use it here ({str(error).splitlines()[0]})") from None
    return name


def _other_versions(made_with: dict[str, str]) -> list[str]:
    """What differs here from where the ensemble was exported."""
    here = {}
    for package in made_with:
        with suppress(importlib.metadata.PackageNotFoundError):
            here[package] = importlib.metadata.version(package).partition("+")[0]  # without the kind of build
    return [f"{name} {here[name]} (exported with {made_with[name]})" for name in here if here[name] != made_with[name]]


def _score(argv: Sequence[str] | None, folder: Path) -> int:
    tell = partial(print, file=sys.stderr)
    config = read_config(folder)
    chosen = _arguments(config, argv)
    if not chosen.out.absolute().parent.is_dir():
        raise InputError(f"--out {chosen.out}: there is no folder {chosen.out.absolute().parent}")
    listing = list_images(
        chosen.images,
        root=chosen.root,
        id_column=chosen.id_column,
        path_column=chosen.path_column,
        path_format=chosen.path_format,
    )
    if listing.left_out:
        what = counted(len(listing.left_out), "file is no image and is", "files are no images and are")
        tell(f"{what} left out\n{listed(listing.left_out)}")
    other = _other_versions(config["made_with"])
    if other:
        tell(f"note: scores may differ a little, because of other versions: {', '.join(other)}")
    ensemble = load_ensemble(folder, device=_device(chosen.device))
    unreadable = score_to_csv(
        ensemble,
        listing,
        chosen.out,
        batch_size=chosen.batch_size,
        threads=chosen.threads,
        skip=chosen.unreadable == "skip",
        submission=chosen.submission,
    )
    num_scored = len(listing.images) - len(unreadable)
    if unreadable:
        tell(f"{counted(len(unreadable), 'image')} could not be read\n{listed(unreadable, cap=MAX_TOLD)}")
    if unreadable and chosen.unreadable == "error":
        tell(
            f"error: the scores of the other {num_scored:,} are in {incomplete(chosen.out)}; mend the images, or add "
            "--unreadable skip"
        )
        return UNREADABLE
    print(f"{counted(num_scored, 'image')} scored on {ensemble.device}: {chosen.out}")
    return SCORED


def main(argv: Sequence[str] | None = None, folder: Path = HERE) -> int:
    """Score as the command line says with the ensemble in `folder`; the exit status."""
    warnings.filterwarnings("ignore", module=r"PIL\..*")  # of oddities; what matters is an error, told with the id
    try:
        return _score(argv, folder)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED


if __name__ == "__main__":
    raise SystemExit(main())
