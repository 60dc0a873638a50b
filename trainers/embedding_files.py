"""The files of frozen embeddings, and how they are read.

    embeddings/
      <name>.npy               float32 (num_images, dim), row order = table.parquet: the features of a network
      <name>.json              what they were made from: network, weights, images
      <name>.images.parquet    sha256 of the image of each row, by which features are found again in another table
      <name>.progress.json     only while they are made: the rows that are safe on the disk
      <name>.transformed.npy   with `embed.transform` only: float32 (num_images, other dim), which are read instead
      <name>.transformed.json  what they were made from
      <name>/fold<k>.npy, ...  the same of networks that were trained on labels: the one that has not seen fold k's

A network of the folder `<name>` is called `<name>/fold<k>` wherever a name is asked for.
"""

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from configs.errors import InputError
from trainers import atomic
from trainers.provenance import digest, file_digest
from trainers.table import ImageTable

FOLDER = "embeddings"
VALUES, VALUE_BYTES = "<f4", 4
RUN_EMBED = "run `rarefind embed CONFIG`"
TRANSFORMED = "transformed"


def open_embeddings(run_dir: Path, name: str, table: ImageTable, *, own: bool = False) -> np.ndarray:
    """The features of the table's rows, memory-mapped float32 (num_images, dim).

    They are the transformed ones if there are any, unless the network's `own` are asked for. Raises InputError when
    there are none, or they are damaged or of other images, or there are some for each fold.
    """
    facts = read_facts(run_dir, name, own=own)
    path = values_path(run_dir, name, suffix="" if own else _suffix_read(run_dir, name))
    try:
        features = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise InputError(f"{path}: no such embeddings; {RUN_EMBED}") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: damaged ({error}); {RUN_EMBED} again") from None
    expected = (len(table), facts["dim"])
    if features.shape != expected or features.dtype != np.float32:
        raise InputError(
            f"{path}: expected float32 of shape {expected}, got {features.dtype} of shape {features.shape}; "
            f"{RUN_EMBED} again"
        )
    if facts["images_sha256"] != images_digest(table):
        raise InputError(f"{path}: the embedded images are not those of the table; {RUN_EMBED} again")
    return features


def open_fold_embeddings(run_dir: Path, name: str, table: ImageTable) -> list[np.ndarray]:
    """The features of all rows for each fold, by the network that has not seen the labels of that fold.

    What learns from the labels outside a fold and is judged on the fold takes the features of that fold for both.
    Raises InputError as `open_embeddings` does.
    """
    return [open_embeddings(run_dir, fold_name(name, fold), table) for fold in range(table.num_folds)]


def read_facts(run_dir: Path, name: str, *, own: bool = False) -> dict[str, Any]:
    """What is known of the features that `open_embeddings` gives: dim, image_size, network, digests.

    Raises InputError without them.
    """
    facts = _read_json(facts_path(run_dir, name))
    if own or not _suffix_read(run_dir, name):
        return facts
    path = facts_path(run_dir, name, suffix=TRANSFORMED)
    transformed = _read_json(path)
    if transformed["features_sha256"] != facts["sha256"]:
        raise InputError(f"{path}: made from other features than {name}.npy holds; {RUN_EMBED} again")
    return facts | transformed


@dataclass(frozen=True)
class KnownFeatures:
    """Features that were made before: `values` (rows, dim), and for each row of a table its row there, or -1.

    `network` is what the record says of the network: backbone, hash of the weights, ...
    """

    values: np.ndarray
    rows: np.ndarray
    network: dict[str, Any]

    def are_of(self, network: dict[str, Any], dim: int) -> bool:
        """Whether this is the network, by its weights, not by their name: packages bring others under the same one."""
        told = [{key: facts.get(key) for key in ("weights_sha256", "mean", "std")} for facts in (self.network, network)]
        return self.values.shape[1] == dim and told[0] == told[1]

    def copied(self, first: int, end: int) -> np.ndarray:
        """The features of table rows `first` to `end` - 1, float32; zeros where there are none."""
        rows = self.rows[first:end]
        found = np.zeros((end - first, self.values.shape[1]), np.float32)
        found[rows >= 0] = self.values[rows[rows >= 0]]
        return found


def known_features(run_dir: Path, name: str, table: ImageTable) -> KnownFeatures | None:
    """The stored features of a network, for those of the table's images that it has seen, whatever their rows were.

    None where there are none, or they are not what was written.
    """
    try:
        facts = _read_json(facts_path(run_dir, name))
        hashes = pd.read_parquet(images_path(run_dir, name))["sha256"]
        values = np.load(values_path(run_dir, name), mmap_mode="r")
        network, told = facts["network"], (facts["sha256"], facts["images_sha256"])
        if told != (file_digest(values_path(run_dir, name)), digest(hashes.tolist())) or len(values) != len(hashes):
            return None
    except (InputError, OSError, ValueError, EOFError, KeyError):
        return None
    first = ~hashes.duplicated()
    places = pd.Index(hashes[first]).get_indexer(pd.Index(table.frame["sha256"]))
    rows = np.where(places >= 0, np.flatnonzero(first)[places], -1)
    return KnownFeatures(values, rows, network) if (rows >= 0).any() else None


def complete_older(run_dir: Path, name: str, table: ImageTable) -> None:
    """Write down of which images the features of a network are where an earlier version, which did not, made them."""
    if images_path(run_dir, name).exists() or not values_path(run_dir, name).exists():
        return
    try:
        facts = _read_json(facts_path(run_dir, name))
    except InputError:
        return
    if facts.get("images_sha256") == images_digest(table):
        atomic.write_parquet(images_path(run_dir, name), table.frame[["sha256"]])


def images_digest(table: ImageTable) -> str:
    """A hash of which images the table has, in their order; labels, ids and folds do not matter to features."""
    return digest(table.frame["sha256"].tolist())


def fold_name(name: str, fold: int) -> str:
    """The network of a fold among those of one training on labels."""
    return f"{name}/fold{fold}"


def outputs(name: str, *, suffix: str = "") -> tuple[str, ...]:
    """The files of a network's features, or of those with a suffix, relative to the run folder."""
    files = [path(Path(), name, suffix=suffix) for path in (values_path, facts_path)]
    return tuple(map(str, files if suffix else [*files, images_path(Path(), name)]))


def resume_point(name: str) -> str:
    """The file that tells how far an unfinished embedding came, relative to its folder."""
    return f"{FOLDER}/{name}.progress.json"


def progress_path(folder: Path, name: str) -> Path:
    """Where `resume_point` is."""
    return folder / resume_point(name)


def values_path(folder: Path, name: str, *, suffix: str = "") -> Path:
    """Where the features are."""
    return folder / FOLDER / f"{_with(name, suffix)}.npy"


def facts_path(folder: Path, name: str, *, suffix: str = "") -> Path:
    """Where it says what they were made from."""
    return folder / FOLDER / f"{_with(name, suffix)}.json"


def images_path(folder: Path, name: str) -> Path:
    """Where it says which image each row of a network's own features is of."""
    return folder / FOLDER / f"{name}.images.parquet"


def npy_header(num_rows: int, dim: int) -> bytes:
    """What a .npy file of float32 (num_rows, dim) begins with."""
    stream = BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": VALUES, "fortran_order": False, "shape": (num_rows, dim)})
    return stream.getvalue()


def _with(name: str, suffix: str) -> str:
    return f"{name}.{suffix}" if suffix else name


def _suffix_read(run_dir: Path, name: str) -> str:
    return TRANSFORMED if facts_path(run_dir, name, suffix=TRANSFORMED).exists() else ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        if path.with_suffix("").is_dir():
            raise InputError(
                f"{path.with_suffix('')}: these are features of one network for each fold, trained on the labels of "
                "the others, and here features of one network are needed: put another one in embed.networks, or one "
                "fold's (trained: train/<arm>/<model>/fold0)"
            ) from None
        raise InputError(f"{path}: no such embeddings; {RUN_EMBED}") from None
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); {RUN_EMBED} again") from None
