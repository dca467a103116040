"""The lock of a run's folder, in which only one process may work."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from config.errors import UserError
from utils.io.files import make_folder
from utils.io.messages import note

LOCK = ".lock"
NO_LOCKS = "no locks here; run one process at a time"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes; the kernel releases the lock when this one dies.

    If the file system cannot lock, prints a note and continues. Raises `UserError` immediately if
    another process holds the lock or the lock file cannot be opened. Under torchrun only rank 0
    locks.
    """
    make_folder(folder)
    with _locked(folder / LOCK) as is_locked:
        if not is_locked:
            # A file server's error may mean either; it locks a new file if it can lock at all.
            new = folder / f"{LOCK}-{secrets.token_hex(4)}"
            with _locked(new) as can_lock:
                pass
            new.unlink(missing_ok=True)
            if can_lock:
                advice = "wait for it, or name another"
                raise UserError(f"{folder}: another process is at work in this folder; {advice}")
            note(f"{folder}: {NO_LOCKS}")
        yield


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Try to lock a file within the block; False if another process has, or no process can."""
    lock = FileLock(path)
    try:
        with warnings.catch_warnings(record=True) as said:  # filelock's, where flock is missing
            warnings.simplefilter("always")
            lock.acquire(blocking=False)
        if said:
            note(f"{path.parent}: {NO_LOCKS}")
    except (OSError, NotImplementedError) as error:
        if not isinstance(error, Timeout) and getattr(error, "filename", None) is not None:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from None  # not opened
    try:
        yield lock.is_locked
    finally:
        with suppress(OSError):  # the kernel unlocks at exit anyway
            lock.release()
