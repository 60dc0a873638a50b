"""Weights that timm fetches: quick to fail without a network, and never in the way of a cache, a proxy or a mirror."""

import logging
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from configs.errors import InputError
from trainers import weights_hub
from trainers.backbones import build_backbone
from trainers.weights_hub import is_reachable

COMMIT = "0" * 40
ASK = "timm.models._builder.load_state_dict_from_hf"


@pytest.fixture
def listening() -> Iterator[int]:
    """A port that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed() -> int:
    """A port that refuses them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cache and no proxies of this machine, and little patience."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(weights_hub, "REACH_SECONDS", 0.3)


def hub_at(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """What HF_ENDPOINT is at the start of a process."""
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


def client_that_fails(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The hub's client is asked for nothing but a note of it."""
    asked: list[bool] = []

    def fail(*args: object, **kwargs: object) -> None:
        asked.append(True)
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")  # as for each of its retries
        raise OSError("the client has no network")

    monkeypatch.setattr(ASK, fail)
    return asked


def refused(name: str) -> str:
    with pytest.raises(InputError, match=f"weights of '{name}' could not be fetched") as caught:
        build_backbone(name, channels=3, num_outputs=1, pretrained="timm")
    return str(caught.value)


def test_a_place_is_reachable_if_one_of_its_addresses_takes_connections(listening: int, closed: int) -> None:
    assert is_reachable([("127.0.0.1", closed), ("127.0.0.1", listening)], seconds=10)
    assert is_reachable([("localhost", listening)], seconds=10), "which may have an IPv6 address, too"
    assert not is_reachable([("127.0.0.1", closed)], seconds=0.2)
    assert not is_reachable([("nowhere.invalid", 443)], seconds=0.2)


def test_one_that_comes_up_in_time_is_reachable(closed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_hub, "PAUSE_SECONDS", 0.01)
    real, tries = weights_hub._connects, list[bool]()
    monkeypatch.setattr(
        weights_hub, "_connects", lambda places, left: tries.append(real(places, left)) or len(tries) > 2
    )
    assert is_reachable([("127.0.0.1", closed)], seconds=30) and tries == [False] * 3


@pytest.mark.parametrize(("name", "is_offered"), [("resnet18", False), ("tf_efficientnet_lite0", True)])
def test_without_a_network_the_client_is_not_asked_and_what_there_is_is_offered(
    name: str, is_offered: bool, closed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_at(monkeypatch, closed)
    asked = client_that_fails(monkeypatch)
    message = refused(name)
    assert f"no connection to 127.0.0.1:{closed} within" in message and "a local .safetensors or .pth file" in message
    assert ("`pretrained: packaged`" in message) is is_offered
    assert not asked


def test_a_hub_that_can_be_reached_is_left_to_its_client_whose_retries_are_quiet(
    listening: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub_at(monkeypatch, listening)
    asked = client_that_fails(monkeypatch)
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    monkeypatch.setattr(logger, "propagate", True)
    assert "(the client has no network)" in refused("resnet18")
    assert asked and caplog.records == [] and logger.level == level


@pytest.mark.parametrize("kind", ["http", "all"])
def test_behind_a_proxy_it_is_the_proxy_that_must_be_reached(
    kind: str, listening: int, closed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_at(monkeypatch, closed)
    asked = client_that_fails(monkeypatch)
    for port, is_asked in ((closed, False), (listening, True)):
        monkeypatch.setattr(urllib.request, "getproxies", lambda port=port: {kind: f"socks5://127.0.0.1:{port}"})
        refused("resnet18")
        assert bool(asked) == is_asked
    asked.clear()
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {kind: "proxy:with-no-port"})
    refused("resnet18")
    assert asked, "what cannot be told is left to the client"


@pytest.mark.parametrize("name", ["test_resnet", "hf-hub:timm/test_resnet.r160_in1k"])
def test_weights_in_the_cache_need_no_network(
    name: str, closed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the hub's own client, which asks the network first and looks into its cache then."""
    hub_at(monkeypatch, closed)
    own = build_backbone("test_resnet", channels=3, num_outputs=1000).model.state_dict()
    repository = tmp_path / "models--timm--test_resnet.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    save_file(own, snapshot / "model.safetensors")
    if name.startswith("hf-hub"):
        (snapshot / "config.json").write_text('{"architecture": "test_resnet", "num_classes": 1000}')
    loaded = build_backbone(name, channels=3, num_outputs=1000, pretrained="timm").model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in own.items())


def test_offline_mode_is_not_waited_in(closed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_at(monkeypatch, closed)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(weights_hub, "REACH_SECONDS", 1e6)
    refused("resnet18")


@pytest.mark.parametrize("is_slow", [True, False])
def test_what_is_waited_for_is_told_only_when_it_takes_long(
    is_slow: bool, listening: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        if is_slow:
            asked.wait(30)
        raise OSError("no network")

    hub_at(monkeypatch, listening)
    asked, said = threading.Event(), list[str]()
    monkeypatch.setattr(weights_hub, "tell", lambda words: (said.append(words), asked.set()))
    monkeypatch.setattr(weights_hub, "SLOW_SECONDS", 0.01 if is_slow else 30.0)
    monkeypatch.setattr(ASK, unreachable)
    refused("resnet18")
    assert ["fetching the weights of 'resnet18'" in words for words in said] == ([True] if is_slow else [])
