"""What both training stages share: the position in a run, its randomness, and a clean stop."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from config.errors import UserError

CPU_ALLOCATOR = "DefaultCPUAllocator"  # by which PyTorch's own errors about memory are known


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


def generator_for(*key: int) -> torch.Generator:
    """A CPU generator that depends on nothing but the key, e.g. (seed, epoch, batch)."""
    seed = 0
    for part in key:
        seed = (seed * 1_000_003 + part + 1) % (2**63 - 1)
    return torch.Generator().manual_seed(seed)


def shuffled_batches(
    count: int, batch_size: int, generator: torch.Generator, skip: int = 0
) -> Iterator[Tensor]:
    """Indices of each batch of an epoch, the last one shorter; ``skip`` batches are passed over."""
    order = torch.randperm(count, generator=generator)
    yield from order.split(batch_size)[skip:]


@contextmanager
def memory_for(device: torch.device, advice: str) -> Iterator[None]:
    """Turn running out of memory into a `UserError` that says which settings to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        short = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
        if not short and CPU_ALLOCATOR not in str(error):
            raise
        raise UserError(f"{device}: out of memory; what needs less: {advice}") from error


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying; a second one ends the process at once."""
    received: list[int] = []
    before = {}

    def note(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
