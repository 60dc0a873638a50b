"""Where the work runs: what is asked for and not there is refused, and several processes share a batch evenly."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from configs.errors import InputError
from configs.load import load_config
from configs.schema import ComputeConfig
from trainers import devices
from trainers.devices import device_type, launch, num_devices, num_workers, precision
from trainers.stopping import Stopped, deferred


@pytest.mark.parametrize(("threads", "workers"), [(1, 0), (2, 1), (16, 1)])
def test_a_cpu_trains_in_one_process_with_at_most_one_loader_process(
    monkeypatch: pytest.MonkeyPatch, threads: int, workers: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    compute = ComputeConfig(device="cpu")
    assert (device_type(compute), precision(compute), num_workers(compute, batch_bytes=1)) == ("cpu", "no", workers)
    assert num_devices(compute, batch_size=64) == 1
    assert num_workers(ComputeConfig(device="cpu", workers=3), batch_bytes=1) == 3


def test_no_loader_process_without_room_for_its_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    compute = ComputeConfig(device="cpu")
    assert num_workers(compute, batch_bytes=2**60) == 0
    monkeypatch.setattr(devices, "SHARED_MEMORY", str(tmp_path / "none"))
    assert num_workers(compute, batch_bytes=1) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, so asking for one is no mistake")
def test_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(InputError, match=r"compute\.device is 'cuda', but torch sees no such device"):
        device_type(ComputeConfig(device="cuda"))


def test_half_precision_on_a_cpu_is_refused() -> None:
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        precision(ComputeConfig(device="cpu", precision="fp16"))


@pytest.mark.parametrize(("gpus", "used"), [(1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (8, 8)])
def test_as_many_gpus_as_share_a_batch_evenly(monkeypatch: pytest.MonkeyPatch, gpus: int, used: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert num_devices(ComputeConfig(), batch_size=64) == used


def test_a_batch_that_the_devices_asked_for_cannot_share_is_refused() -> None:
    with pytest.raises(InputError, match="batch_size 15 cannot be shared evenly by 2 devices; set it to 16"):
        num_devices(ComputeConfig(device="cpu", num_devices=2), batch_size=15)


def test_a_mistake_in_one_of_several_processes_is_told_as_from_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such config file"):
        launch(load_config, (tmp_path / "none.yaml",), num_processes=2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_how_one_of_several_processes_ended_is_told(number: signal.Signals) -> None:
    """It is a stop when it was told to end and did, and otherwise a cause."""
    with pytest.raises((Stopped, InputError)) as caught:
        launch(raise_in_one, (number,), num_processes=2)
    if number == signal.SIGTERM:
        assert isinstance(caught.value, Stopped) and caught.value.exit_code == 143
    else:
        assert str(caught.value).startswith("one of the devices: its process was killed (SIGKILL), most often because")
        assert "set compute.num_devices to less than 2" in str(caught.value)


def test_when_one_is_told_to_end_the_others_save_for_as_long_as_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impatient(self: Any, seconds: float) -> None:
        for process in self.processes:
            process.join(seconds / 100)

    monkeypatch.setattr(multiprocessing.ProcessContext, "_join_procs_with_timeout", impatient)  # torch's 30 are 0.3
    with pytest.raises(Stopped):
        launch(save_slowly, (tmp_path / "saved",), num_processes=2)
    assert (tmp_path / "saved").exists()


def save_slowly(path: Path) -> None:
    if os.environ["RANK"] == "1":
        signal.raise_signal(signal.SIGTERM)
    with suppress(Stopped), deferred():
        time.sleep(2)
        path.touch()


def raise_in_one(number: int) -> None:
    if os.environ["RANK"] == "1":
        signal.raise_signal(number)
    time.sleep(600)
