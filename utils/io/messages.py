"""One-line messages: notes, sizes beyond their limits, and errors of the machine (memory, disks).

An error of the machine says nothing about the file that was being read.
"""

from __future__ import annotations

import errno
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fid import files
from tqdm import tqdm

from config.errors import MachineError, UserError, printable

SYSTEM = re.compile(r"\(os error (\d+)\)")  # how Rust libraries such as safetensors report errno
NAMED = re.compile(r"^[\w.]*Error: |\berror: ")  # in the output of Python or a C++ compiler
NO_THREADS = "can't start new thread"
NO_TEMPORARY = "No usable temporary directory"
NO_TEXT = "surrogates not allowed"  # a file name that is not UTF-8
OUT_OF_REACH = {  # errors of the user's files and disks; any other is an internal error
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO, errno.EBUSY),
    *(errno.EMFILE, errno.ENFILE, errno.EAGAIN),
}
PLACES = files.PLACES | {  # subject of an error without a file name
    errno.EAGAIN: "threads and processes (ulimit -u)",
    errno.EMFILE: "open files (ulimit -n)",
}

_told: set[str] = set()  # keys of notes that this process has printed


def note(text: str) -> None:
    """Print a one-line note to stderr: information that needs no action."""
    tqdm.write(f"note: {printable(text)}", file=sys.stderr)


def note_once(what: str, text: str) -> None:
    """Print a note unless this process has printed one with the same key ``what``."""
    if what not in _told:
        _told.add(what)
        note(text)


@contextmanager
def as_user_error() -> Iterator[None]:
    """Turn the scorer's `ScoreError` into a `UserError`."""
    try:
        yield
    except files.ScoreError as error:
        raise UserError(str(error)) from None


def limit(name: str) -> float:
    """The current limit, `math.inf` if lifted. Raises `UserError` for an invalid INPUT_LIMITS."""
    with as_user_error():
        return files.limit(name)


def check_limit(name: str, found: float, what: str) -> None:
    """Raise `UserError` for a size beyond its limit; ``what`` names the file or flag."""
    with as_user_error():
        files.check_limit(name, found, what)


def error_number(error: BaseException) -> int | None:
    """The errno of an error, also if a library gives it only as text; None if it has none."""
    if isinstance(error, RuntimeError) and NO_THREADS in str(error):
        return errno.EAGAIN
    if not isinstance(error, OSError):
        return None
    said = SYSTEM.search(str(error))
    return int(said[1]) if error.errno is None and said else error.errno


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, as reported by Python, NumPy, PyTorch or the system."""
    if isinstance(error, OSError) and error_number(error) is not None:
        return error_number(error) == errno.ENOMEM
    can_tell = isinstance(error, RuntimeError | OSError)  # OSError: Pillow's decoders
    is_told = can_tell and any(text in str(error) for text in files.MEMORY_TEXTS)
    return is_told or isinstance(error, MemoryError)


def raise_if_machine(error: BaseException, place: Path | str) -> None:
    """Raise `MachineError` if reading a file failed for a reason other than its contents.

    An errno comes from the system, which knows nothing about contents, except EINVAL, which seeking
    beyond the end of a damaged archive raises too.
    """
    if isinstance(error, zipfile.BadZipFile) and error.__context__:
        error = error.__context__  # zipfile hides a disk error behind BadZipFile
    if is_out_of_memory(error):
        raise MachineError(f"out of memory while reading {place}, which stays as it is") from error
    number = error_number(error)
    if number not in (None, errno.EINVAL):
        reason = f"cannot be read: {os.strerror(number)}; it stays as it is"
        raise MachineError(f"{place}: {reason}") from error


def line_about(error: BaseException) -> str | None:
    """One-line message for an error of the machine, files or disks; None for an internal error."""
    if is_out_of_memory(error):
        return "out of memory; lower batch sizes, or sizes of the network"
    if isinstance(error, UnicodeEncodeError) and error.reason == NO_TEXT:
        return f"{error.object}: its name is not UTF-8, which libraries need; rename it"
    if inner := getattr(error, "inner_exception", None):  # torch.compile's
        needs = "it needs a C++ compiler and a writable TORCHINDUCTOR_CACHE_DIR"
        return f"torch.compile failed: {_reason(inner)}; {needs}, or set compile=false"
    number = error_number(error)
    if number not in OUT_OF_REACH:
        return None
    if NO_TEMPORARY in str(error):
        return f"TMPDIR: {error.strerror}"
    place = getattr(error, "filename", None) or PLACES.get(number, "input or output")
    return f"{place}: {os.strerror(number)}"


def _reason(error: Exception) -> str:
    """The last line of an error, such as a compiler's output, that names one; else the first."""
    lines = str(error).strip().splitlines()
    named = [line.strip() for line in lines if NAMED.search(line)]
    return named[-1] if named else message_of(error)


def refusal(error: pickle.UnpicklingError) -> str:
    """Why a pickle is refused, with the name of the global it asks for if known."""
    if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"contains more than tensors and is not opened (it asks for {wanted[1]})"
    if re.search(r"Unsupported operand 1(4\d|5[01])\b", str(error)):
        return "is a pickle of a newer protocol and is not opened"
    if re.search(r"Unsupported operand|invalid load key", str(error)):
        return "damaged or no weights file"
    return "contains more than tensors and is not opened"


def message_of(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
