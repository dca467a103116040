"""A training state that cannot be read is not a damaged one."""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path

import pytest
import torch

from config.errors import MachineError, UserError
from utils.training import state
from utils.training.state import load_state, previous, save_state


@pytest.fixture
def saved(tmp_path) -> Path:
    """A state and the one before it."""
    path = tmp_path / "state.pt"
    for step in (1, 2):
        save_state(path, {"step": step, "w": torch.zeros(9)})
    return path


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


ERRORS = [
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    OSError(errno.EIO, os.strerror(errno.EIO), "state.pt"),
    OSError(errno.ESTALE, os.strerror(errno.ESTALE), "state.pt"),
    PermissionError(errno.EACCES, os.strerror(errno.EACCES), "state.pt"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", [(zipfile.ZipFile, "testzip"), (state.torch, "load")])
def test_a_good_state_stays_where_memory_or_the_disk_fails(
    saved, monkeypatch, capsys, place, error
):
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(*place, fail)
        with pytest.raises(MachineError, match="stays as it is"):
            load_state(saved)
    assert "damaged" not in capsys.readouterr().err
    assert names(saved) == ["state.previous.pt", "state.pt"]
    assert load_state(saved)["step"] == 2


def test_only_a_state_that_was_read_and_is_broken_is_set_aside(saved, capsys):
    saved.write_bytes(saved.read_bytes()[:-30])
    assert load_state(saved)["step"] == 1
    assert "damaged checkpoint, skipped" in capsys.readouterr().err
    assert names(saved) == ["state.damaged.pt", "state.previous.pt"]


def test_where_the_one_before_cannot_be_read_nothing_is_set_aside(saved, monkeypatch):
    saved.write_bytes(b"")
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda _: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(UserError, match=f"while reading {previous(saved)}"):
        load_state(saved)
    assert names(saved) == ["state.previous.pt", "state.pt"]
