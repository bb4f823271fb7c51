import os
import pickle

import pytest
import torch

from maskwright.core.errors import DataError
from maskwright.core.trainer import checkpoint as checkpoints
from maskwright.core.trainer.checkpoint import Checkpoint
from maskwright.core.trainer.files import DiskFullError, write_text


def _checkpoint(step, value):
    return Checkpoint(step, {"method.w": torch.full((4, 3), float(value))}, {"best": 0.5})


def test_save_and_load(tmp_path):
    checkpoints.save(tmp_path, _checkpoint(3, 1))
    loaded, complaints = checkpoints.load_newest(tmp_path)
    assert loaded.step == 3
    assert loaded.state == {"best": 0.5}
    assert torch.equal(loaded.part("method")["w"], torch.full((4, 3), 1.0))
    assert complaints == []


def test_the_one_before_and_the_best_are_kept(tmp_path):
    checkpoints.save(tmp_path, _checkpoint(1, 1), best=True)
    checkpoints.save(tmp_path, _checkpoint(2, 2))
    checkpoints.save(tmp_path, _checkpoint(3, 3))
    steps = {name: checkpoints.read(tmp_path / f"{name}.safetensors").step for name in ("last", "previous", "best")}
    assert steps == {"last": 3, "previous": 2, "best": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best.safetensors",
        "last.safetensors",
        "previous.safetensors",
    ]


@pytest.mark.parametrize("damage", ["truncate", "garbage", "empty", "pickle", "foreign"])
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path, damage):
    checkpoints.save(tmp_path, _checkpoint(1, 1))
    path = checkpoints.save(tmp_path, _checkpoint(2, 2))
    if damage == "truncate":
        os.truncate(path, path.stat().st_size - 5)
    elif damage == "garbage":
        path.write_bytes(os.urandom(500))
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "pickle":

        class Bomb:
            def __reduce__(self):
                return (open, (str(tmp_path / "executed"), "w"))

        path.write_bytes(pickle.dumps(Bomb()))
    else:
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(1)}, str(path))
    loaded, complaints = checkpoints.load_newest(tmp_path)
    assert loaded.step == 1
    assert len(complaints) == 1
    assert "last.safetensors" in complaints[0]
    assert not (tmp_path / "executed").exists()


def test_a_kill_between_the_renames_loses_nothing(tmp_path):
    checkpoints.save(tmp_path, _checkpoint(1, 1))
    checkpoints.save(tmp_path, _checkpoint(2, 2))
    os.replace(
        tmp_path / "last.safetensors", tmp_path / "next.safetensors"
    )  # as if killed after `last` became previous
    loaded, _ = checkpoints.load_newest(tmp_path)
    assert loaded.step == 2


def test_none_whole_is_an_error_and_none_at_all_is_not(tmp_path):
    assert checkpoints.load_newest(tmp_path) == (None, [])
    (tmp_path / "last.safetensors").write_bytes(b"x")
    with pytest.raises(DataError, match="no checkpoint in it is whole"):
        checkpoints.load_newest(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="MB of disk are free"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_optimizer_state_survives(tmp_path):
    def make():
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        names = [name for name, _ in layer.named_parameters()]
        return layer, torch.optim.AdamW([{"params": list(layer.parameters()), "names": names}], lr=0.1)

    def train(layer, optimizer, steps):
        for step in range(steps):
            optimizer.zero_grad()
            layer(torch.arange(3.0) + step).square().sum().backward()
            optimizer.step()

    layer, optimizer = make()
    train(layer, optimizer, 3)
    tensors = {f"optimizer.{k}": v for k, v in checkpoints.optimizer_tensors(optimizer).items()}
    checkpoints.save(tmp_path, Checkpoint(3, tensors | {f"method.{k}": v for k, v in layer.state_dict().items()}))
    train(layer, optimizer, 2)
    loaded, _ = checkpoints.load_newest(tmp_path)
    other, other_optimizer = make()
    other.load_state_dict(loaded.part("method"))
    checkpoints.restore_optimizer(other_optimizer, loaded.part("optimizer"))
    train(other, other_optimizer, 2)
    assert torch.equal(layer.weight, other.weight)


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    old = os.umask(0o027)
    try:
        checkpoints.save(tmp_path, Checkpoint(1, {"method.w": torch.ones(2)}))
    finally:
        os.umask(old)
    assert (tmp_path / "last.safetensors").stat().st_mode & 0o777 == 0o640
