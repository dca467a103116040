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

from fid.files import KEPT, naming, sync
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
        with naming(path):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def read_rows(path: Path) -> list[dict]:
    """Rows of a log.jsonl, [] if there is none; skips invalid rows, such as a cut-off line."""
    rows = []
    with naming(path):
        text = path.read_text(errors="replace") if path.exists() else ""
    for line in text.splitlines():
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
