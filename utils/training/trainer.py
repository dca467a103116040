"""What both training stages share: the position in a run, its state and randomness, clean stops."""

from __future__ import annotations

import math
import signal
import textwrap
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from config.errors import DivergedError, StopRequested, UserError
from utils import distributed
from utils.io.faults import is_out_of_memory
from utils.io.streams import INSISTING, handled

FREE = ("checkpoint_every", "validate_every", "pictures_every", "max_minutes")
LONGEST_REASON = 160  # characters of PyTorch's that a line of ours repeats


@dataclass
class Position:
    """Where a run stands; together with the weights and averages, all that a resume needs.

    Every random draw is a function of (seed, epoch, batch), so no generator has to be saved.
    """

    epoch: int = 0  # finished epochs
    batch: int = 0  # finished batches of the present epoch
    step: int = 0  # optimiser steps so far
    sums: dict[str, Tensor] = field(default_factory=dict)  # of the present epoch's losses
    seconds: float = 0.0  # of a time limit that are used up
    best_loss: float = math.inf  # lowest validation loss so far
    best_epoch: int = 0  # after which it was found

    def add(self, losses: dict[str, Tensor]) -> None:
        """Count a batch; losses stay on their device."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.batch += 1

    def means(self) -> dict[str, float]:
        """Mean losses of the present epoch so far."""
        return {name: float(total) / max(1, self.batch) for name, total in self.sums.items()}

    def next_epoch(self) -> None:
        self.epoch, self.batch, self.sums = self.epoch + 1, 0, {}


class TimeLimit:
    """A limit on the wall-clock time of a run, over all the sessions that it is made in."""

    def __init__(self, minutes: float | None, spent: float = 0.0) -> None:
        """minutes: the limit, None for none. spent: seconds of it used up in earlier sessions."""
        self.minutes, self.began = minutes, time.monotonic() - spent

    @property
    def spent(self) -> float:
        """Seconds used up; always 0 without a limit, so that equal runs have equal states."""
        return 0.0 if self.minutes is None else time.monotonic() - self.began

    @property
    def share(self) -> float:
        """How much of the limit is used up, 0 to 1; 0 without a limit."""
        return 0.0 if self.minutes is None else min(1.0, self.spent / (60 * self.minutes))


class Trainer:
    """What the trainers of both stages share: their place in a run, its time, and their state."""

    kept: tuple[str, ...]  # names of the attributes that have a state of their own
    settings_of_run: dict[str, Any]  # on which the result depends

    def __init__(
        self, *, epochs: int, batches: int, max_minutes: float | None, accumulate: int = 1
    ) -> None:
        """batches: of an epoch. accumulate: how many of them make an optimiser step."""
        self.epochs, self.max_minutes = epochs, max_minutes
        self.batches_per_epoch, self.batches_a_step = batches, accumulate
        self.steps_per_epoch = math.ceil(batches / accumulate)
        self.total_steps = epochs * self.steps_per_epoch
        self.position, self.limit, self.time_share = Position(), TimeLimit(max_minutes), 0.0

    @property
    def progress(self) -> float:
        """Share of the training that is done, by steps or, where it is limited, by time."""
        return min(1.0, max(self.position.step / self.total_steps, self.time_share))

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or the time is used up."""
        return self.position.epoch >= self.epochs or self.time_share == 1.0

    def is_due(self, every: int) -> bool:
        """Whether what happens after every so many epochs, and at the end, happens now."""
        return self.position.epoch % every == 0 or self.finished

    def require_warm_up(self, key: str, steps: int) -> None:
        """Raise `UserError` where the learning rate would never reach its peak."""
        if steps >= self.total_steps:
            raise UserError(
                f"{key} is {steps}, but the whole training has {self.total_steps} steps; lower it "
                "or train for longer"
            )

    def require_finite(self, losses: Iterable[float], key: str) -> None:
        """Raise `DivergedError` for a loss that is not; key is the setting to lower."""
        if all(math.isfinite(loss) for loss in losses):
            return
        place = f"epoch {self.position.epoch + 1}, batch {self.position.batch}"
        raise DivergedError(
            f"{place}: the loss is no longer finite at step {self.position.step}; the last "
            f"checkpoint is kept, lower {key}"
        )

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs; to be called by all processes at once."""
        self.position.seconds = self.limit.spent
        self.position.sums = {k: distributed.total(v) for k, v in self.position.sums.items()}
        state = {name: getattr(self, name).state_dict() for name in self.kept}
        place = {"position": vars(self.position), "epoch_size": self._epoch_size}
        return {**state, **place, "settings": self.settings_of_run}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raises `UserError` for one of other networks or optimisers."""
        for name in self.kept:
            own = getattr(self, name)
            if not state[name]:  # of a gradient scaler that had nothing to do on its machine
                continue
            if isinstance(own, torch.optim.Optimizer):
                # with this config's decay and this machine's kernels
                groups = state[name]["param_groups"], own.param_groups
                for saved, group in zip(*groups, strict=False):  # unequal ones are refused below
                    saved |= {**group, "params": saved["params"]}
            with _fitting(name):
                own.load_state_dict(state[name])
        self.position = Position(**state["position"])
        self._keep_share(*state.get("epoch_size", self._epoch_size))
        if not distributed.is_main():
            self.position.sums = {}  # they are the sums of all
        self.limit = TimeLimit(self.max_minutes, self.position.seconds)
        self.time_share = self.limit.share

    @property
    def _epoch_size(self) -> tuple[int, int]:
        """Batches and optimiser steps of an epoch."""
        return self.batches_per_epoch, self.steps_per_epoch

    def _keep_share(self, batches: int, steps: int) -> None:
        """Stand at the same share of the training as where an epoch had so many batches and steps.

        Within an epoch that is the last whole group of batches before it, so no image is left out.
        """
        if (batches, steps) == self._epoch_size:
            return
        place = self.position
        place.step = round(place.step * self.steps_per_epoch / steps)
        groups = place.batch * self.batches_per_epoch // (batches * self.batches_a_step)
        before, place.batch = place.batch, groups * self.batches_a_step
        place.sums = {k: v * place.batch / before for k, v in place.sums.items()}


@contextmanager
def _fitting(name: str) -> Iterator[None]:
    """Turn PyTorch's refusal of a part of a state into a `UserError` that says what to do."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        first = textwrap.shorten(str(error).splitlines()[:2][-1], LONGEST_REASON)
        raise UserError(
            f"the state's {name} does not fit ({first}); undo the change of the config, or begin "
            "anew with --restart"
        ) from error


def settings_that_count(settings: dict[str, Any]) -> dict[str, Any]:
    """A run's settings without those that may differ when it is resumed."""
    return {key: value for key, value in settings.items() if key.rpartition(".")[2] not in FREE}


@contextmanager
def memory_for(device: torch.device, advice: str) -> Iterator[None]:
    """Turn running out of memory into a `UserError` that says which settings to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{device}: out of memory; what needs less: {advice}") from error


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect signals that ask to end instead of dying; a second Ctrl-C or SIGTERM ends at once.

    Others come several times by themselves: SIGHUP from the terminal and its shell, SIGXCPU every
    second. One that came too late for the block to look for it is raised again after its end.
    """
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        received.append(number)
        if number in INSISTING:
            signal.signal(number, signal.SIG_DFL)

    try:
        with handled(note):
            yield received
    except StopRequested:
        received.clear()
        raise
    finally:
        if received:
            signal.raise_signal(received[0])
