"""What may end a run from outside: signals that ask it to stop, and too little memory."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from config.errors import StopRequested, UserError

CPU_ALLOCATOR = "DefaultCPUAllocator"  # by which PyTorch's own errors about memory are known


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
    """Collect SIGINT and SIGTERM instead of dying; a second one ends the process at once.

    One that came too late for the block to look for it is raised again after the block's end.
    """
    received: list[int] = []
    before = {}

    def note(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, note)
    try:
        yield received
    except StopRequested:
        received.clear()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
