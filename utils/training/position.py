"""The place of a run in its epochs, and in the time that it may take."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from torch import Tensor


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
    best_loss: float = math.inf  # lowest value of the figure that decides, so far
    best_epoch: int = 0  # after which it was found

    def add(self, losses: dict[str, Tensor]) -> None:
        """Count a batch; losses stay on their device."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.batch += 1

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
