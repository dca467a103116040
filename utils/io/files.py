"""Files that are whole or absent, and why one cannot be read: the file, or the machine."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fid.files import sync
from filelock import FileLock, Timeout

from config.errors import UserError
from utils.io.notes import note

LOCK = ".lock"  # of a run's folder
NO_LOCKS = "no locks here; run one process at a time"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary name in the same folder; when the block succeeds, it becomes ``path``.

    What stood at ``path`` stays whole until then, whoever else writes it: machines that share a
    folder may have processes of the same number. Raises `UserError` where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as written:
            sync(written)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder that can be written to, or say in a `UserError` why not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: no permission to write here")


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, or leave what was there; names that are no UTF-8 are escaped."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def content_hash(paths: Iterable[Path]) -> str:
    """SHA-256 over the files' bytes, in the given order, as hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def read_rows(path: Path) -> list[dict]:
    """Rows of a log.jsonl; [] if there is none. What is no row, as a cut-off line, is left out."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return [row for row in rows if isinstance(row, dict)]


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
        with warnings.catch_warnings(record=True) as said:  # filelock's, where flock is missing
            warnings.simplefilter("always")
            lock.acquire(blocking=False)
        if said:
            note(f"{folder}: {NO_LOCKS}")
    except Timeout:
        raise UserError(
            f"{folder}: another process is at work in this folder; wait for it, or name another"
        ) from None
    except (OSError, NotImplementedError) as error:
        if getattr(error, "filename", None) is not None:  # of opening, not of locking
            raise UserError(f"{folder / LOCK}: cannot be written: {error.strerror}") from None
        note(f"{folder}: {NO_LOCKS}")
    try:
        yield
    finally:
        with suppress(OSError):  # the kernel unlocks when the process ends, at the latest
            lock.release()
