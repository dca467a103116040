"""Files: errors of the user's, how much an input may claim, whole writes, names, hashes, JSON.

INPUT_LIMITS=pixels=200e6,members=5e6 sets some limits, INPUT_LIMITS=off lifts them all; the
environment variable reaches worker processes too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import lzma
import math
import os
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from fid.names import composed

SWITCH = "INPUT_LIMITS"
OFF = "off"
DEFAULT_LIMITS = {
    "pixels": 64e6,  # of one image, as its header declares it
    "file_bytes": 256 * 2.0**20,  # of one image file, in an archive unpacked
    "members": 4e6,  # of an archive
    "archive_bytes": 64 * 2.0**30,  # of all members unpacked
    "table_bytes": 8 * 2.0**30,  # of a csv
    "row_bytes": 64 * 2.0**20,  # of a row of a csv
    "statistics_bytes": 2 * 2.0**30,  # of an npz, unpacked
    "held_bytes": 64 * 2.0**30,  # of prepared pixels that are in memory at once; of the suite alone
}
CHUNK_BYTES = 1 << 20
NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
KEPT = 20  # letters of a file's name in its temporary one, which must not be too long
BROKEN_ZIP = (  # what zipfile raises on broken or foreign bytes
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)
PLACES = {errno.ENOENT: "the current folder"}  # of an error that names no file, unless the output


class ScoreError(Exception):
    """A mistake of the user's (paths, files, flags). The command shows it as one line, code 2."""

    def __str__(self) -> str:
        text = " ".join(super().__str__().splitlines())  # a file's name may hold anything
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


_noted: set[str] = set()  # what this process has noted once


def note(text: str, once: str = "") -> None:
    """One line on stderr, which no file's name can break; the first of those of one kind."""
    if not once or once not in _noted:
        _noted.add(once)
        print(f"note: {ScoreError(text)}", file=sys.stderr)


def of_the_machine(error: BaseException) -> str | None:
    """What to say of memory that ran out, or of a disk that failed; None for faults of ours."""
    texts = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate")
    if isinstance(error, zipfile.BadZipFile) and error.__context__:
        error = error.__context__  # zipfile takes a disk that does not answer for no zip
    if isinstance(error, OSError):
        if error.errno in (None, errno.EINVAL, errno.EBADF):
            return None
        place = error.filename or PLACES.get(error.errno, "output")
        return f"{place}: {error.strerror}"
    if "can't start new thread" in str(error):
        return "no more threads or processes are allowed (ulimit -u); try --num-workers 0"
    if isinstance(error, MemoryError) or any(text in str(error) for text in texts):
        return "out of memory; lower --batch-size or --num-workers"
    return None


def limit(name: str) -> float:
    """The limit in force, `math.inf` where it is lifted. Raises `ScoreError` for a wrong switch."""
    return _limits(os.environ.get(SWITCH, ""))[name]


def check_limit(name: str, found: float, what: str) -> None:
    """Refuse a size beyond its limit; ``what`` names the file or flag."""
    allowed = limit(name)
    if found > allowed:
        raise ScoreError(
            f"{what}: {found:,.0f} {name.split('_')[-1]}; allowed are {allowed:,.0f}"
            f" ({SWITCH}={name}=N allows N)"
        )


def most_bytes(name: str) -> int:
    """How much to read of a file so that more than its limit shows; -1 for all of it."""
    allowed = limit(name)
    return -1 if math.isinf(allowed) else int(allowed) + 1


@cache
def _limits(text: str) -> dict[str, float]:
    """The defaults with what the switch says."""
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
    """A file under a temporary name that takes `path`'s place once it is written and synced.

    Raises `ScoreError` where the place cannot be written to; what was there stays.
    """
    partial = path.with_name(f"{path.name[:KEPT]}.{os.getpid()}.part")
    try:
        with _as_mistake(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                yield file
                file.flush()
                sync(file)
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def sync(file: BinaryIO) -> None:
    """Let a file's bytes reach the disk; some network drives cannot say that they have."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def check_place(path: Path) -> None:
    """Raise what `replacing` would raise, before the long part; makes no more than the folder."""
    with _as_mistake(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()


@contextlib.contextmanager
def _as_mistake(path: Path) -> Iterator[None]:
    try:
        if path.exists() and not path.is_file():  # a device would be replaced as a file is
            is_folder = path.is_dir()
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR) if is_folder else "is no file")
        yield
    except OSError as error:
        raise ScoreError(f"{path}: cannot be written ({error.strerror})") from None


def relative(path: Path | str, folder: Path) -> str:
    """A path as it is written into a file in a folder, so that both can move together.

    The system follows links before it goes up by .., so where a link on the way would make the
    short form lead elsewhere, the true places of both are used.
    """
    try:
        found = os.path.relpath(path, folder)
        if os.path.realpath(folder / found) == os.path.realpath(path):
            return found
        return os.path.relpath(os.path.realpath(path), os.path.realpath(folder))
    except ValueError:  # another drive of Windows
        return os.path.abspath(path)


def user_path(text: str) -> str:
    """A path as a user writes it: ~ is the home folder, which no shell puts in after =, and an
    accent is found in whichever form of Unicode the folder has it; as the suite finds paths.

    Raises `ScoreError` for the home folder of a user who has none, as in some containers.
    """
    path = os.path.expanduser(text)
    if path.split(os.sep)[0] == "~":
        raise ScoreError(f"{text}: this user has no home folder; set HOME, or write it without ~")
    folder, name = os.path.split(path.rstrip("/"))
    if path.isascii() or os.path.exists(path) or not name:
        return path
    folder = user_path(folder)
    with contextlib.suppress(OSError):
        for found in os.listdir(folder or os.curdir):
            if composed(found) == composed(name):
                return os.path.join(folder, found)
    return os.path.join(folder, name)


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises `ScoreError` where it cannot be read."""
    try:
        if path.exists() and not path.is_file():
            raise ScoreError(f"{path}: is not a file")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScoreError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ScoreError(f"{path}: not readable JSON ({error})") from None
