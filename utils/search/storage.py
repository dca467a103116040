"""Storage of a study: an SQLite file or a database server, opened by URL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, quote

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy import create_engine, inspect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from config.errors import UserError, nearest
from config.section import user_path
from utils.io.files import make_folder
from utils.io.messages import message_of

DATABASES = ("sqlite", "postgresql", "mysql")
EXAMPLES = "sqlite:///study.db (a file) and postgresql://user@host/name"
HEARTBEAT, GRACE = 10, 60  # seconds; a worker without a heartbeat for GRACE counts as dead
MAX_RETRIES = 3  # of a trial that stops its worker
OPENINGS = 5  # attempts to open a database while other workers create its tables
SQLITE_PATIENCE = 60  # seconds to wait for another worker's write
SQLITE_PARAMETERS = {  # SQLAlchemy drops others, so that x?1 and x?2 would be one file
    *("timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements"),
}
DRIVERS = {  # module that SQLAlchemy asks for: package that contains it
    "psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"
}  # fmt: skip


def storage_url(text: str | None, folder: Path) -> URL:
    """Parse a database URL; None means <folder>/study.db.

    Raises `UserError` for anything but a persistent database. Messages repeat only the scheme,
    since a mistyped URL may contain its password anywhere.
    """
    if text is None:
        return URL.create("sqlite", database=str(folder / "study.db"))
    try:
        url = make_url(text)
        text.encode()  # fails on undecodable bytes
    except (ArgumentError, ValueError):
        raise UserError(f"--storage: no database URL; allowed are e.g. {EXAMPLES}") from None
    kind = url.get_backend_name()
    if kind not in DATABASES:
        raise UserError(
            f"--storage {kind}://...: unknown{nearest(kind, DATABASES)}; allowed are "
            f"{', '.join(DATABASES)}"
        )
    if kind == "sqlite":
        if (url.database or ":memory:").startswith((":memory:", "file:")):  # or a URI
            raise UserError(f"--storage {kind}://...: names no file; allowed are e.g. {EXAMPLES}")
        if parse_qs(text.partition("?")[2], keep_blank_values=True).keys() - SQLITE_PARAMETERS:
            known = ", ".join(sorted(SQLITE_PARAMETERS))
            raise UserError(f"--storage {kind}://...: ? begins parameters, which may be {known}")
        return url.set(database=str(user_path(url.database)))
    user, _, rest = text.partition("@")
    misplaced = "@" in text and (url.username is None or "@" in rest or "?" in user)
    shown = ":" in (url.username or "") or set(";&=").intersection(f"{url.host}{url.database}")
    if misplaced or shown:
        raise UserError(
            f"--storage {kind}://...: cannot tell the password from the rest; parameters follow a "
            "?, and within user name, password and parameters write @ as %40, / as %2F, ? as %3F"
        )
    return url


def public_url(url: URL) -> str:
    """A URL that is safe to print: without password and parameters, which may contain one.

    >>> public_url(make_url("postgresql://me:secret@host/db?sslpassword=secret"))
    'postgresql://me:***@host/db'
    """
    return url.set(query={}).render_as_string(hide_password=True)


def open_storage(url: URL) -> RDBStorage:
    """Open a database, creating Optuna's tables if needed.

    Trials of dead workers are queued again. Raises `UserError` for a missing driver, an unreachable
    server, or a file or tables of another program.
    """
    options: dict = {"pool_pre_ping": True}  # a connection may break while a trial trains
    if url.get_backend_name() == "sqlite":
        options = {"connect_args": {"timeout": SQLITE_PATIENCE}}
        make_folder(Path(url.database).parent)
    try:
        with storage_errors(url):
            _require_own_tables(url, options)
            return _connect(url, options)
    except ImportError as error:
        name = (error.__cause__ or error).name
        package = DRIVERS.get(name, name)
        raise UserError(f"{public_url(url)}: no driver found; pip install {package}") from None
    except (RuntimeError, TypeError, ValueError) as error:  # other Optuna's tables; parameters
        raise _refusal(url, error) from None


def _require_own_tables(url: URL, options: dict) -> None:
    """Refuse another program's studies before Optuna adds tables next to them."""
    engine = create_engine(url, **options)  # as patient with another worker's write as later
    try:
        tables = inspect(engine)
        if not tables.has_table("studies"):
            return
        names = {column["name"] for column in tables.get_columns("studies")}
    finally:
        engine.dispose()
    if "study_id" not in names:
        raise UserError(
            f"{public_url(url)}: studies has no column study_id; another program's table"
        )


def retry_callback() -> RetryHeartbeatStaleTrialCallback:
    """Queues an unfinished trial again, with the same values."""
    return RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES)


def _connect(url: URL, options: dict) -> RDBStorage:
    for attempt in range(OPENINGS):
        try:
            return RDBStorage(
                url.render_as_string(hide_password=False),  # quoted, so Optuna expands no {}
                engine_kwargs=options,
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=retry_callback(),
            )
        except SQLAlchemyError as error:
            made_twice = isinstance(error, IntegrityError) or "already exists" in str(error)
            if not made_twice or attempt == OPENINGS - 1:
                raise
            time.sleep(1)
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def storage_errors(url: URL) -> Iterator[None]:
    """Turn database errors, such as a full disk, into a one-line `UserError` without passwords."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, AssertionError) as error:
        found: BaseException | None = error
        while isinstance(found, AssertionError):  # from Optuna, if it cannot record a failed trial
            found = found.__context__
        if not isinstance(found, SQLAlchemyError | StorageInternalError):
            raise
        raise _refusal(url, getattr(found.__cause__ or found, "orig", None) or found) from None


def _refusal(url: URL, error: BaseException) -> UserError:
    """The first line of an error, with the URL's passwords masked."""
    text = message_of(error)
    values = [v for k, vs in url.normalized_query.items() if "pass" in k.lower() for v in vs]
    if text.endswith("database is locked"):
        text += f" by another process, or its file system has no locks; give --storage, {EXAMPLES}"
    secrets = filter(None, [url.password, *values])
    for secret in (form for word in secrets for form in (word, quote(word, safe=""))):
        text = text.replace(secret, "***")
    return UserError(f"{public_url(url)}: {text}")
