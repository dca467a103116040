"""Training states on disk, and what becomes of those that an earlier run left.

A state is read with `weights_only=True`; the one before it is kept, so that a broken file loses one
interval.
"""

from __future__ import annotations

import pickle
import shutil
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import torch

from config.errors import UserError
from utils.distributed import is_main
from utils.io.faults import raise_if_machine
from utils.io.files import atomic
from utils.weights.store import first_line, refusal

State = dict[str, Any]
Resume = bool | Literal["auto"]
BROKEN_STATE = (  # what reading one that is damaged, or cannot be read, raises
    *(RuntimeError, EOFError, OSError, ValueError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
)


def save_state(path: Path, state: State) -> None:
    """Write a training state, e.g. state.pt; what was the latest becomes state.previous.pt."""
    with atomic(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # how PyTorch reports a write that failed
            raise UserError(f"{path}: cannot be written: {first_line(error)}") from None
        if path.exists():
            path.replace(previous(path))


def load_state(path: Path) -> State | None:
    """Read the latest whole training state, or None if there is none yet.

    One that was read and is damaged is passed over with a line that says so, and set aside as
    state.damaged.pt, or it would become the previous one. Raises `UserError` if none is whole, and
    `MachineError` if one cannot be read, which says nothing about it.
    """
    found = [candidate for candidate in (path, previous(path)) if candidate.exists()]
    for candidate in found:
        try:
            with zipfile.ZipFile(candidate) as archive:
                bad = archive.testzip()
            if bad:
                raise RuntimeError(f"checksum of {bad}")
            state = torch.load(candidate, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            print(f"{candidate}: {refusal(error)}; passed over", file=sys.stderr)
        except BROKEN_STATE as error:
            raise_if_machine(error, candidate)
            older = ", the one before it is taken" if candidate == path else ""
            print(f"{candidate}: damaged checkpoint, passed over{older}", file=sys.stderr)
        else:
            if candidate != path and path.exists() and is_main():
                path.replace(_beside(path, "damaged"))
            return state
    if found:
        raise UserError(f"{found[0]}: damaged, and no earlier checkpoint is left; use --restart")
    return None


def open_state(
    path: Path, settings: dict[str, Any], *, resume: Resume, restart: bool, allow_change: bool
) -> State | None:
    """The state to go on from, or None to begin; ``settings`` are those the result depends on.

    Where there is nothing to resume, True says so and "auto" begins without a word. Settings that
    the state does not know, since they are newer, are taken as they are.

    Raises `UserError` when a run would be overwritten unasked, when the state is foreign, and when
    its settings differ (keys named) without leave.
    """
    if not resume:
        if (path.exists() or previous(path).exists()) and not restart:
            raise UserError(f"{path.parent}: holds a run; --resume goes on, --restart begins anew")
        return None
    state = load_state(path)
    if state is None:
        if resume != "auto" and is_main():
            print(f"{path.parent}: nothing to resume, begins anew")
        return None
    if not isinstance(state, dict) or not {"settings", "position"} <= state.keys():
        raise UserError(f"{path}: is no training state of ours")
    found = state["settings"]
    changed = sorted(key for key in settings.keys() & found.keys() if settings[key] != found[key])
    if changed and not allow_change:
        first = changed[0]
        raise UserError(
            f"{path}: the run was begun with other {', '.join(changed)} ({first} was "
            f"{found[first]}, is {settings[first]}); --allow-config-change goes on all the same"
        )
    return state


def clear_run(path: Path) -> None:
    """Clear the way for a run that begins; the main process does it.

    Else one that is killed before its first save would go on as the run that it replaces, and
    pictures of both would lie side by side.
    """
    if is_main():
        for state in (previous(path), path):
            state.unlink(missing_ok=True)
        shutil.rmtree(path.parent / "samples", ignore_errors=True)


def previous(path: Path) -> Path:
    """Where the state before the latest is kept."""
    return _beside(path, "previous")


def _beside(path: Path, what: str) -> Path:
    """E.g. state.previous.pt."""
    return path.with_name(f"{path.stem}.{what}{path.suffix}")
