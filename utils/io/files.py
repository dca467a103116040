"""Files: atomic writes, hashes, logs, a folder's lock; reading ahead and writing behind."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from fid.files import KEPT, naming, sync
from fid.process import Pool
from filelock import FileLock, Timeout

from config.errors import UserError
from utils.io.messages import note

Item = TypeVar("Item")
Result = TypeVar("Result")

ROOT = Path(__file__).resolve().parents[2]  # of the project
LOCK = ".lock"
NO_LOCKS = "no locks here; run one process at a time"


def of_project(path: str | Path) -> Path:
    """A path relative to the current folder or, if nothing is there, to the project."""
    return Path(path) if os.path.exists(path) else ROOT / path


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


def remove_unfinished(folder: Path) -> None:
    """Delete temporary files of `atomic` that killed processes left; nobody may be writing any."""
    for path in folder.glob(".*-????????.tmp"):
        path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Create a folder; raises `UserError` if it cannot be created or written to."""
    try:
        os.makedirs(os.path.realpath(folder), exist_ok=True)  # also where a link leads
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: no permission to write here")


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


def read_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    ahead: int,
    bytes_of: Callable[[Item], int] = lambda item: 0,
    most_bytes: int = 0,
) -> Iterator[Result]:
    """Yield `function` of each item, in order, computing at most ``ahead`` results in advance.

    bytes_of: what the result of an item will hold. Those computed hold at most ``most_bytes``
    together; a larger one is computed alone.
    """
    pool = Pool(threads)
    waiting: deque[tuple[Future[Result], int]] = deque()  # with the bytes each one holds
    try:
        for item in items:
            size = bytes_of(item)
            while waiting and (
                len(waiting) > ahead or size + sum(of for _, of in waiting) > most_bytes
            ):
                yield pool.result(waiting.popleft()[0])
            waiting.append((pool.submit(function, item), size))
        while waiting:
            yield pool.result(waiting.popleft()[0])
    finally:
        pool.shutdown(cancel_futures=True)


class WriteBehind:
    """Run jobs in threads with a bounded queue; re-raises the first error.

    At most ``pending`` jobs wait, holding at most ``most_bytes`` together; a larger job waits
    alone. Leaving the block waits for all jobs, also after an error.
    """

    def __init__(self, threads: int, pending: int, most_bytes: int) -> None:
        self.pool, self.pending, self.most_bytes = Pool(threads), pending, most_bytes
        self.waiting: deque[tuple[Future[None], int]] = deque()  # with the bytes each one holds

    def submit(self, job: Callable[[], None], size: int) -> None:
        """Queue a job that holds ``size`` bytes, waiting if full; raises an earlier job's error."""
        while self.waiting and (self._is_full(size) or self.waiting[0][0].done()):
            self.pool.result(self.waiting.popleft()[0])
        self.waiting.append((self.pool.submit(job), size))

    def _is_full(self, size: int) -> bool:
        held = sum(of for _, of in self.waiting)
        return len(self.waiting) >= self.pending or held + size > self.most_bytes

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while self.waiting and kind is None:
                self.pool.result(self.waiting.popleft()[0])
        finally:
            self.pool.shutdown()
