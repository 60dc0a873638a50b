"""The moving average is timm's, and only faster."""

import torch

from trainers.backbones import build_backbone
from trainers.training_state import ModelEmaV3, MovingAverage


def test_the_moving_average_is_timms() -> None:
    network = build_backbone("test_resnet", channels=1, num_outputs=1, image_size=32).model
    ours, theirs = MovingAverage(network, decay=0.9), ModelEmaV3(network, decay=0.9, use_warmup=True)
    start = {key: value.clone() for key, value in network.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 8):
        with torch.no_grad():
            for value in network.state_dict().values():
                if value.is_floating_point():
                    value += torch.randn(value.shape, generator=generator)
                else:
                    value += 1  # batches that a normalisation has seen
        ours.update(network, step=step)
        theirs.update(network, step=step)
    for key, value in theirs.module.state_dict().items():
        assert torch.equal(ours.module.state_dict()[key], value), key
        assert not torch.equal(start[key], value), key
