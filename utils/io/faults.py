"""Tells what the machine lacks (memory, a disk that answers) from what is wrong with a file."""

from __future__ import annotations

import errno
from pathlib import Path

from config.errors import MachineError

MEMORY_TEXTS = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; Python, NumPy, PyTorch and the system say it in their own ways."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    is_told = isinstance(error, RuntimeError) and any(t in str(error) for t in MEMORY_TEXTS)
    return is_told or isinstance(error, MemoryError)


def raise_if_machine(error: BaseException, place: Path | str) -> None:
    """Raise `MachineError` where reading a file failed for another reason than what it holds.

    An error number comes from the system, which does not know what a file should hold; EINVAL alone
    is also what a place beyond the end of a damaged archive gives.
    """
    if is_out_of_memory(error):
        raise MachineError(f"out of memory while reading {place}, which stays as it is") from error
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        reason = f"cannot be read: {error.strerror}; it stays as it is"
        raise MachineError(f"{place}: {reason}") from error
