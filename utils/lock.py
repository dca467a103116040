"""One process at a time in the folder of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from config.errors import UserError
from utils.files import make_folder

LOCK = ".lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep every other process out of a folder; the kernel opens it again when this one dies.

    A file system that cannot lock, whatever its reason, is used with a note. Raises `UserError` at
    once where another process is in the folder, or where the lock's file cannot be opened. Under
    torchrun only rank 0 asks.
    """
    make_folder(folder)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"{folder}: another process is at work in this folder; wait for it, or name another"
        ) from None
    except (OSError, NotImplementedError) as error:
        if getattr(error, "filename", None) is not None:  # of opening, not of locking
            raise UserError(f"{folder / LOCK}: cannot be written: {error.strerror}") from None
        print(f"note: {folder}: no locks here; run one process at a time", file=sys.stderr)
    try:
        yield
    finally:
        with suppress(OSError):  # the kernel unlocks when the process ends, at the latest
            lock.release()
