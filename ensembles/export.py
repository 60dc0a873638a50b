"""Export a run's ensemble: a folder that scores images on a machine without this project.

    README.md  inference.py  config.json  manifest.json  metrics.json  requirements.txt  LICENSE
    weights/<model>-fold<k>.safetensors
    lib/       the modules of this project that inference.py needs, as they are

What scores there is code of this project, copied: `ensembles.portable` and what it imports.
"""

import importlib.metadata
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import configs
from configs.errors import InputError, listed
from configs.schema import DataConfig, PredictConfig, SubmitConfig
from ensembles import export_checks, export_readme
from ensembles.ensemble import ENSEMBLE_FILE, read_ensemble
from ensembles.portable.blend import check_known
from ensembles.portable.scoring import CONFIG_FILE, MANIFEST_FILE, load_ensemble
from ensembles.predictions import VOICES, read_predictions
from ensembles.submission import has_test, match_sample
from trainers import atomic
from trainers.checkpoints import read_final
from trainers.path_format import path_format_of
from trainers.provenance import code_version, file_digest
from trainers.sheet import read_sheet
from trainers.small_nets import SMALL_NETS
from trainers.table import ImageTable, read_table

SOURCE = Path(configs.__file__).resolve().parent.parent
INFERENCE = "ensembles/portable/inference.py"
LIB = (
    "augment/__init__.py",
    "augment/views.py",
    "configs/__init__.py",
    "configs/errors.py",
    "ensembles/__init__.py",
    "ensembles/portable/__init__.py",
    "ensembles/portable/blend.py",
    "ensembles/portable/calibration.py",
    "ensembles/portable/listing.py",
    "ensembles/portable/order.py",
    "ensembles/portable/ranks.py",
    "ensembles/portable/scoring.py",
    "trainers/__init__.py",
    "trainers/decode.py",
    "trainers/idx.py",
    "trainers/image_bytes.py",
    "trainers/paths.py",
    "trainers/small_nets.py",
    "trainers/torchvision_ops.py",
)
PACKAGES = ("torch", "timm", "numpy", "pillow", "safetensors")
TOP_FILES = ("README.md", "inference.py", CONFIG_FILE, MANIFEST_FILE, "metrics.json", "requirements.txt", "LICENSE")


@dataclass(frozen=True)
class ExportResult:
    """Where the folder is, and one line of counts."""

    folder: Path
    summary: str


def run(
    run_dir: Path, *, name: str, data: DataConfig, predict: PredictConfig, submit: SubmitConfig, out: Path
) -> ExportResult:
    """Write the folder `out`, completely or not at all; an earlier export there is replaced.

    Raises InputError when the run is not finished, its blend or a backbone cannot be exported, a network was trained
    anew after it scored, what is exported does not score as the run did, or `out` holds other files.
    """
    _check_replaceable(out)
    stored = read_ensemble(run_dir / "ensemble")
    table = read_table(run_dir / "table.parquet")
    blend = json.loads((run_dir / "ensemble" / ENSEMBLE_FILE).read_text(encoding="utf-8"))["blend"]
    calibration = None if stored.calibration.deployed is None else stored.calibration.deployed.to_json()
    check_known(blend)
    metrics = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    _check_no_voices(blend, metrics)
    predictions = read_predictions(run_dir / "predictions", table=table).query("arm == @stored.arm")
    export_checks.check_blend(blend, calibration, predictions, stored.scores)
    finals = {
        (model, int(fold)): run_dir / "train" / stored.arm / model / f"fold{fold}" / "final"
        for model, folds in blend["folds"].items()
        if model in blend["weights"]
        for fold in folds
    }
    facts = {key: read_final(final).state for key, final in finals.items()}
    export_checks.check_weights(run_dir, stored.arm, finals)
    _check_backbones(facts)
    config = {
        "run": name,
        "rarefind": code_version(),
        "made_with": {package: _version(package) for package in PACKAGES},
        "arm": stored.arm,
        "classes": table.classes,
        "positive_label": table.positive_label,
        "images": _image_settings(data),
        "table": _table_settings(data),
        "views": _views(predict, blend),
        "networks": [_network(key, own) for key, own in facts.items()],
        "own_networks": any(own["backbone"] in SMALL_NETS for own in facts.values()),
        "blend": blend,
        "calibration": calibration,
        "threshold": stored.threshold,
        "recall_guarantee": stored.recall_guarantee,
        "submission": _submission_columns(run_dir, table, submit),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        for key, final in finals.items():
            _copy(final / "model.safetensors", temporary / _weights_file(*key))
        atomic.write_json(temporary / CONFIG_FILE, config)
        atomic.write_json(temporary / MANIFEST_FILE, _manifest(temporary))
        for file in LIB:
            _copy(SOURCE / file, temporary / "lib" / file)
        _copy(SOURCE / INFERENCE, temporary / "inference.py")
        _copy(run_dir / "metrics.json", temporary / "metrics.json")
        if (SOURCE / "LICENSE").is_file():  # not beside the modules of a wheel
            _copy(SOURCE / "LICENSE", temporary / "LICENSE")
        requirements = "".join(f"{package}=={version}\n" for package, version in config["made_with"].items())
        atomic.write_text(temporary / "requirements.txt", requirements)
        ensemble = load_ensemble(temporary, device=export_checks.device_here())
        check = export_checks.check_images(
            ensemble, run_dir=run_dir, data=data, table=table, predictions=predictions, scores=stored.scores
        )
        atomic.write_text(temporary / "README.md", export_readme.render(config, metrics, facts, check))
        _replace(temporary, out)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)
    megabytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    return ExportResult(
        out,
        f"{len(facts)} fold models of {len(blend['weights'])} models, arm {stored.arm}, {megabytes:.1f} MB; {check}",
    )


def _check_replaceable(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"--out {out}: there is a file of that name; name a folder that does not exist yet")
    ours = {*TOP_FILES, *(f"lib/{file}" for file in LIB)}
    files = (path.relative_to(out) for path in out.rglob("*") if path.is_file())
    strangers = sorted(
        path.as_posix()
        for path in files
        if path.as_posix() not in ours
        and "__pycache__" not in path.parts
        and not (path.parts[0] == "weights" and path.suffix == ".safetensors")
    )
    if strangers:
        raise InputError(
            f"--out {out}: files that are not of an export lie there, and would be lost; move them away or name "
            f"another folder\n{listed(strangers)}"
        )


def _check_no_voices(blend: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    voices = sorted(model for model in blend["weights"] if VOICES in metrics["models"].get(model, {}))
    if voices:
        raise InputError(
            f"ensemble.voices: {', '.join(voices)}: a regression on the features of a frozen network is part of this "
            "ensemble, and cannot be exported; add new images to data.test and run again, which trains nothing anew, "
            "or export the networks alone after `rarefind run CONFIG ensemble.voices=[]`"
        )


def _check_backbones(facts: Mapping[tuple[str, int], dict[str, Any]]) -> None:
    remote = sorted({own["backbone"] for own in facts.values() if ":" in own["backbone"]})
    if remote:
        raise InputError(
            f"models: {', '.join(remote)}: timm fetches the definition of such a network when it builds it, so it "
            "cannot be exported to a machine without a network; train timm's own network of that kind"
        )


def _image_settings(data: DataConfig) -> dict[str, Any]:
    """The keywords of `trainers.decode.decode_image`."""
    names = ("channels", "resize", "grey_bits", "multi_frame", "max_pixels")
    return {"size": data.image_size, **{name: getattr(data, name) for name in names}}


def _table_settings(data: DataConfig) -> dict[str, Any]:
    path_format = path_format_of(data, "test")
    return {
        "id_column": data.columns.id,
        "path_column": data.columns.path,
        "path_format": None if path_format is None else path_format.text,
    }


def _views(predict: PredictConfig, blend: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The test-time views with their weights: those of the blend, where it has its own."""
    weights = blend.get("views") or [view.weight for view in predict.views]
    return [
        {"view": view.view, "weight": weight} for view, weight in zip(predict.views, weights, strict=True) if weight
    ]


def _network(key: tuple[str, int], facts: Mapping[str, Any]) -> dict[str, Any]:
    names = ("backbone", "options", "channels", "num_outputs", "mean", "std", "channels_last", "log_odds_shift")
    return {"model": key[0], "fold": key[1], "file": _weights_file(*key), **{name: facts[name] for name in names}}


def _weights_file(model: str, fold: int) -> str:
    return f"weights/{model}-fold{fold}.safetensors"


def _submission_columns(run_dir: Path, table: ImageTable, submit: SubmitConfig) -> list[tuple[str, int | None]]:
    """The columns of the submission in their order, each with the ensemble's output in it, None for the ids."""
    rejected = read_sheet(run_dir / "rejected.csv").frame
    if submit.sample is not None and submit.sample.is_file() and has_test(table, rejected):
        layout = match_sample(table, rejected, submit)
        return [(name, layout.outputs.get(name)) for name in layout.columns]
    names = [submit.target_column] if table.is_binary else table.classes
    return [(submit.id_column, None), *((name, output) for output, name in enumerate(names))]


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_digest(path)}
        for path in files
    }


def _version(package: str) -> str:
    return importlib.metadata.version(package).partition("+")[0]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        raise InputError(f"{source}: missing; `rarefind run CONFIG` writes what a run lacks") from None
    atomic.fsync_file(target)


def _replace(new: Path, place: Path) -> None:
    """Put a whole folder in the place of another; a rename cannot replace a folder, so the old one steps aside."""
    old = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.old")
    if place.exists():
        os.replace(place, old)
    os.replace(new, place)
    atomic.fsync_dir(place.parent)
    if old.exists():
        shutil.rmtree(old)
