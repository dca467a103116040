"""Score generated or repaired images.

`inputs` opens both image sets, `extraction` turns `images` into `statistics` of `features`,
`scoring` computes the numbers of `metrics` and `paired`, `certificate` records them. What a user
can mend raises `files.ScoreError` everywhere.

This file is the start of every script, before the libraries are imported, which takes seconds and
may fail: hooks that end it in one line on Ctrl-C and failed imports, variables that libraries
cannot read, arguments, standard streams. It imports almost nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any, TextIO

MISTAKE, INTERRUPTED = 2, 130  # exit codes
READER_GONE = 141  # the shell's code for SIGPIPE
IMPORTING = "<frozen importlib"  # file name prefix of Python's import machinery
INSTALLED = ("site-packages", "dist-packages")  # folders of installed libraries
TQDM = "TQDM_"
BAR_SETTINGS = {  # settings for all progress bars, and how tqdm parses them on import
    **dict.fromkeys(("DISABLE", "LEAVE", "DYNAMIC_NCOLS", "COLOUR"), str),
    **dict.fromkeys(("MININTERVAL", "MAXINTERVAL", "MINITERS", "DELAY", "SMOOTHING"), float),
    **dict.fromkeys(("NCOLS", "NROWS"), int),
}
ALLOCATORS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
OPTION = r"\s*\w+\s*:\s*(\[[^\]]*\]|[^\s,:=\[\]'\"]+)\s*"
OPTIONS = rf"\s*|{OPTION}(,{OPTION})*,?"  # others make PyTorch abort with a C++ trace
READERS = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")


def end_in_one_line(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A `sys.excepthook` that reports Ctrl-C and failed imports in one line, exit code 2.

    Our own bugs keep their traceback, as does everything in an interactive session.
    """
    if hasattr(sys, "ps1"):
        sys.__excepthook__(kind, error, trace)
    elif kind is KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # Python then exits through the signal
    elif line := failed_import(error):
        print(f"error: {line}", file=sys.stderr, flush=True)
        os._exit(MISTAKE)
    else:
        sys.__excepthook__(kind, error, trace)


def interrupt(_number: int, frame: FrameType | None) -> None:
    """What Python does on Ctrl-C, except in the middle of an import."""
    end_import(frame, "interrupted")
    raise KeyboardInterrupt


def end_import(frame: FrameType | None, line: str) -> None:
    """End the process with a line if the frame belongs to an import in progress.

    There Python may drop an exception, and C++ that cannot pass it on aborts.
    """
    while frame and not frame.f_code.co_filename.startswith(IMPORTING):
        frame = frame.f_back
    if frame and not hasattr(sys, "ps1"):
        print(line, file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)


def failed_import(error: BaseException) -> str | None:
    """Which library could not be imported and why, on one line; None for any other error.

    It may be missing, broken, out of memory, or misconfigured by an environment variable.
    """
    trace = error.__traceback__
    while trace:
        frame, trace = trace.tb_frame, trace.tb_next
        is_import = frame.f_code.co_name == "<module>"
        if is_import and any(folder in frame.f_code.co_filename for folder in INSTALLED):
            library = frame.f_globals["__name__"].partition(".")[0]
            reason = next(filter(None, map(str.strip, str(error).splitlines())), repr(error))
            if reason.startswith("Invalid log settings"):  # PyTorch's, which names it lines below
                reason = f"TORCH_LOGS: {reason}"
            return f"{library} cannot be imported: {reason}"
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
        return f"{error.name} is not installed for {sys.executable}; activate its environment"
    return None


def leave_out_unreadable() -> None:
    """Unset variables that make tqdm or PyTorch fail on import or in later use.

    `torch.load` always gets `weights_only` explicitly; with both READERS set it would fail.
    """
    for name in READERS:
        os.environ.pop(name, None)
    for name, text in list(os.environ.items()):
        if name.startswith(TQDM) and not _is_bar_setting(name.removeprefix(TQDM), text):
            reason = "no bar can have it"
        elif name in ALLOCATORS and not re.fullmatch(OPTIONS, text):
            reason = "allowed are OPTION:VALUE, separated by commas"
        else:
            continue
        del os.environ[name]
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or disk full
            sys.stderr.write(f"note: {name}={text!a} is ignored; {reason}\n")


def _is_bar_setting(name: str, text: str) -> bool:
    try:
        BAR_SETTINGS[name](text)
    except (KeyError, ValueError):
        return False
    return True


def keep_warnings_harmless() -> None:
    """Show warnings, mostly from libraries, instead of raising them under python -W error."""
    filters = [("default" if a == "error" else a, *rest) for a, *rest in warnings.filters]
    if filters != warnings.filters:
        warnings.resetwarnings()
        warnings.filters.extend(filters)


def end_thread(failed: threading.ExceptHookArgs) -> None:
    """A `threading.excepthook`; a library repeats memory and disk errors in the main thread."""
    from fid.files import of_the_machine  # imported here: the hooks come first

    if not (failed.exc_value and of_the_machine(failed.exc_value)):
        threading.__excepthook__(failed)


def empty_argument(words: Sequence[str]) -> str | None:
    """The error for an empty argument, which would mean the current folder; None without one."""
    for before, word in zip(["the name of the program", *words], words, strict=False):
        flag, equals, value = word.partition("=")
        if not word or (flag.startswith("--") and equals and not value):
            name = flag or (before if before.startswith("-") else f"after {before}")
            return f"argument {name}: is empty; is a variable of the shell unset?"
    return None


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type for whole numbers from low to high."""

    def whole_number(text: str) -> int:
        if text.isdecimal() and low <= int(text) <= (high or int(text)):
            return int(text)
        from argparse import ArgumentTypeError  # imported here: the hooks come first

        limits = f"from {low}" + (f" to {high:,}" if high else "")
        raise ArgumentTypeError(f"{text!r} is not a whole number {limits}")

    return whole_number


@contextlib.contextmanager
def usable_streams() -> Iterator[None]:
    """Make stdin, stdout and stderr usable within the block.

    Closed ones are opened on /dev/null, so that no file gets their descriptors; the others block.
    Characters that the locale cannot encode are escaped. Failed writes to stderr are dropped: a
    note must not stop the program.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor: this one
            os.set_inheritable(number, True)
        with contextlib.suppress(OSError, AttributeError):  # not available on Windows
            os.set_blocking(number, True)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in before)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.stderr = _Notes(sys.stderr)
    try:
        yield
    finally:
        _flush_or_drop(sys.stdout)
        _flush_or_drop(sys.stderr)
        sys.stdout, sys.stderr = before


def _flush_or_drop(stream: TextIO) -> None:
    """Flush a stream; if that fails, discard its buffer."""
    try:
        stream.flush()
    except (OSError, ValueError):  # full disk, reader or terminal gone, stream closed
        _drop(stream)


def _drop(stream: TextIO) -> None:
    """Redirect a stream's buffer and all later output to /dev/null."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a file descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Notes:
    """A text stream that ignores failed writes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            _drop(self._stream)
        return len(text)

    def flush(self) -> None:
        _flush_or_drop(self._stream)


try:
    os.getcwd()
except FileNotFoundError as gone:  # there libraries of PyTorch cannot be loaded, which aborts
    print(f"error: the current folder: {gone.strerror}", file=sys.stderr)
    sys.exit(MISTAKE)
sys.excepthook, threading.excepthook = end_in_one_line, end_thread
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # neither ignored nor handled
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, interrupt)
leave_out_unreadable()  # before any module imports PyTorch and tqdm
keep_warnings_harmless()
