"""Training states: the position in a run, their files, and how an existing run is opened.

States are read with `weights_only=True`. The previous one is kept, so that a broken file costs one
checkpoint interval.
"""

from __future__ import annotations

import math
import pickle
import shutil
import sys
import textwrap
import time
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from config.errors import UserError
from utils.device import is_main
from utils.io.files import atomic
from utils.io.messages import is_out_of_memory, raise_if_machine, refusal
from utils.weights.store import write_tensors

State = dict[str, Any]
Resume = bool | Literal["auto"]
STATE, BEST, LOG = "state.pt", "best.safetensors", "log.jsonl"
BROKEN_STATE = (  # what reading one that is damaged, or cannot be read, raises
    *(RuntimeError, EOFError, OSError, ValueError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
)
FREE = ("checkpoint_every", "validate_every", "pictures_every", "max_minutes")
FINGERPRINT = 12  # hexadecimal digits of files and data among a run's settings
LONGEST_REASON = 160  # characters of PyTorch's message that a line of ours repeats


@dataclass
class Position:
    """Position in a run; with the weights and averages, everything that a resume needs.

    Every random draw is a function of (seed, epoch, batch), so no generator has to be saved.
    """

    epoch: int = 0  # finished epochs
    batch: int = 0  # finished batches of the current epoch
    step: int = 0  # optimiser steps so far
    sums: dict[str, Tensor] = field(default_factory=dict)  # of the current epoch's losses
    missed: dict[str, float] = field(default_factory=dict)  # batches before a loss joined the sums
    seconds: float = 0.0  # of the time limit used up
    best_loss: float = math.inf  # lowest value so far of the metric that selects the best weights
    best_epoch: int = 0  # number of epochs after which it was reached

    def add(self, losses: dict[str, Tensor]) -> None:
        """Count a batch; losses stay on their device."""
        for name, value in losses.items():
            if self.batch and name not in self.sums:
                self.missed[name] = self.batch
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.batch += 1

    def next_epoch(self) -> None:
        self.epoch, self.batch, self.sums, self.missed = self.epoch + 1, 0, {}, {}


class TimeLimit:
    """A limit on the wall-clock time of a run, summed over its sessions."""

    def __init__(self, minutes: float | None, spent: float = 0.0) -> None:
        """minutes: the limit, or None. spent: seconds used up in earlier sessions."""
        self.minutes, self.began = minutes, time.monotonic() - spent

    @property
    def spent(self) -> float:
        """Seconds used up; always 0 without a limit, so that equal runs have equal states."""
        return 0.0 if self.minutes is None else time.monotonic() - self.began

    @property
    def share(self) -> float:
        """How much of the limit is used up, 0 to 1; 0 without a limit."""
        return 0.0 if self.minutes is None else min(1.0, self.spent / (60 * self.minutes))


def load_parts(parts: dict[str, Any], state: State) -> None:
    """Load the state of each part, such as a network or an optimiser, by name.

    Raises `UserError` for a state that does not fit, or of another version of this program.
    """
    other = [f"no {name}" for name in parts if name not in state]
    other += [f"position.{name}" for name in state["position"] if name not in vars(Position())]
    if other:
        raise UserError(
            f"the state has {', '.join(other)}: another version of this program wrote it; resume "
            "with that one, or start again with --restart"
        )
    for name, part in parts.items():
        if not state[name]:  # of a disabled gradient scaler
            continue
        try:
            if isinstance(part, torch.optim.Optimizer):
                _take_settings(state[name], part)
            part.load_state_dict(state[name])
        except (RuntimeError, ValueError, KeyError) as error:
            if is_out_of_memory(error):
                raise
            first = textwrap.shorten(str(error).splitlines()[:2][-1], LONGEST_REASON)
            raise UserError(
                f"the state's {name} does not fit ({first}); undo the change of the config, or "
                "start again with --restart"
            ) from error


def _take_settings(state: State, optimizer: torch.optim.Optimizer) -> None:
    """Override an optimiser's saved settings with this config's and this machine's."""
    groups = state["param_groups"], optimizer.param_groups
    for saved, group in zip(*groups, strict=False):  # another number of groups is refused later
        saved |= {**group, "params": saved["params"]}


def settings_that_count(settings: dict[str, Any]) -> dict[str, Any]:
    """A run's settings without those that may differ when it is resumed."""
    return {key: value for key, value in settings.items() if key.rpartition(".")[2] not in FREE}


def save_state(path: Path, state: State) -> None:
    """Write a training state, e.g. state.pt; the existing one becomes state.previous.pt."""
    with atomic(path) as temporary:
        write_tensors(temporary, state)
        if path.exists():
            path.replace(previous(path))


def load_state(path: Path) -> State | None:
    """Read the latest intact training state, or None if there is none yet.

    A damaged one is skipped with a message and renamed to state.damaged.pt, so that it does not
    become the previous one. Raises `UserError` if none is intact, and `MachineError` if the
    machine could not read one, which does not mean that it is damaged.
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
            print(f"{candidate}: {refusal(error)}; skipped", file=sys.stderr)
        except BROKEN_STATE as error:
            raise_if_machine(error, candidate)
            older = ", the one before it is taken" if candidate == path else ""
            print(f"{candidate}: damaged checkpoint, skipped{older}", file=sys.stderr)
        else:
            if candidate != path and path.exists() and is_main():
                path.replace(path.with_stem(f"{path.stem}.damaged"))
            return state
    if found:
        raise UserError(f"{found[0]}: damaged, and no earlier checkpoint is left; use --restart")
    return None


@dataclass(frozen=True)
class Opening:
    """How to treat an existing run, and settings that differ from its own."""

    resume: Resume = False
    restart: bool = False
    allow_config_change: bool = False
    from_epoch: int | None = None  # the number of epochs that the checkpoint must have finished


def open_state(path: Path, settings: dict[str, Any], opening: Opening) -> State | None:
    """The state to resume from, or None for a new run; ``settings``: all the result depends on.

    With nothing to resume, True prints a line and "auto" starts silently. Settings that are newer
    than the state are not compared.

    Raises `UserError` if a run would be overwritten without --restart, if the state is not ours or
    not after the requested epoch, and if settings differ without --allow-config-change.
    """
    if not opening.resume:
        if not opening.restart:
            require_no_run(path)
        return None
    state = load_state(path)
    if state is None:
        _require_epoch(path, None, opening)
        if weights := _left_weights(path.parent):
            raise UserError(f"{weights}: has no {path.name} to resume; --restart would replace it")
        if opening.resume != "auto" and is_main():
            print(f"{path.parent}: nothing to resume, starts a new run")
        return None
    is_ours = isinstance(state, dict) and isinstance(state.get("settings"), dict)
    if not is_ours or not isinstance(state.get("position"), dict):
        raise UserError(f"{path}: is not a training state of this program")
    found = state["settings"]
    changed = sorted(key for key in settings.keys() & found.keys() if settings[key] != found[key])
    if changed and not opening.allow_config_change:
        first = changed[0]
        raise UserError(
            f"{path}: the run was started with other {', '.join(changed)} ({first} was "
            f"{found[first]}, is {settings[first]}); its config is {path.with_name('config.yml')}; "
            "--allow-config-change resumes anyway"
        )
    _require_epoch(path, state["position"].get("epoch"), opening)
    return state


def require_no_run(path: Path) -> None:
    """Raise `UserError` for a training state, or for the weights of a run whose states are gone."""
    if path.exists() or previous(path).exists() or _left_weights(path.parent):
        raise UserError(f"{path.parent}: already contains a run; use --resume or --restart")


def _left_weights(folder: Path) -> Path | None:
    """The weights of a run whose states may be gone; None without a log, or weights but the best.

    The best ones are written before the first state.
    """
    found = [p for p in folder.glob("*.safetensors") if p.name != BEST]
    return found[0] if found and (folder / LOG).exists() else None


def _require_epoch(path: Path, done: int | None, opening: Opening) -> None:
    if opening.from_epoch not in (None, done):
        found = "there is none" if done is None else f"it is from epoch {done}"
        raise UserError(f"{path}: asked for a checkpoint after epoch {opening.from_epoch}; {found}")


def clear_run(path: Path) -> None:
    """Delete the state and samples of the run that a new one replaces, in the main process.

    Otherwise a new run killed before its first save would resume as the old one, and their
    pictures would be mixed.
    """
    if is_main():
        for state in (previous(path), path):
            state.unlink(missing_ok=True)
        shutil.rmtree(path.parent / "samples", ignore_errors=True)


def previous(path: Path) -> Path:
    """E.g. state.previous.pt."""
    return path.with_stem(f"{path.stem}.previous")
