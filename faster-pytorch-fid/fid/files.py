"""Files: user errors, input size limits, atomic writes, paths, hashes, JSON.

INPUT_LIMITS=pixels=200e6,members=5e6 sets some limits, INPUT_LIMITS=off lifts them all; as an
environment variable it also applies to worker processes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import lzma
import math
import os
import re
import struct
import sys
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

SWITCH = "INPUT_LIMITS"
OFF = "off"
DEFAULT_LIMITS = {
    "pixels": 64e6,  # of one image, as declared in its header
    "file_bytes": 256 * 2.0**20,  # of one image file, unpacked if in an archive
    "members": 4e6,  # of an archive
    "archive_bytes": 64 * 2.0**30,  # of all members, unpacked
    "table_bytes": 8 * 2.0**30,  # of a csv
    "row_bytes": 64 * 2.0**20,  # of a row of a csv
    "statistics_bytes": 2 * 2.0**30,  # of an npz, unpacked
    "held_bytes": 64 * 2.0**30,  # of prepared pixels in memory at once; used by the suite only
}
CHUNK_BYTES = 1 << 20
NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
KEPT = 20  # characters of the file name kept in its temporary name, which must not get too long
PASSWORDS = (  # in URLs, in any parameter; the suite hides the same ones
    re.compile(r"(:/{1,2}[^\s:/@]*:)(?:\S+|[^\s:@][^:@]*)(?=@)"),  # a Path has one slash
    re.compile(r"((?:passw|passphrase|pwd)\w*=)[^\s&;'\"]+", re.IGNORECASE),
)
BROKEN_ZIP = (  # what zipfile raises on broken or foreign bytes
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)
MEMORY_TEXTS = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate")
PLACES = {  # subject of an error without a file name
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS), "output"),
    errno.ENOENT: "the current folder",
}


class ScoreError(Exception):
    """A user error (paths, files, flags), shown as one line with exit code 2, without passwords."""

    def __str__(self) -> str:
        text = " ".join(super().__str__().splitlines())  # a file name may contain line breaks
        for secret in PASSWORDS:
            text = secret.sub(r"\1***", text)
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


_noted: set[str] = set()  # kinds of notes that this process has printed


def note(text: str, once: str = "") -> None:
    """Print a one-line note to stderr; with ``once``, only the first of that kind."""
    if not once or once not in _noted:
        _noted.add(once)
        print(f"note: {ScoreError(text)}", file=sys.stderr)


def of_the_machine(error: BaseException, path: Path | str = "input or output") -> str | None:
    """Message for an error of memory or disk; None for any other error. path: if it names none."""
    if isinstance(error, zipfile.BadZipFile) and error.__context__:
        error = error.__context__  # zipfile hides a disk error behind BadZipFile
    if isinstance(error, OSError) and error.errno:
        if error.errno in (errno.EINVAL, errno.EBADF):
            return None
        return f"{error.filename or PLACES.get(error.errno, path)}: {error.strerror}"
    if "can't start new thread" in str(error):
        return "no more threads or processes are allowed (ulimit -u); try --num-workers 0"
    if isinstance(error, MemoryError) or any(text in str(error) for text in MEMORY_TEXTS):
        return "out of memory; lower --batch-size or --num-workers"
    return None


def limit(name: str) -> float:
    """The current limit, `math.inf` if lifted."""
    return _limits(os.environ.get(SWITCH, ""))[name]


def check_limit(name: str, found: float, what: str) -> None:
    """Raise `ScoreError` for a size beyond its limit; ``what`` names the file or flag."""
    allowed = limit(name)
    if found > allowed:
        raise ScoreError(
            f"{what}: {found:,.0f} {name.split('_')[-1]}; allowed are {allowed:,.0f}"
            f" ({SWITCH}={name}=N allows N)"
        )


def read_limited(read: Callable[[int], bytes], name: str, what: str) -> bytes:
    """What `read` returns; raises `ScoreError` if that is more than the limit."""
    allowed = limit(name)
    data = read(-1 if allowed >= sys.maxsize else int(allowed) + 1)
    check_limit(name, len(data), what)
    return data


@cache
def _limits(text: str) -> dict[str, float]:
    """The default limits, overridden by the value of INPUT_LIMITS."""
    if text == OFF:
        return dict.fromkeys(DEFAULT_LIMITS, math.inf)
    limits = dict(DEFAULT_LIMITS)
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in limits:
            raise ScoreError(f"{SWITCH}: {name!r} is unknown; known are {OFF}, {', '.join(limits)}")
        try:
            limits[name] = float(value)
        except ValueError:
            limits[name] = math.nan
        if not limits[name] > 0:
            raise ScoreError(f"{SWITCH}: {name} is {value!r}; allowed are numbers above 0")
    return limits


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` once written and synced; else `path` is kept."""
    partial = path.with_name(f"{path.name[:KEPT]}.{os.getpid()}.part")
    try:
        with _writing(path):
            with open(partial, "wb") as file:
                yield file
                file.flush()
                sync(file)
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def sync(file: BinaryIO) -> None:
    """Flush a file to disk; file systems that do not support fsync are accepted."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def check_place(path: Path) -> None:
    """Raise what `replacing` would, before a long computation; creates only the folder."""
    with _writing(path):
        tempfile.TemporaryFile(dir=path.parent).close()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Create the folder of a file to write; errors within the block become a `ScoreError`."""
    try:
        if path.exists() and not path.is_file():  # a device would be replaced like a file
            is_folder = path.is_dir()
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR) if is_folder else "is no file")
        os.makedirs(os.path.realpath(path.parent), exist_ok=True)
        yield
    except OSError as error:
        raise ScoreError(f"{path}: cannot be written ({error.strerror})") from None


def relative(path: Path | str, folder: Path) -> str:
    """A path relative to the folder of the file that stores it, so that both can move together.

    The system resolves links before .., so if a link would make the relative path lead elsewhere,
    it is computed from the resolved paths of both.
    """
    try:
        found = os.path.relpath(path, folder)
        if os.path.realpath(folder / found) == os.path.realpath(path):
            return found
        return os.path.relpath(os.path.realpath(path), os.path.realpath(folder))
    except ValueError:  # another drive on Windows
        return os.path.abspath(path)


def composed(name: str) -> str:
    """A name in Unicode form NFC; macOS may store accents decomposed."""
    return unicodedata.normalize("NFC", name)


def user_path(text: str) -> str:
    """Resolve a path as a user writes it: expands ~, which no shell does after =, and finds
    accented names in either Unicode normalisation form, like the suite.
    """
    path = os.path.expanduser(text)
    if path.split(os.sep)[0] == "~":
        raise ScoreError(f"{text}: this user has no home folder; set HOME, or write it without ~")
    folder, name = os.path.split(path.rstrip("/"))
    if path.isascii() or os.path.exists(path) or not name:
        return path
    folder = user_path(folder)
    with contextlib.suppress(OSError, ValueError):  # ValueError: no path is like this
        for found in os.listdir(folder or os.curdir):
            if composed(found) == composed(name):
                return os.path.join(folder, found)
    return os.path.join(folder, name)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within the block, errors of reading a file name it, as those of opening it do."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def reading(what: Path | str, reason: str = "", *kinds: type[Exception]) -> Iterator[None]:
    """Within the block, `OSError` and these kinds become a `ScoreError` of what is read."""
    try:
        yield
    except (OSError, *kinds) as error:
        raise ScoreError(of_the_machine(error, what) or f"{what}: {reason} ({error})") from None


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes in hex."""
    digest = hashlib.sha256()
    with naming(path), open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    """The contents of a JSON file."""
    with reading(path, "not readable JSON", ValueError, RecursionError):
        if path.exists() and not path.is_file():
            raise ScoreError(f"{path}: is not a file")
        return json.loads(path.read_text(encoding="utf-8"))
