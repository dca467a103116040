"""Files are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fid_errors import ScoreError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name that takes `path`'s place once it is written and synced.

    Raises:
        ScoreError: the place cannot be written to; what was there stays.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with _as_mistake(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def check_place(path: Path) -> None:
    """Raise what `replacing` would raise, before the long part; makes no more than the folder."""
    with _as_mistake(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


@contextlib.contextmanager
def _as_mistake(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ScoreError(f"{path}: cannot be written ({error.strerror})") from None
