"""Rates that are measured: they follow the work, and add up as they should."""

from pathlib import Path

import numpy as np
import pytest

from configs.errors import InputError
from configs.schema import AugmentConfig, ComputeConfig, DataConfig, ModelConfig, TrainConfig, ViewConfig
from trainers import speed
from trainers.digits import DigitsSplit, write_digits

CPU = ComputeConfig(device="cpu", workers=0)
PIXELS = np.random.default_rng(0).integers(0, 255, (32, 16, 16, 1), dtype=np.uint8)


def test_decoding_gives_pixels_and_names_what_cannot_be_read(tmp_path: Path) -> None:
    write_digits(tmp_path, split=DigitsSplit(train=(4, 8), pool=(0, 0), test=(1, 1)))
    data = DataConfig(source=tmp_path / "table.csv", image_size=16, channels=1)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    rate, pixels = speed.decoding_rate(data, [("source", name) for name in [*names, "gone.png"]], threads=1)
    assert pixels.shape == (len(names), 16, 16, 1)
    assert rate > 0
    with pytest.raises(InputError, match=r"gone\.png"):
        speed.decoding_rate(data, [("source", "gone.png")], threads=1)


def test_training_is_measured_from_its_own_log() -> None:
    train = TrainConfig(batch_size=16, steps=5, ema_decay=0.9)
    rate = speed.training_rate(
        ModelConfig(backbone="test_resnet"),
        train,
        AugmentConfig(policy="light"),
        CPU,
        PIXELS,
        num_outputs=3,
        seconds=0.5,
    )
    assert 1 < rate < 1e6


def test_two_views_take_longer_than_one_and_the_number_of_images_does_not_matter() -> None:
    scorer = speed.untrained_scorer(
        ModelConfig(backbone="test_resnet"), channels=1, num_outputs=1, image_size=16, device="cpu"
    )

    def rate(*views: str) -> float:
        chosen = [ViewConfig(view=view) for view in views]
        return speed.scoring_rate(scorer, PIXELS, compute=CPU, batch_size=64, views=chosen, seconds=0.6)

    assert rate("identity", "horizontal_flip", "rotate90", "rotate180") < 0.6 * rate("identity")


def test_decoding_adds_to_the_networks_on_a_cpu_and_hides_behind_them_beside_a_gpu() -> None:
    assert speed.combined_rate([100.0, 50.0], None, overlapped=False) == pytest.approx(1 / (0.01 + 0.02))
    assert speed.combined_rate([100.0, 50.0], 100.0, overlapped=False) == pytest.approx(1 / 0.04)
    assert speed.combined_rate([100.0, 50.0], 100.0, overlapped=True) == pytest.approx(1 / 0.03)
    assert speed.combined_rate([100.0, 50.0], 10.0, overlapped=True) == pytest.approx(10.0)
