"""Embeddings are the pooled features of a plain loop, whatever interrupts it, and are refused when they do not fit."""

import json
import resource
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from configs.errors import InputError
from configs.networks import FrozenNetworkConfig
from trainers import embedding, stopping, supervised
from trainers.checkpoints import Checkpoint, write_checkpoint
from trainers.embedding import FrozenNetwork, listed_network, open_embeddings, resized, trained_network
from trainers.scoring import load_scorer
from trainers.stages import Stage, StageOutcome, run_stage
from trainers.table import ImageTable, tidy_frame

NUM_IMAGES, SIZE = 23, 8
KilledAt = Callable[[int, Callable[[], object]], bool]


def table_of(num_rows: int = NUM_IMAGES, first: int = 0) -> ImageTable:
    numbers = range(first, first + num_rows)
    columns = {
        "id": [f"i{number}" for number in numbers],
        "path": [f"{number}.png" for number in numbers],
        "label": "nev",
        "split": "pool",
        "group": None,
        "fold": None,
        "sha256": [f"{number:064d}" for number in numbers],
        "width": SIZE,
        "height": SIZE,
    }
    return ImageTable(tidy_frame(pd.DataFrame(columns)), ["nev", "mel"], "mel")


def images_of(size: int = SIZE, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, size, size, channels)).astype(np.uint8)


def tiny_network() -> FrozenNetwork:
    """Linear features of 8 x 8 grey pixels, so that tests of interruptions take no time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 5)).eval()
    return FrozenNetwork("tiny", model, torch.full((1, 1, 1), 0.5), torch.full((1, 1, 1), 0.25), {"backbone": "tiny"})


def embed_tiny(out: Path, pixels: Any = None, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"image_size": SIZE, "batch_size": 3, "workers": 0, "shard_rows": 6}
    pixels = images_of() if pixels is None else pixels
    return embedding.run(tiny_network(), pixels, table_of(), out=out, **settings | changes)


def bytes_of(out: Path) -> bytes:
    return (out / "embeddings" / "tiny.npy").read_bytes()


class Killed(Exception):
    """Stands for what ends a process while it reads an image."""


class Watched:
    """Pixels that note which rows are read, and end it all at the row `until`."""

    def __init__(self, images: np.ndarray, *, until: int | None = None) -> None:
        self.images, self.until = images, until
        self.read: list[int] = []

    def __getitem__(self, row: int) -> np.ndarray:
        if row == self.until:
            raise Killed
        self.read.append(row)
        return self.images[row]


@pytest.mark.parametrize(("backbone", "channels"), [("test_resnet", 3), ("test_efficientnet", 1), ("small_resnet", 1)])
def test_features_are_those_of_a_plain_loop_over_the_timm_model(tmp_path: Path, backbone: str, channels: int) -> None:
    import timm  # after the operators that trainers.backbones declares

    torch.manual_seed(1)
    model = timm.create_model(backbone, in_chans=channels, num_classes=7).eval()  # with a classifier that is left out
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    config = FrozenNetworkConfig(backbone=backbone, name="x", pretrained=str(tmp_path / "weights.safetensors"))
    images = images_of(32, channels)
    network = listed_network(config, channels=channels, seed=0, device="cpu")
    facts = embedding.run(
        network, images, table_of(), image_size=32, batch_size=5, workers=0, out=tmp_path, shard_rows=10
    )
    features = open_embeddings(tmp_path, "x", table_of())
    mean, std = (np.mean(model.pretrained_cfg[key]) if channels == 1 else np.array(model.pretrained_cfg[key])
                 for key in ("mean", "std"))  # fmt: skip
    for row in range(NUM_IMAGES):
        inputs = torch.from_numpy(((images[row] / 255 - mean) / std).transpose(2, 0, 1)[None].astype(np.float32))
        with torch.no_grad():
            expected = model.forward_head(model.forward_features(inputs), pre_logits=True)[0]
        np.testing.assert_allclose(features[row], expected.numpy(), rtol=1e-4, atol=1e-5)
    assert features.dtype == np.float32
    assert features.shape == (facts["num_images"], facts["dim"]) == (NUM_IMAGES, model.num_features)


def test_resizing_is_bilinear_and_smooths_where_images_get_smaller() -> None:
    image = np.random.default_rng(0).random((20, 20)).astype(np.float32)
    inputs = torch.from_numpy(image)[None, None]
    larger = cv2.resize(image, (33, 33), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(resized(inputs, 33)[0, 0], larger, atol=1e-5)
    smaller = np.asarray(Image.fromarray(image).resize((9, 9), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(resized(inputs, 9)[0, 0], smaller, atol=1e-5)
    assert resized(inputs, 20) is inputs


def test_images_are_resized_before_the_network_sees_them(tmp_path: Path) -> None:
    config = FrozenNetworkConfig(backbone="test_resnet")
    network = listed_network(config, channels=1, seed=0, device="cpu")
    embedding.run(network, images_of(), table_of(), image_size=32, batch_size=23, workers=0, out=tmp_path)
    inputs = torch.nn.functional.interpolate(
        (torch.from_numpy(images_of()).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5, scale_factor=4, mode="bilinear"
    )
    with torch.no_grad():
        expected = network.model(inputs).numpy()
    np.testing.assert_allclose(open_embeddings(tmp_path, "test_resnet", table_of()), expected, rtol=1e-4, atol=1e-5)


def test_threads_that_read_change_no_byte(tmp_path: Path) -> None:
    embed_tiny(tmp_path / "whole")
    embed_tiny(tmp_path / "threads", threads=3)
    assert bytes_of(tmp_path / "threads") == bytes_of(tmp_path / "whole")
    with pytest.raises(Killed):
        embed_tiny(tmp_path / "killed", Watched(images_of(), until=16), threads=3)
    embed_tiny(tmp_path / "killed", threads=2)
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_a_kill_at_any_file_operation_changes_no_byte(tmp_path: Path, killed_at: KilledAt) -> None:
    embed_tiny(tmp_path / "whole")
    stage = Stage("embed/tiny", {}, embedding.outputs("tiny"), (embedding.resume_point("tiny"),))
    gone_on_from = set()

    def work(partial: Path) -> StageOutcome:
        progress = partial / embedding.resume_point("tiny")
        gone_on_from.add(json.loads(progress.read_text())["rows"] if progress.exists() else 0)
        return StageOutcome("done", embed_tiny(partial))

    for operation in count(1):
        run_dir = tmp_path / str(operation)
        if not killed_at(operation, lambda run_dir=run_dir: run_stage(run_dir, stage, work)):
            break
        run_stage(run_dir, stage, work)
        assert bytes_of(run_dir) == bytes_of(tmp_path / "whole"), operation
        assert not (run_dir / embedding.resume_point("tiny")).exists()
    assert operation > 20
    assert gone_on_from == {0, 6, 12, 18, NUM_IMAGES}


@pytest.mark.parametrize("shard", [6, 12, 18])
def test_a_killed_embedding_goes_on_from_its_last_shard_and_reads_no_image_twice(tmp_path: Path, shard: int) -> None:
    embed_tiny(tmp_path / "whole")
    killed, images = tmp_path / "killed", images_of()
    with pytest.raises(Killed):
        embed_tiny(killed, Watched(images, until=shard + 4))
    assert json.loads((killed / embedding.resume_point("tiny")).read_text())["rows"] == shard
    rest = Watched(images)
    embed_tiny(killed, rest)
    assert rest.read == list(range(shard, NUM_IMAGES))
    assert bytes_of(killed) == bytes_of(tmp_path / "whole")


def test_a_resume_from_a_wrong_row_would_show(tmp_path: Path) -> None:
    """The negative control of the tests above: were the noted rows not on the disk as noted, the bytes would differ."""
    embed_tiny(tmp_path / "whole")
    with pytest.raises(Killed):
        embed_tiny(tmp_path / "killed", Watched(images_of(), until=16))
    progress = tmp_path / "killed" / embedding.resume_point("tiny")
    path = tmp_path / "killed" / "embeddings" / "tiny.npy"
    path.write_bytes(path.read_bytes()[: 128 + 12 * 5 * 4] + bytes(3 * 5 * 4))  # and a batch that was never computed
    progress.write_text(json.dumps({"rows": 15, "seconds": 1.0}))
    embed_tiny(tmp_path / "killed")
    assert bytes_of(tmp_path / "killed") != bytes_of(tmp_path / "whole")


def test_a_signal_saves_the_batch_at_hand_and_the_next_run_goes_on_there(tmp_path: Path) -> None:
    embed_tiny(tmp_path / "whole")

    class Signalled(Watched):
        def __getitem__(self, row: int) -> np.ndarray:
            if row == 10:
                signal.raise_signal(signal.SIGTERM)
            return super().__getitem__(row)

    with stopping.stoppable(quietly=True), pytest.raises(stopping.Stopped):
        embed_tiny(tmp_path / "stopped", Signalled(images_of()))
    rest = Watched(images_of())
    embed_tiny(tmp_path / "stopped", rest)
    assert rest.read == list(range(12, NUM_IMAGES))  # row 10 is in the batch of 9 .. 11
    assert bytes_of(tmp_path / "stopped") == bytes_of(tmp_path / "whole")


def test_a_full_disk_is_an_error_with_the_files_name_and_costs_a_shard_at_most(
    tmp_path: Path, exit_code_of: Callable[[Callable[[], object]], int]
) -> None:
    embed_tiny(tmp_path / "whole")

    def fill() -> None:
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        for limit in range(0, len(bytes_of(tmp_path / "whole")), 37):
            folder = tmp_path / str(limit)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
            with pytest.raises(OSError) as caught:
                embed_tiny(folder)
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
            assert Path(caught.value.filename).name.startswith("tiny."), caught.value.filename
            embed_tiny(folder)  # there is room again
            assert bytes_of(folder) == bytes_of(tmp_path / "whole")

    assert exit_code_of(fill) == 0


def test_features_that_are_not_finite_are_refused_with_the_ids(tmp_path: Path) -> None:
    network = tiny_network()
    with torch.no_grad():
        network.model[1].weight[2, 0] = 0.4 * torch.finfo().max
        network.model[1].bias[2] = 0.5 * torch.finfo().max
    images = images_of()
    images[:, 0, 0] = 0  # normalised -2, so that the sum stays below the largest number
    images[[7, 8], 0, 0] = 255
    with pytest.raises(
        InputError, match=r"(?s)'tiny' gives .* not finite for 2 images of the first 9;.*- id 'i7'\n  - id 'i8'$"
    ):
        embedding.run(network, images, table_of(), image_size=SIZE, batch_size=3, workers=0, out=tmp_path)


def test_the_weights_of_a_training_give_its_features_with_or_without_a_classifier(
    tmp_path: Path, short_task: Callable[..., Any]
) -> None:
    final = supervised.run(short_task(tmp_path / "trained")).final
    scorer = load_scorer(final, device="cpu")
    inputs = torch.randn(4, 1, 16, 16)
    with torch.no_grad():
        expected = scorer.model.forward_head(scorer.model.forward_features(inputs), pre_logits=True)
        network = trained_network("own", final, device="cpu")
        assert torch.allclose(network.model(inputs), expected, atol=1e-6)
        assert not network.model.training

        weights = {key: value for key, value in scorer.model.state_dict().items() if not key.startswith("fc.")}
        kept = {key: scorer.facts[key] for key in ("backbone", "options", "channels", "mean", "std")}
        write_checkpoint(tmp_path / "pretrained" / "final", Checkpoint({"model": weights}, kept))
        without = trained_network("ssl", tmp_path / "pretrained" / "final", device="cpu")
        assert torch.equal(without.model(inputs), network.model(inputs))
    assert (network.mean == scorer.mean).all() and (network.std == scorer.std).all()
    assert network.facts["weights_sha256"] == without.facts["weights_sha256"]


def test_a_network_without_weights_is_random_by_the_seed_and_draws_nothing_from_others() -> None:
    config = FrozenNetworkConfig(backbone="test_resnet")
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    digests = [
        listed_network(config, channels=1, seed=seed, device="cpu").facts["weights_sha256"] for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("network", "image_size", "message"),
    [
        ({"backbone": "resnett"}, 32, "^embed: 'resnett' is not a timm model"),
        ({"backbone": "test_resnet", "options": {"global_pool": ""}}, 32, "should give one vector per image and gives"),
        ({"backbone": "test_vit", "options": {"img_size": 32}}, 40, "cannot take images of 40 x 40 pixels"),
        ({"backbone": "test_resnet", "pretrained": "packaged"}, 32, "^embed: no package carries weights"),
    ],
)
def test_networks_that_cannot_embed_are_refused_with_the_reason(
    tmp_path: Path, network: dict[str, Any], image_size: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        embedding.run(
            listed_network(FrozenNetworkConfig(**network), channels=1, seed=0, device="cpu"),
            images_of(32),
            table_of(),
            image_size=image_size,
            batch_size=4,
            workers=0,
            out=tmp_path,
        )


def test_embeddings_of_other_images_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tiny\.json: no such embeddings; run `rarefind embed CONFIG`"):
        open_embeddings(tmp_path, "tiny", table_of())
    embed_tiny(tmp_path)
    assert open_embeddings(tmp_path, "tiny", table_of()).shape == (NUM_IMAGES, 5)
    with pytest.raises(InputError, match="are not those of the table"):
        open_embeddings(tmp_path, "tiny", table_of(first=1))
    with pytest.raises(InputError, match=r"expected float32 of shape \(22, 5\), got float32 of shape \(23, 5\)"):
        open_embeddings(tmp_path, "tiny", table_of(NUM_IMAGES - 1))
    path = tmp_path / "embeddings" / "tiny.npy"
    whole = path.read_bytes()
    np.save(path, np.zeros((NUM_IMAGES, 5)))
    with pytest.raises(InputError, match="got float64"):
        open_embeddings(tmp_path, "tiny", table_of())
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="damaged"):
        open_embeddings(tmp_path, "tiny", table_of())
    path.unlink()
    with pytest.raises(InputError, match=r"tiny\.npy: no such embeddings"):
        open_embeddings(tmp_path, "tiny", table_of())
