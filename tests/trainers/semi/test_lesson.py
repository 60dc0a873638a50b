"""Semi-supervised training: its loss by brute force, what it learns from a pool, exact resumes, options that act."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import expit
from sklearn.metrics import average_precision_score

from configs.errors import InputError
from configs.schema import AugmentConfig, ComputeConfig, ModelConfig, TrainConfig
from configs.semi import SemiConfig
from trainers import supervised
from trainers.backbones import build_backbone
from trainers.fold_task import FoldData, FoldTask, SemiData
from trainers.scoring import load_scorer, score_rows
from trainers.semi import running
from trainers.semi.columns import widen_classifier
from trainers.semi.lesson import TeacherAndPool
from trainers.semi.targets import Targets

SIZE = 16
LABELLED, POOL, UNSEEN = np.arange(40), np.arange(40, 440), np.arange(440, 700)


def toy_images(num_classes: int, contrast: int = 25) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a corner that is brighter by `contrast` and tells the class; one row in five is of the last class."""
    rng = np.random.default_rng(0)
    rows = np.arange(700)
    truth = np.where(rows % 5 == 0, num_classes - 1, rows % (num_classes - 1)).astype(np.int64)
    images = rng.integers(0, 256 - contrast, (700, SIZE, SIZE, 1)).astype(np.uint8)
    for row, target in enumerate(truth):
        if target:
            images[row, 8 * (target - 1) : 8 * target, :8] += contrast
    return images, truth


def toy_task(
    out: Path, semi: dict[str, Any] | None, *, num_classes: int = 2, contrast: int = 25, **changes: Any
) -> FoldTask:
    images, truth = toy_images(num_classes, contrast)
    settings = {"steps": 30, "batch_size": 16, "warmup_steps": 4, "lr": 3e-3, "checkpoint_every_steps": 7}
    config = None if semi is None else SemiConfig.model_validate({"batch_size": 24} | semi)
    task = FoldTask(
        model=ModelConfig(backbone="small_resnet"),
        train=TrainConfig.model_validate(
            settings | {"log_every_steps": 10, "ema_decay": 0.9} | changes.pop("train", {})
        ),
        augment=AugmentConfig(policy="light", horizontal_flip=False, vertical_flip=False, quarter_turns=False),
        compute=ComputeConfig(device="cpu", workers=0),
        data=FoldData(LABELLED, truth[LABELLED], np.arange(0), np.arange(0), 1 if num_classes == 2 else num_classes),
        pixels=images,
        image_size=SIZE,
        channels=1,
        seed=5,
        out=out,
        semi=None if config is None else SemiData(POOL, config, changes.pop("features", None)),
    )
    return replace(task, **changes)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "final" / "model.safetensors")


def same(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def steps_of(task: FoldTask, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What every step was given and what its loss was, with the outputs of network and teacher."""
    taken: list[dict[str, Any]] = []
    real = supervised.take_step

    def watched(state: Any, train: Any, inputs: Any, targets: Any, loss: Any) -> Any:
        kept: dict[str, Any] = {"inputs": inputs, "packed": targets, "step": state.step}

        def noting(outputs: Any, packed: Any) -> Any:
            kept["outputs"] = outputs.detach().clone()
            return loss(outputs, packed)

        kept["loss"] = float(real(state, train, inputs, targets, noting))
        taken.append(kept)
        return torch.tensor(kept["loss"])

    with monkeypatch.context() as patched:
        patched.setattr(supervised, "take_step", watched)
        supervised.run(task)
    return taken


def test_the_loss_is_the_labelled_mean_plus_the_ramped_mean_of_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    semi = {"loss_weight": 0.7, "ramp_up": 0.5}
    task = toy_task(tmp_path, semi, train={"steps": 8, "loss": {"name": "cross_entropy"}, "warmup_steps": 1})
    taken = steps_of(task, monkeypatch)
    # balanced batches of 8 positives in 40 rows: the network's logits are ln 4 above those at the labels' shares
    for kept in taken:
        packed, outputs = kept["packed"].double().numpy(), kept["outputs"].double().numpy()[:, 0]
        target, is_pool = packed[:, 0], packed[:, 6] == 1
        assert is_pool.sum() == 24 and (~is_pool).sum() == 16 and set(target[~is_pool]) == {0.0, 1.0}

        def mean_loss(logits: np.ndarray, targets: np.ndarray) -> float:
            p = expit(logits)
            return float(-(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean())

        of_labels = mean_loss(outputs[~is_pool], target[~is_pool])
        of_pool = mean_loss(outputs[is_pool] - np.log(4), target[is_pool])
        weight = 0.7 * (np.exp(-5 * (1 - kept["step"] / 4) ** 2) if kept["step"] < 4 else 1.0)
        assert kept["loss"] == pytest.approx(of_labels + weight * of_pool, rel=1e-4)


def test_targets_are_the_averages_opinion_of_weak_views_at_the_pools_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first step the average is the network itself, and without augmentation both views are the image."""
    task = toy_task(tmp_path, {}, train={"steps": 1, "warmup_steps": 0}, augment=AugmentConfig(policy="none"))
    monkeypatch.setattr(supervised, "_policy", lambda task, name, purpose: lambda image, index, draw: image.copy())
    (kept,) = steps_of(task, monkeypatch)
    network = build_backbone("small_resnet", channels=1, num_outputs=1).model
    torch.manual_seed(supervised.derive_seed(5, "weights"))
    network = build_backbone("small_resnet", channels=1, num_outputs=1, image_size=SIZE).model.eval()
    is_pool = kept["packed"][:, 6] == 1
    with torch.no_grad():
        logits = network(kept["inputs"][is_pool])[:, 0].double().numpy()
    np.testing.assert_allclose(kept["packed"][is_pool, 0], expit(logits - np.log(4)), rtol=1e-4)


def test_the_pool_helps_where_labels_are_few(tmp_path: Path) -> None:
    truth = toy_images(2)[1]
    aps, means = {}, {}
    for name, semi in {"labels": None, "semi": {"align": True}}.items():
        task = toy_task(
            tmp_path / name, semi, train={"steps": 300, "ema_decay": 0.97, "loss": {"name": "cross_entropy"}}
        )
        scorer = load_scorer(supervised.run(task).final, device="cpu")
        logits = score_rows(scorer.model, task.pixels, UNSEEN, mean=scorer.mean, std=scorer.std, batch_size=64)
        aps[name] = average_precision_score(truth[UNSEEN], logits[:, 0])
        means[name] = float(expit(logits - scorer.log_odds_shift).mean())
    assert aps["semi"] > aps["labels"] + 0.02, aps
    assert means["semi"] == pytest.approx(0.2, abs=0.08)


OPTIONS: dict[str, dict[str, Any]] = {
    "hard": {"targets": "hard"},
    "fixed": {"targets": "hard", "thresholds": "fixed", "threshold": 0.51},
    "aligned": {"align": True},
    "estimated": {"prevalence": "estimate"},
    "balanced head": {"balanced_head": True},
}


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_trains_resumes_exactly_and_changes_what_is_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, num_classes: int
) -> None:
    monkeypatch.setattr(running, "WINDOW", 96)
    monkeypatch.setattr(running, "ESTIMATE_EVERY", 2)
    # After so few steps EM finds none of a class, which changes nothing; what it does find has tests of its own.
    monkeypatch.setattr(running, "estimate_prevalence_em", lambda values, *_, **__: _some_estimate(values))
    options = {"num_classes": num_classes, "contrast": 100, "train": {"loss": {"name": "cross_entropy"}}}
    whole = supervised.run(toy_task(tmp_path / "whole", OPTIONS[name], **options))  # type: ignore[arg-type]
    supervised.run(toy_task(tmp_path / "plain", {}, **options))  # type: ignore[arg-type]
    assert not same(tmp_path / "whole", tmp_path / "plain")
    assert weights(tmp_path / "whole").keys() == weights(tmp_path / "plain").keys()
    real = supervised.take_step

    def stopping(state: Any, *arguments: Any) -> Any:
        if state.step == 17:  # between two resume points and two rows of the curves
            raise KeyboardInterrupt
        return real(state, *arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(supervised, "take_step", stopping)
        supervised.run(toy_task(tmp_path / "stopped", OPTIONS[name], **options))  # type: ignore[arg-type]
    supervised.run(toy_task(tmp_path / "stopped", OPTIONS[name], **options))  # type: ignore[arg-type]
    assert same(tmp_path / "whole", tmp_path / "stopped")
    curves = [pd.read_csv(tmp_path / run / "curves.csv").drop(columns="seconds") for run in ("whole", "stopped")]
    pd.testing.assert_frame_equal(*curves)
    assert curves[0]["mask_rate"].between(0, 1).all()
    taught = curves[0][["positive_rate", "agreement"]][curves[0]["mask_rate"] > 0]
    assert len(taught) and ((taught >= 0) & (taught <= 1 + 1e-6)).all(axis=None)
    assert whole.facts["num_outputs"] == (1 if num_classes == 2 else 3)


def _some_estimate(probabilities: np.ndarray) -> float | np.ndarray:
    mean = probabilities.mean(axis=0)
    return float(mean) if probabilities.ndim == 1 else mean


def test_a_resume_without_the_running_averages_would_go_astray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above: thresholds depend on what is remembered."""
    real_step, real_resume = supervised.take_step, supervised.resume

    def stopping(state: Any, *arguments: Any) -> Any:
        if state.step == 17:
            raise KeyboardInterrupt
        return real_step(state, *arguments)

    def forgetful(state: Any, folder: Path) -> list[str]:
        problems: list[str] = real_resume(state, folder)
        state.running.clear()
        return problems

    supervised.run(toy_task(tmp_path / "whole", OPTIONS["aligned"]))
    with monkeypatch.context() as patched:
        patched.setattr(supervised, "resume", forgetful)
        with monkeypatch.context() as inner, pytest.raises(KeyboardInterrupt):
            inner.setattr(supervised, "take_step", stopping)
            supervised.run(toy_task(tmp_path / "stopped", OPTIONS["aligned"]))
        supervised.run(toy_task(tmp_path / "stopped", OPTIONS["aligned"]))
    assert not same(tmp_path / "whole", tmp_path / "stopped")


def test_loader_processes_change_nothing(tmp_path: Path) -> None:
    short = {"train": {"steps": 6, "warmup_steps": 1}}
    supervised.run(toy_task(tmp_path / "none", {}, **short))  # type: ignore[arg-type]
    supervised.run(toy_task(tmp_path / "two", {}, compute=ComputeConfig(device="cpu", workers=2), **short))  # type: ignore[arg-type]
    assert same(tmp_path / "none", tmp_path / "two")


def test_the_balanced_head_sees_every_class_equally_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"steps": 40, "sampler": {"name": "natural"}, "warmup_steps": 1}
    taken = steps_of(toy_task(tmp_path, {"balanced_head": True}, train=settings), monkeypatch)
    counted = np.zeros(2)
    for kept in taken:
        packed = kept["packed"].numpy()
        labelled = packed[:, 6] == 0
        for label in (0, 1):
            counted[label] += packed[labelled & (packed[:, 1] == label), 4].sum()
    assert counted[0] == pytest.approx(counted[1], rel=0.05)
    assert taken[0]["outputs"].shape[1] == 2
    scorer = load_scorer(tmp_path / "final", device="cpu")
    np.testing.assert_allclose(scorer.log_odds_shift, np.log(4))  # as from balanced batches


def test_clusters_of_the_background_are_learnt_apart_and_do_not_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = supervised.run(toy_task(tmp_path / "first", None)).final
    semi = {"background_classes": 4}
    taken = steps_of(toy_task(tmp_path / "split", semi, features=features, train={"steps": 60}), monkeypatch)
    clusters = np.load(tmp_path / "split" / "background.npy")
    truth = toy_images(2)[1]
    assert clusters.shape == (440,) and set(clusters[:40][truth[:40] == 1]) == {-1}
    assert set(clusters[40:]) == {0, 1, 2, 3}

    def right(kept: dict[str, Any]) -> float:
        known = kept["packed"][:, -1] >= 0
        told = kept["outputs"][known][:, 1:].argmax(dim=1)
        return float((told == kept["packed"][known, -1]).float().mean())

    assert np.mean([right(kept) for kept in taken[-5:]]) > np.mean([right(kept) for kept in taken[:5]]) + 0.15
    assert weights(tmp_path / "split")["head.fc.weight"].shape[0] == 1


def test_more_outputs_leave_what_a_network_gave_before() -> None:
    network = build_backbone("test_resnet", channels=1, num_outputs=2).model.eval()
    images = torch.rand(3, 1, 32, 32)
    before = network(images).detach()
    assert widen_classifier(network, 3, "test_resnet") == "fc"
    after = network(images)
    assert after.shape == (3, 5)
    torch.testing.assert_close(after[:, :2].detach(), before)


def test_a_network_without_one_linear_classifier_is_refused() -> None:
    network = torch.nn.Module()
    network.get_classifier = torch.nn.Identity  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"'odd' ends in a Identity and not in one linear layer, .*semi.balanced_head"):
        widen_classifier(network, 1, "odd")


def test_what_was_taught_during_the_ramp_raises_no_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "ALARM_ROWS", 40)

    def alarm(ramp_up: float, out: str) -> str | None:
        targets = lambda self, opinion, state, step: Targets(  # noqa: E731
            torch.tensor([0.0, 1.0] if step < 20 else [0.8, 0.2]).expand(len(opinion), 2), torch.ones(len(opinion))
        )
        monkeypatch.setattr(TeacherAndPool, "_own_targets", targets)
        monkeypatch.setattr(TeacherAndPool, "_to_pool", torch.zeros(1), raising=False)
        task = toy_task(tmp_path / out, {"ramp_up": ramp_up}, train={"log_every_steps": 5, "steps": 40})
        told: str | None = supervised.run(task).facts["alarm"]
        return told

    assert alarm(0.5, "ramped") is None
    assert "1.000 of what the pool teaches" in str(alarm(0.0, "at once"))


def test_without_augmentation_the_teacher_sees_images_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    real = supervised.build_policy
    monkeypatch.setattr(supervised, "build_policy", lambda name, **rest: made.append(name) or real(name, **rest))
    short = {"steps": 1, "warmup_steps": 0}
    supervised.run(toy_task(tmp_path / "none", {}, train=short, augment=AugmentConfig(policy="none")))
    supervised.run(toy_task(tmp_path / "light", {}, train=short))
    assert made == ["none", "none", "light", "light"]
