import numpy as np
import pytest
import torch

from augment.mixing import mix_batch

BATCH = 12


def constant_images(height: int = 9, width: int = 7) -> torch.Tensor:
    """Image i has the value i everywhere, so that pixels tell where they come from."""
    return torch.arange(BATCH, dtype=torch.float32).view(-1, 1, 1, 1).expand(BATCH, 2, height, width).clone()


def mixed(seed: int, *, mixup: float = 0.0, cutmix: float = 0.0, probability: float = 1.0, targets=None):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.eye(BATCH) if targets is None else targets
    return mix_batch(
        constant_images(),
        targets,
        mixup_alpha=mixup,
        cutmix_alpha=cutmix,
        probability=probability,
        generator=generator,
    )


def test_mixup_mixes_pixels_and_targets_by_the_same_share():
    for seed in range(20):
        images, targets = mixed(seed, mixup=0.4)
        expected = targets @ torch.arange(BATCH, dtype=torch.float32)
        assert torch.allclose(images, expected.view(-1, 1, 1, 1).expand_as(images), atol=1e-5)
        assert torch.allclose(targets.sum(dim=1), torch.ones(BATCH))


def test_cutmix_targets_are_the_shares_of_the_pixels():
    boxes = set()
    for seed in range(60):
        images, targets = mixed(seed, cutmix=1.0)
        for number in range(BATCH):
            pixels = images[number].flatten().long()
            shares = torch.bincount(pixels, minlength=BATCH) / len(pixels)
            assert torch.allclose(targets[number], shares, atol=1e-6)
        pasted = images[:, 0] != torch.arange(BATCH).view(-1, 1, 1)
        box = pasted.any(dim=0)
        assert box.sum() == box.any(dim=0).sum() * box.any(dim=1).sum(), "one rectangle for the whole batch"
        boxes.add(int(box.sum()))
    assert len(boxes) > 10


def test_the_share_follows_the_beta_distribution():
    shares = [float(mixed(seed, mixup=2.0)[1].diagonal().max()) for seed in range(400)]  # fixed points show 1
    shares = np.array([share for share in shares if share < 0.999])
    assert shares.mean() == pytest.approx(0.5, abs=0.04)
    assert shares.std() == pytest.approx(0.05**0.5, abs=0.03)  # of Beta(2, 2); of Beta(1, 1) it is 0.29


def test_soft_and_binary_targets_are_mixed_too():
    soft = torch.linspace(0.1, 0.9, BATCH)
    _, targets = mixed(3, mixup=1.0, targets=soft)
    _, one_hot = mixed(3, mixup=1.0)
    assert targets.shape == (BATCH,)
    assert torch.allclose(targets, one_hot @ soft, atol=1e-6)


def test_probability_is_the_share_of_mixed_batches_and_both_methods_get_their_turn():
    def kind(seed: int, probability: float) -> str:
        images, _ = mixed(seed, mixup=1.0, cutmix=1.0, probability=probability)
        if torch.equal(images, constant_images()):
            return "none"
        return "cutmix" if torch.equal(images, images.round()) else "mixup"

    kinds = [kind(seed, 0.5) for seed in range(200)]
    assert 70 <= kinds.count("none") <= 130 and kinds.count("cutmix") >= 25 and kinds.count("mixup") >= 25
    assert {kind(seed, 0.0) for seed in range(20)} == {"none"}
    assert mixed(0, probability=1.0)[1].equal(torch.eye(BATCH)), "both alphas 0: off"


def test_inputs_are_left_alone_and_a_seed_repeats_itself():
    images, targets = constant_images(), torch.eye(BATCH)
    for mixup, cutmix in ((1.0, 0.0), (0.0, 1.0)):
        results = [
            mix_batch(
                images,
                targets,
                mixup_alpha=mixup,
                cutmix_alpha=cutmix,
                probability=1.0,
                generator=torch.Generator().manual_seed(5),
            )
            for _ in range(2)
        ]
        assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
        assert not torch.equal(results[0][0], images)
        assert torch.equal(images, constant_images()) and torch.equal(targets, torch.eye(BATCH))


def test_every_call_takes_as_much_from_the_generator():
    states = []
    for mixup, probability in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0)):
        generator = torch.Generator().manual_seed(1)
        mix_batch(
            constant_images(),
            torch.eye(BATCH),
            mixup_alpha=mixup,
            cutmix_alpha=0.0,
            probability=probability,
            generator=generator,
        )
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])


def test_class_numbers_as_targets_are_refused():
    with pytest.raises(ValueError, match=r"float targets.*torch\.int64"):
        mixed(0, mixup=1.0, targets=torch.arange(BATCH))
