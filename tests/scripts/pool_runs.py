"""Configs of tiny runs that train on the pool, and what their tests look at."""

from pathlib import Path
from typing import Any

from configs.schema import RunConfig
from tests.scripts.tiny_runs import tiny_config
from trainers.digits import DigitsSplit

DIGITS = DigitsSplit(train=(12, 60), pool=(4, 20), test=(6, 30))
PSEUDO: dict[str, Any] = {"pool": {"arm": "pseudo"}, "pseudo": {"batch_size": 8, "min_precision": 0.0}}
SEMI: dict[str, Any] = {"pool": {"arm": "semi"}, "semi": {"batch_size": 8}}
PRETRAIN = {"steps": 6, "batch_size": 12, "warmup_steps": 1, "log_every_steps": 3, "watch_every_steps": 3}


def config_of(folder: Path, out: Path, **changes: Any) -> RunConfig:
    """The run on the digits in `folder`, by default with the arm `pretrained`."""
    own = {"pool": {"arm": "pretrained"}, "pretrain": {**PRETRAIN, "min_spread": 0.0}}
    return tiny_config(folder, out, own, changes)


def weights(run_dir: Path, folder: str) -> bytes:
    """The weights of a network, by its folder below that of the run."""
    return (run_dir / folder / "final" / "model.safetensors").read_bytes()
