"""Atomic writes, hashes, logs, and locks of run folders."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fid.files import KEPT, sync
from filelock import FileLock, Timeout

from config.errors import UserError
from utils.io.notes import note

LOCK = ".lock"  # in a run's folder
NO_LOCKS = "no locks here; run one process at a time"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder that replaces ``path`` if the block succeeds.

    An existing file stays intact until then. The temporary name is unique even if machines that
    share the folder have equal process ids. Raises `UserError` if ``path`` cannot be written.
    """
    temporary = path.with_name(f".{path.name[:KEPT]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        os.makedirs(os.path.realpath(path.parent), exist_ok=True)
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
    """Create a folder; raises `UserError` if it cannot be created or written to."""
    try:
        os.makedirs(os.path.realpath(folder), exist_ok=True)  # also where a link leads
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: no permission to write here")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; names that are not UTF-8 are escaped."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def content_hash(paths: Iterable[Path]) -> str:
    """SHA-256 over the files' bytes in the given order, in hex."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def read_rows(path: Path) -> list[dict]:
    """Rows of a log.jsonl, [] if there is none; skips invalid rows, such as a cut-off line."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return [row for row in rows if isinstance(row, dict)]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes; the kernel releases the lock when this one dies.

    If the file system cannot lock, prints a note and continues. Raises `UserError` immediately if
    another process holds the lock or the lock file cannot be opened. Under torchrun only rank 0
    locks.
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
        if getattr(error, "filename", None) is not None:  # from opening, not locking
            raise UserError(f"{folder / LOCK}: cannot be written: {error.strerror}") from None
        note(f"{folder}: {NO_LOCKS}")
    try:
        yield
    finally:
        with suppress(OSError):  # the kernel unlocks at exit anyway
            lock.release()
