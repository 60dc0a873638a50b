"""Checkpoints verify, survive corruption by falling back, and hold everything an optimiser needs."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from configs.errors import InputError
from trainers.checkpoints import (
    Checkpoint,
    CorruptCheckpoint,
    flatten_optimizer,
    load_latest,
    read_checkpoint,
    save_latest,
    unflatten_optimizer,
    write_checkpoint,
)
from trainers.provenance import file_digest


def checkpoint_of(value: float) -> Checkpoint:
    strided = torch.full((2, 3, 4, 4), value).to(memory_format=torch.channels_last)
    return Checkpoint({"model": {"weight": strided, "steps": torch.tensor(7)}}, {"step": int(value)})


def test_tensors_and_state_come_back(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "final", checkpoint_of(3.0))
    back = read_checkpoint(tmp_path / "final")
    assert torch.equal(back.tensors["model"]["weight"], torch.full((2, 3, 4, 4), 3.0))
    assert back.tensors["model"]["steps"].dtype == torch.int64
    assert back.state == {"step": 3}
    write_checkpoint(tmp_path / "final", checkpoint_of(4.0))
    assert read_checkpoint(tmp_path / "final").state == {"step": 4}
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_one_flipped_bit_in_any_file_is_noticed(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path / "final", checkpoint_of(3.0))
    path = tmp_path / "final" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptCheckpoint, match=str(tmp_path)):
        read_checkpoint(tmp_path / "final")


def test_the_newest_verified_checkpoint_is_used_and_the_bad_one_is_named(tmp_path: Path) -> None:
    save_latest(tmp_path, 1, checkpoint_of(1.0))
    save_latest(tmp_path, 2, checkpoint_of(2.0))
    (tmp_path / "step-00000002" / "model.safetensors").unlink()
    newest, problems = load_latest(tmp_path)
    assert newest is not None
    assert newest.state == {"step": 1}
    assert len(problems) == 1
    assert "step-00000002/model.safetensors" in problems[0]


def test_no_checkpoint_is_not_a_problem(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "none") == (None, [])


def test_saving_points_to_the_new_checkpoint_and_keeps_the_one_before(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_latest(tmp_path, step, checkpoint_of(float(step)))
    assert json.loads((tmp_path / "latest.json").read_text()) == {"folder": "step-00000003"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.json", "step-00000002", "step-00000003"]


def test_a_save_takes_away_what_kills_left_and_damaged_checkpoints_of_later_steps(tmp_path: Path) -> None:
    for step in (2, 6):
        save_latest(tmp_path, step, checkpoint_of(float(step)))
    (tmp_path / "step-00000006" / "manifest.json").unlink()
    (tmp_path / ".step-00000004.0123abcd.tmp").mkdir()
    (tmp_path / ".latest.json.0123abcd.tmp").write_text("{")
    save_latest(tmp_path, 4, checkpoint_of(4.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.json", "step-00000002", "step-00000004"]
    assert load_latest(tmp_path)[1] == []


def test_a_flipped_bit_in_any_byte_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "final", checkpoint_of(3.0))
    path = tmp_path / "final" / "manifest.json"
    whole = path.read_bytes()
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 1 << position % 8
        path.write_bytes(bytes(data))
        with pytest.raises(CorruptCheckpoint, match=str(tmp_path)):
            read_checkpoint(tmp_path / "final")


@pytest.mark.parametrize("manifest", ["", "{", "[]", "{}", "null", '{"state.json": 3}', '{"state.json": {"size": 3}}'])
def test_a_manifest_that_was_cut_or_is_none_is_noticed(tmp_path: Path, manifest: str) -> None:
    write_checkpoint(tmp_path / "final", checkpoint_of(3.0))
    (tmp_path / "final" / "manifest.json").write_text(manifest)
    with pytest.raises(CorruptCheckpoint, match=r"manifest\.json"):
        read_checkpoint(tmp_path / "final")


def test_a_name_in_the_manifest_that_no_file_can_have_is_noticed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "final", checkpoint_of(3.0))
    path = tmp_path / "final" / "manifest.json"
    path.write_text(path.read_text().replace("model.safetensors", "model\\u0000.safetensors"))
    with pytest.raises(CorruptCheckpoint, match="cannot be read"):
        read_checkpoint(tmp_path / "final")


@pytest.mark.parametrize(
    ("pointer", "problem"),
    [
        (None, "latest.json: missing"),
        ("", "latest.json: not readable"),
        ('{"folder": 3}', "3: missing, latest.json points to it"),
        ('{"folder": "step-00000009"}', "step-00000009: missing, latest.json points to it"),
    ],
)
def test_a_pointer_that_is_missing_or_wrong_is_told_and_the_newest_checkpoint_used(
    tmp_path: Path, pointer: str | None, problem: str
) -> None:
    for step in (1, 2):
        save_latest(tmp_path, step, checkpoint_of(float(step)))
    if pointer is None:
        (tmp_path / "latest.json").unlink()
    else:
        (tmp_path / "latest.json").write_text(pointer)
    newest, problems = load_latest(tmp_path)
    assert newest is not None
    assert newest.state == {"step": 2}
    assert len(problems) == 1
    assert problem in problems[0]


def test_an_optimiser_restored_through_files_takes_the_same_next_step(tmp_path: Path) -> None:
    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, value: float) -> None:
        optimizer.zero_grad()
        model(torch.full((1, 3), value)).sum().backward()
        optimizer.step()

    model, optimizer = build()
    step(model, optimizer, 1.0)
    tensors, rest = flatten_optimizer(optimizer.state_dict())
    write_checkpoint(tmp_path / "c", Checkpoint({"optimizer": tensors, "model": model.state_dict()}, {"rest": rest}))
    step(model, optimizer, 2.0)

    other, restored = build()
    back = read_checkpoint(tmp_path / "c")
    other.load_state_dict(back.tensors["model"])
    restored.load_state_dict(unflatten_optimizer(back.tensors["optimizer"], back.state["rest"]))
    step(other, restored, 2.0)
    assert torch.equal(other.weight, model.weight)

    forgetful, fresh = build()  # negative control: without the moments the step differs
    forgetful.load_state_dict(back.tensors["model"])
    step(forgetful, fresh, 2.0)
    assert not torch.equal(forgetful.weight, model.weight)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_pickle_that_the_manifest_vouches_for_is_refused_and_never_runs(tmp_path: Path, name: str) -> None:
    class Malicious:
        def __reduce__(self) -> tuple:
            return (open, (str(tmp_path / "marker"), "w"))

    write_checkpoint(tmp_path / "final", checkpoint_of(3.0))
    path, manifest = tmp_path / "final" / name, tmp_path / "final" / "manifest.json"
    path.write_bytes(pickle.dumps(Malicious()))
    facts = json.loads(manifest.read_text())
    facts[name] = {"size": path.stat().st_size, "sha256": file_digest(path)}
    manifest.write_text(json.dumps(facts))
    with pytest.raises(InputError, match="final: not a checkpoint"):
        read_checkpoint(tmp_path / "final")
    assert not (tmp_path / "marker").exists()
