"""Tell faults of the machine (memory, disks) from faults of a file."""

from __future__ import annotations

import errno
import os
import pickle
import re
import zipfile
from pathlib import Path

from config.errors import MachineError

MEMORY_TEXTS = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate")
SYSTEM = re.compile(r"\(os error (\d+)\)")  # how libraries in Rust, as safetensors, say a number
NO_THREADS = "can't start new thread"
NO_TEMPORARY = "No usable temporary directory"
NO_TEXT = "surrogates not allowed"  # bytes of a file's name in another encoding
OUT_OF_REACH = {  # of the user's files and disks; any other is a fault of ours
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO, errno.EBUSY),
    *(errno.EMFILE, errno.ENFILE, errno.EAGAIN),
}
PLACES = {  # what an error without a file's name is about, where that is not the output
    errno.EAGAIN: "threads and processes (ulimit -u)",
    errno.EMFILE: "open files (ulimit -n)",
    errno.ENOENT: "the current folder",
}


def error_number(error: BaseException) -> int | None:
    """The system's number of an error, also of one that a library gives as text; None without."""
    if isinstance(error, RuntimeError) and NO_THREADS in str(error):
        return errno.EAGAIN
    if not isinstance(error, OSError):
        return None
    said = SYSTEM.search(str(error))
    return int(said[1]) if error.errno is None and said else error.errno


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; Python, NumPy, PyTorch and the system say it in their own ways."""
    if isinstance(error, OSError) and error_number(error) is not None:
        return error_number(error) == errno.ENOMEM
    can_tell = isinstance(error, RuntimeError | OSError)  # the latter from Pillow's decoders
    is_told = can_tell and any(text in str(error) for text in MEMORY_TEXTS)
    return is_told or isinstance(error, MemoryError)


def raise_if_machine(error: BaseException, place: Path | str) -> None:
    """Raise `MachineError` where reading a file failed for another reason than what it holds.

    An error number comes from the system, which does not know what a file should hold; EINVAL alone
    is also what a place beyond the end of a damaged archive gives.
    """
    if isinstance(error, zipfile.BadZipFile) and error.__context__:
        error = error.__context__  # zipfile takes a disk that does not answer for no zip
    if is_out_of_memory(error):
        raise MachineError(f"out of memory while reading {place}, which stays as it is") from error
    number = error_number(error)
    if number not in (None, errno.EINVAL):
        reason = f"cannot be read: {os.strerror(number)}; it stays as it is"
        raise MachineError(f"{place}: {reason}") from error


def line_about(error: BaseException) -> str | None:
    """What a user reads of an error of the machine, its files and disks; None for one of ours."""
    if is_out_of_memory(error):
        return "out of memory; lower batch sizes, or sizes of the network"
    if isinstance(error, UnicodeEncodeError) and error.reason == NO_TEXT:
        return f"{error.object}: its name is no UTF-8, as libraries need; name another"
    number = error_number(error)
    if number not in OUT_OF_REACH:
        return None
    if NO_TEMPORARY in str(error):
        return f"TMPDIR: {error.strerror}"
    place = getattr(error, "filename", None) or PLACES.get(number, "output")
    return f"{place}: {os.strerror(number)}"


def refusal(error: pickle.UnpicklingError) -> str:
    """Why a file is not opened, and what it would have run as far as that is known."""
    if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"holds more than tensors and is not opened (it asks for {wanted[1]})"
    if re.search(r"Unsupported operand|invalid load key", str(error)):
        return "damaged or no weights file"
    return "holds more than tensors and is not opened"


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
