"""Where a study lies, and who works on it: a database, or a file that many workers share.

A server's workers are watched by heartbeat. Beside a file (SQLite, journal) each worker holds a
lock on a file of its own, which the system frees when the worker dies, however it dies.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, ProgrammingError, SQLAlchemyError

from config.errors import UserError, nearest
from utils.files import make_folder

DATABASES = ("sqlite", "postgresql", "mysql")
HEARTBEAT, GRACE = 30, 120  # seconds between signs of life; without one for so long: dead
OPENINGS = 5  # attempts to open a database that others are setting up
SQLITE_PATIENCE = 60  # seconds to wait for another worker's write
DRIVERS = {  # module that SQLAlchemy asks for: package that has it
    "psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"
}  # fmt: skip
Result = TypeVar("Result")


def default_storage(folder: Path) -> str:
    """The SQLite file of a run's own search."""
    return f"sqlite:///{folder / 'study.db'}"


def shown(where: str) -> str:
    """A storage as it may be printed: without its password."""
    return make_url(where).render_as_string(hide_password=True) if "://" in where else where


def file_of(where: str) -> Path | None:
    """The file that a storage is, or None for a server."""
    if "://" not in where:
        return Path(where)
    url = make_url(where)
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def open_storage(where: str) -> BaseStorage:
    """Open a database by its URL, or a journal file by its path.

    Raises `UserError` for an unknown kind, a missing driver, a server out of reach, a file that is
    something else.
    """
    check_storage(where)
    if "://" not in where:
        return told_apart(where, lambda: _open_journal(Path(where)))
    return told_apart(where, lambda: _open_database(where))


def check_storage(where: str) -> None:
    """Raise a `UserError` for what is neither a URL of a known database nor a path."""
    scheme = where.split("://")[0].split("+")[0]
    if "://" in where and scheme not in DATABASES:
        raise UserError(
            f"--storage {scheme}://...: unknown{nearest(scheme, DATABASES)}; allowed are "
            f"{', '.join(DATABASES)} URLs and the path of a journal file"
        )
    try:
        shown(where)
    except (ArgumentError, ValueError):
        raise UserError("--storage: no database URL; e.g. postgresql://user@host/name") from None


def told_apart(where: str, action: Callable[[], Result]) -> Result:
    """Do something with a storage; what is wrong with it becomes one line without passwords."""
    try:
        with failures_told(where):
            return action()
    except ImportError as error:
        name = (error.__cause__ or error).name
        package = DRIVERS.get(name, name)
        raise UserError(f"{shown(where)}: no driver found; pip install {package}") from None
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        if file_of(where) is None or "://" in where:
            raise
        raise UserError(f"{where}: damaged, or no journal of Optuna's ({error})") from None


@contextmanager
def failures_told(where: str) -> Iterator[None]:
    """Turn what a database fails with, as on a full disk, into one line without passwords."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, AssertionError) as error:
        found: BaseException | None = error
        while isinstance(found, AssertionError):  # of Optuna, which could not note a failed trial
            found = found.__context__
        if not isinstance(found, (SQLAlchemyError, StorageInternalError)):
            raise
        cause = getattr(found.__cause__ or found, "orig", None) or found
        raise UserError(f"{shown(where)}: {str(cause).strip().splitlines()[0]}") from None


def _open_database(url: str) -> RDBStorage:
    path = file_of(url)
    if path is None:
        options = {"pool_pre_ping": True}  # a connection may break while a whole trial runs
    else:
        options = {"connect_args": {"timeout": SQLITE_PATIENCE}}
        make_folder(path.parent)
    for _ in range(OPENINGS - 1):
        try:
            return _connect(url, options)
        except (ProgrammingError, IntegrityError):  # two workers made the tables at once
            time.sleep(1)
    return _connect(url, options)


def _connect(url: str, options: dict) -> RDBStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return RDBStorage(
            url, engine_kwargs=options, heartbeat_interval=HEARTBEAT, grace_period=GRACE
        )


def _open_journal(path: Path) -> JournalStorage:
    make_folder(path.parent)
    _mend_journal(path)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))


def _mend_journal(path: Path) -> None:
    """Cut off a last line that its writer did not live to end; nothing could follow it."""
    lock = JournalFileOpenLock(str(path))  # Optuna's own: nobody is writing now
    lock.acquire()
    try:
        content = path.read_bytes() if path.exists() else b""
        if content and not content.endswith(b"\n"):
            content = content[: content.rfind(b"\n") + 1]
            os.truncate(path, len(content))
        if lines := content.splitlines():
            json.loads(lines[-1])  # Optuna takes a wrong last line for one that is being written
    finally:
        lock.release()


class Crew:
    """This worker among those of a storage, and a way to tell who of them lives."""

    def __init__(self, where: str) -> None:
        self.path = file_of(where)
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._held = ExitStack()

    @staticmethod
    def lock(path: Path, name: str) -> FileLock:
        """The lock of a worker, or of something that only one may do at a time."""
        folder = path.with_name(path.name + ".workers")
        make_folder(folder)
        return FileLock(folder / f"{name}.lock")

    @property
    def sees_deaths(self) -> bool:
        """Whether locks tell who lives; otherwise the database's heartbeat does."""
        return self.path is not None

    @contextmanager
    def at_work(self) -> Iterator[Crew]:
        """Hold this worker's own lock."""
        if self.path is None:
            yield self
            return
        own = self.lock(self.path, self.name)
        with own:
            yield self
        Path(own.lock_file).unlink(missing_ok=True)

    def alone(self) -> ExitStack:
        """Nobody else between looking at the queue and taking a trial, until closed."""
        held = ExitStack()
        if self.path is not None:
            held.enter_context(self.lock(self.path, "queue"))
        return held

    def lives(self, name: str) -> bool:
        """Whether a worker of this name still holds its lock."""
        if name == self.name:
            return True
        lock = self.lock(self.path, name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)
        return False
