"""One process at a time in the folder of a run."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from config.errors import UserError
from utils.files import make_folder

LOCK = ".lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # a file system that has none


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep every other process out of a folder; the kernel opens it again when this one dies.

    Raises `UserError` at once where another process is in it. Under torchrun only rank 0 asks.
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
        if getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
            raise
        print(f"note: {folder}: no locks here; run one process at a time", file=sys.stderr)
    try:
        yield
    finally:
        lock.release()
