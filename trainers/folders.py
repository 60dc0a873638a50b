"""Folders as input: class folders, plain folders of images and folders of IDX files become (id, path, label, split).

The id of a file is its path below the folder that was listed (`labelled`, `pool`, `test` or the one named in the
config) without its suffix: `nevus/007` for `labelled/nevus/007.jpg`. Where another split has that id too, `ids_apart`
puts the folder in front of one of them.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pandas as pd

from configs.errors import InputError, counted, listed
from trainers.decode import SUFFIXES
from trainers.idx import idx_shape, read_idx_labels
from trainers.sheet import is_sheet

KINDS = "JPEG, PNG, TIFF, WebP, BMP"
FOLDER_OF = {
    "test": "test",
    "train": "labelled",
    "pool": "pool",
}  # by split; the earlier one keeps an id that both have
MAX_EXAMPLES = 3
# Configs, notes and tables lie beside images on purpose; a scan.dcm or a photo.heic left out is worth a word.
HARMLESS_SUFFIXES = (".yaml", ".yml", ".md", ".txt", ".csv", ".tsv", ".parquet", ".pq", ".json", ".jsonl")
HARMLESS_NAMES = ("thumbs.db", "desktop.ini")  # Windows puts them into folders of images

Row = tuple[str, str, str | None, str]  # id, path, label, split


@dataclass(frozen=True)
class FolderRows:
    """Rows in the order of their paths; `tables` are files that were read besides the images."""

    rows: list[Row]
    tables: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_flat_folder(folder: Path, *, split: str) -> FolderRows:
    """Every image below `folder`, in sub-folders or not, unlabelled; raises InputError when there is none."""
    paths, ignored = list_images(folder)
    if not paths:
        raise InputError(f"data.{split}: no image ({KINDS}) below {folder}")
    return FolderRows([(id_of(path), path, None, split) for path in paths], warnings=_ignored_warning(folder, ignored))


def read_class_folders(folder: Path) -> FolderRows:
    """`labelled/<class>/...` with `pool/...` and `test/...` beside it, or `<class>/...` right in the folder."""
    here = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    nested = "labelled" in here
    if not nested and here & {"pool", "test"}:
        raise InputError(
            f"{folder}: there is {' and '.join(sorted(here & {'pool', 'test'}))} but no 'labelled'; expected "
            f"labelled/<class>/..., pool/..., test/...; got {', '.join(sorted(here))}"
        )
    splits = {"labelled": "train", "pool": "pool", "test": "test"} if nested else {"": "train"}
    paths, ignored = list_images(folder)
    rows: list[Row] = []
    stray: list[str] = []
    for path in paths:
        top, _, below = path.partition("/") if nested else ("", "", path)
        if top not in splits or not below:
            ignored.append(path)
        elif splits[top] != "train":
            rows.append((id_of(below), path, None, splits[top]))
        elif "/" in below:
            rows.append((id_of(below), path, below.partition("/")[0], "train"))
        else:
            stray.append(path)
    if not any(split == "train" for *_, split in rows):
        tables = sorted(path.name for path in folder.iterdir() if is_sheet(path))
        hint = f"; there are tables in it ({', '.join(tables)}): name one of them as data.source" if tables else ""
        raise InputError(
            f"{folder}: expected a folder of images ({KINDS}) per class, as labelled/<class>/... or <class>/...; "
            f"got no image in a class folder{hint}"
        )
    if stray:
        raise InputError(
            f"{folder}: {counted(len(stray), 'image lies', 'images lie')} beside the class folders, so the "
            f"class is unknown; move all into one\n{listed(stray)}"
        )
    return FolderRows(rows, warnings=_ignored_warning(folder, sorted(ignored)))


def is_idx_folder(folder: Path) -> bool:
    """Whether there is a file of IDX images in the folder."""
    return any(path.name.endswith(("-idx3-ubyte", "-idx3-ubyte.gz")) for path in folder.iterdir())


def read_idx_folder(folder: Path) -> FolderRows:
    """`train-images` with `train-labels` is the training set, `t10k-images` the test set; its labels are not read."""
    images_file = _idx_file(folder, "train-images-idx3-ubyte")
    labels_file = _idx_file(folder, "train-labels-idx1-ubyte")
    if images_file is None or labels_file is None:
        raise InputError(
            f"{folder}: expected train-images-idx3-ubyte and train-labels-idx1-ubyte (plain or .gz); got "
            f"{', '.join(sorted(path.name for path in folder.iterdir()))}"
        )
    labels = read_idx_labels(labels_file)
    num_images = idx_shape(images_file)[0]
    if num_images != len(labels):
        raise InputError(
            f"{images_file} holds {num_images} images, but {labels_file} {len(labels)} labels; fetch both again"
        )
    rows: list[Row] = [
        (f"train-{number:05d}", f"{images_file.name}#{number}", str(label), "train")
        for number, label in enumerate(labels.tolist())
    ]
    test_file = _idx_file(folder, "t10k-images-idx3-ubyte")
    if test_file is not None:
        num_images = idx_shape(test_file)[0]
        rows += [(f"t10k-{number:05d}", f"{test_file.name}#{number}", None, "test") for number in range(num_images)]
    return FolderRows(rows, tables=[labels_file])


def list_images(folder: Path) -> tuple[list[str], list[str]]:
    """Paths of the image files below `folder`, and of those that may be meant as such; relative, `/`, sorted.

    The latter are no images by their suffix. Notes and tables, hidden files, `__MACOSX` and run folders are passed
    over. Raises InputError for links to folders, links that lead out of
    `folder`, and names that are not UTF-8.
    """
    paths, ignored, problems = [], [], []
    real_root = folder.resolve()
    unread: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=unread.append):
        below = Path(parent).relative_to(folder)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and name != "__MACOSX" and not _is_run_folder(Path(parent) / name)
        ]
        problems += [
            f"{(below / name).as_posix()!r} is a symbolic link to a folder"
            for name in folders
            if (Path(parent) / name).is_symlink()
        ]
        for name in files:
            path = (below / name).as_posix()
            if name.startswith("."):
                continue
            if not _is_utf8(path):
                problems.append(f"{path!r} has a name that is not UTF-8")
            elif PurePosixPath(name).suffix.lower() not in SUFFIXES:
                if not _is_harmless(name):
                    ignored.append(path)
            elif _leads_out(Path(parent) / name, real_root):
                problems.append(f"{path!r} is a symbolic link that leads out of the folder")
            else:
                paths.append(path)
    problems += [f"{error.filename!r} cannot be listed ({error.strerror})" for error in unread]
    if problems:
        raise InputError(
            f"{folder}: {counted(len(problems), 'name')} cannot be used; put the files themselves below the folder, or "
            f"name the folder that really holds them in the config\n{listed(sorted(problems))}"
        )
    return sorted(paths), sorted(ignored)


def id_of(path: str) -> str:
    """The path without its suffix.

    >>> id_of("nevus/007.v2.jpg")
    'nevus/007.v2'
    """
    return str(PurePosixPath(path).with_suffix(""))


def ids_apart(frame: pd.DataFrame) -> tuple[pd.Series, list[str]]:
    """The ids of `Source.frame`, the folder in front where a file in a folder has the id of an image elsewhere.

    A test image keeps its id, because a submission names it; a labelled one yields to test images, one of the pool to
    both, and to a table's of the pool. What no rule tells apart stays as it is: the ids of tables, files of one folder
    that differ in their suffix. Also a warning when there are any. The order of the rows has no say.
    """
    ids = frame["id"].copy()
    clashing = frame[ids.duplicated(keep=False)]
    rank = pd.DataFrame(
        {
            "id": clashing["id"],
            "split": clashing["split"].map(list(FOLDER_OF).index),
            "in_folder": clashing["row"].isna(),
            "is_extra": clashing["origin"] != "source",
        }
    )
    first = rank.sort_values(["split", "in_folder", "is_extra"]).drop_duplicates("id").set_index("id")
    keepers = first.loc[rank["id"]].set_axis(rank.index)
    same_place = (rank[["split", "in_folder", "is_extra"]] == keepers).all(axis=1)
    yields = rank["in_folder"] & (clashing["split"] != "test") & ~same_place
    yielding = clashing[yields].sort_values(["file", "path"])
    if yielding.empty:
        return ids, []
    ids[yielding.index] = yielding["split"].map(FOLDER_OF) + "/" + yielding["id"]
    examples = [
        f"{Path(file) / path}: id {ids[index]!r}"
        for index, file, path in zip(yielding.index, yielding["file"], yielding["path"], strict=True)
    ]
    number = counted(len(yielding), "image in a folder has", "images in folders have")
    starts = " or ".join(sorted(set(yielding["split"].map(FOLDER_OF) + "/")))
    return ids, [
        f"{number} the id of an image of another folder or table, so their id begins with {starts}\n"
        f"{listed(examples, cap=MAX_EXAMPLES)}"
    ]


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _ignored_warning(folder: Path, ignored: list[str]) -> list[str]:
    if not ignored:
        return []
    return [
        f"{folder}: {counted(len(ignored), 'file is no image', 'files are not images')} ({KINDS}) "
        f"in a known place and left out; convert or move those that should be used\n{listed(ignored, cap=MAX_EXAMPLES)}"
    ]


def _is_harmless(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in HARMLESS_SUFFIXES or name.lower() in HARMLESS_NAMES


def _is_run_folder(folder: Path) -> bool:
    """Whether it is the folder of a run, which is below the images when the run was started among them."""
    return (folder / "log.jsonl").is_file() and (folder / ".lock").is_file()


def _is_utf8(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _leads_out(path: Path, real_root: Path) -> bool:
    return path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(real_root)
