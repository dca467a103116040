"""What may end a run from outside: signals that ask it to stop, and too little memory."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from fid.process import INSISTING, handled

from config.errors import StopRequested, UserError
from utils.io.faults import is_out_of_memory


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
