"""This process and its surroundings: broken libraries, signals, streams, torchrun.

The suite uses it too (utils/cli.py, utils/distributed.py).
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from types import FrameType, TracebackType
from typing import Any, NamedTuple, TextIO

from fid.files import ScoreError

MISTAKE, READER_GONE = 2, 141  # exit codes; the latter is what shells report of SIGPIPE
IMPORTING = "<frozen importlib"  # how the files of Python's own import are called
INSTALLED = ("site-packages", "dist-packages")  # folders of libraries
STOPS = [  # that ask a process to end: shells, terminals that close, batch systems
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)  # Windows has two of them
]
INSISTING = [  # a second one is meant; others repeat by themselves, and torchrun repeats all
    number for number in STOPS[:3] if "TORCHELASTIC_RUN_ID" not in os.environ
]
COUNTS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}  # variable: its smallest value
MEETING = ("MASTER_ADDR", "MASTER_PORT")


def keep_warnings_harmless() -> None:
    """Show the warnings, mostly of libraries, that python -W error would end the work with."""
    filters = [("default" if a == "error" else a, *rest) for a, *rest in warnings.filters]
    if filters != warnings.filters:
        warnings.resetwarnings()
        warnings.filters.extend(filters)


def end_in_one_line(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A `sys.excepthook`: Ctrl-C and libraries that cannot be imported are one line, code 2.

    Errors of ours keep their traceback, and so does everything in an interactive session.
    """
    if hasattr(sys, "ps1"):
        sys.__excepthook__(kind, error, trace)
    elif kind is KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # then Python ends by the signal itself
    elif line := failed_import(error):
        print(f"error: {line}", file=sys.stderr, flush=True)
        os._exit(MISTAKE)
    else:
        sys.__excepthook__(kind, error, trace)


def failed_import(error: BaseException) -> str | None:
    """Which library could not be imported and why, in a line; None for any other error.

    It may be missing or broken, find too little memory, or dislike a variable of its own.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        is_import = frame.f_code.co_name == "<module>"
        if is_import and any(folder in frame.f_code.co_filename for folder in INSTALLED):
            library = frame.f_globals["__name__"].partition(".")[0]
            reason = next(filter(None, map(str.strip, str(error).splitlines())), repr(error))
            return f"{library} cannot be imported: {reason}"
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
        return f"{error.name} is not installed for {sys.executable}; activate its environment"
    return None


def is_importing(frame: FrameType | None) -> bool:
    """Whether a frame belongs to an import that has not ended."""
    while frame and not frame.f_code.co_filename.startswith(IMPORTING):
        frame = frame.f_back
    return frame is not None


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Let a function handle the signals of `STOPS`; ignored ones, as under nohup, stay ignored."""
    free = [n for n in STOPS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, handler) for number in free}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def ignore_repeats() -> None:
    """Let signals that come several times by themselves not disturb what is cleared up."""
    for number in set(STOPS).difference(INSISTING):
        signal.signal(number, signal.SIG_IGN)


def leave(_number: int, _frame: FrameType | None) -> None:
    """A handler that ends as Ctrl-C does."""
    ignore_repeats()
    raise KeyboardInterrupt


@contextlib.contextmanager
def usable_streams() -> Iterator[None]:
    """Make stdin, stdout and stderr usable within the block.

    Closed ones lead nowhere, so that no file gets their numbers. Characters unknown to the locale
    are escaped. What cannot be written to stderr is dropped: notes must not end the work.
    """
    for number in range(3):
        _open_and_wait(number)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream or _Nowhere() for stream in before)
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


def _open_and_wait(number: int) -> None:
    """Open a standard stream that is closed; let writing to one that is full wait."""
    try:
        os.fstat(number)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, this one
        os.set_inheritable(number, True)
    with contextlib.suppress(OSError, AttributeError):  # Windows has no such mode
        os.set_blocking(number, True)


def _flush_or_drop(stream: TextIO) -> None:
    """Write what a stream still holds; if that fails, drop it."""
    try:
        stream.flush()
    except (OSError, ValueError):  # a full disk, a reader or a terminal that is gone; closed
        _drop(stream)


def _drop(stream: TextIO) -> None:
    """Send what a stream still holds, and all that follows, nowhere."""
    with contextlib.suppress(OSError, ValueError):  # one that is no file has nowhere to go
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Nowhere(io.TextIOBase):
    """A stream in the place of a closed one."""

    def write(self, text: str) -> int:
        return len(text)


class _Notes:
    """A text stream that drops what it cannot write."""

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


class Place(NamedTuple):
    """The number of a process, how many there are, and its number on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def place() -> Place:
    """The place that torchrun gave this process; alone where the set of variables is incomplete.

    Parts of the set, which outer jobs and their shells leave behind, are ignored with a note.
    Raises `ScoreError` for values that no launcher sets.
    """
    return _place(tuple(os.environ.get(name) for name in (*COUNTS, *MEETING)))


@cache  # so that a note comes once
def _place(values: tuple[str | None, ...]) -> Place:
    found = dict(zip((*COUNTS, *MEETING), values, strict=True))
    for name, smallest in COUNTS.items():
        text = found[name]
        if text is not None and not (text.isdecimal() and int(text) >= smallest):
            allowed = f"allowed are whole numbers from {smallest}, or unset it"
            raise ScoreError(f"the environment has {name}={text!r}; {allowed}")
    asked = Place(*(int(found[name] or smallest) for name, smallest in COUNTS.items()))
    missing = [name for name, text in found.items() if not text]
    if missing:
        if asked.rank or asked.world_size > 1:
            has = ", ".join(f"{name}={found[name]}" for name in COUNTS if found[name] is not None)
            lacks = ", ".join(missing)
            print(f"note: {has} is ignored: torchrun would also set {lacks}", file=sys.stderr)
        return Place()
    if asked.rank >= asked.world_size:
        raise ScoreError(
            f"the environment has RANK={asked.rank} and WORLD_SIZE={asked.world_size}; ranks count "
            "from 0 to below the size; unset both, or start with torchrun"
        )
    return asked


def meet(backend: str, patience: timedelta) -> None:
    """Connect the processes of torchrun; each waits so long for the others, later too.

    Raises `ScoreError` where they do not meet.
    """
    import torch.distributed as dist  # here: a process alone has no use for it

    try:
        dist.init_process_group(backend, timeout=patience)
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ScoreError(
            f"the processes of torchrun do not meet at MASTER_ADDR, MASTER_PORT: {reason}; "
            "without torchrun, unset WORLD_SIZE"
        ) from error
