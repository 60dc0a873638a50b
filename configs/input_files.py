"""Files that a config names, looked for at once and not when their stage comes, hours later. No heavy import here."""

from pathlib import Path

from configs.errors import InputError, counted, listed
from configs.load import WEIGHT_SUFFIXES
from configs.networks import NetworkConfig
from configs.schema import RunConfig


def check_input_files(config: RunConfig) -> None:
    """Raise InputError for a config without data, and for all files that are named in it and are not there."""
    data = config.data
    if data.source is None:
        raise InputError(
            "data.source is not set: name the table or folder with your labelled images (`rarefind init DATA_DIR` does)"
        )
    named = {f"data.{key}": getattr(data, key) for key in ("source", "pool", "test", "truth", "root")}
    named["submit.sample"] = config.submit.sample
    networks: dict[str, NetworkConfig] = {f"models.{position}": model for position, model in enumerate(config.models)}
    networks |= {f"embed.networks.{position}": network for position, network in enumerate(config.embed.networks)}
    networks |= {f"pseudo.voices.{position}": voice for position, voice in enumerate(config.pseudo.voices)}
    networks |= {f"ensemble.voices.{position}": voice for position, voice in enumerate(config.ensemble.voices)}
    networks["pretrain.distill.teacher"] = config.pretrain.distill.teacher
    for key, network in networks.items():
        if network.pretrained and network.pretrained.endswith(WEIGHT_SUFFIXES):
            named[f"{key}.pretrained"] = Path(network.pretrained)
    missing = [f"{key}: {path} does not exist" for key, path in named.items() if path is not None and not path.exists()]
    if missing:
        raise InputError(f"{counted(len(missing), 'file')} named in the config not found\n{listed(missing)}")
