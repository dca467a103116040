"""Process environment: warnings, signals, standard streams.

The suite uses it too (utils/cli.py).
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TextIO

from fid.files import of_the_machine
from fid.startup import interrupt

READER_GONE = 141  # the shell's code for SIGPIPE
ELASTIC = "TORCHELASTIC_RUN_ID"  # variable that only torchrun sets
STOPS = [  # signals that ask a process to end: from shells, closed terminals, batch systems
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)  # Windows has only two of them
]
INSISTING = [  # a second one is intended; others are resent automatically, all of them by torchrun
    number for number in STOPS[:3] if ELASTIC not in os.environ
]


def keep_warnings_harmless() -> None:
    """Show warnings, mostly from libraries, instead of raising them under python -W error."""
    filters = [("default" if a == "error" else a, *rest) for a, *rest in warnings.filters]
    if filters != warnings.filters:
        warnings.resetwarnings()
        warnings.filters.extend(filters)


def end_thread(failed: threading.ExceptHookArgs) -> None:
    """A `threading.excepthook`; a library repeats memory and disk errors in the main thread."""
    if not (failed.exc_value and of_the_machine(failed.exc_value)):
        threading.__excepthook__(failed)


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], Any] | int) -> Iterator[None]:
    """Install a handler for `STOPS`; signals already ignored, as under nohup, stay ignored."""
    free = [n for n in STOPS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, handler) for number in free}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def ignore_repeats() -> None:
    """Ignore automatically resent signals, so that they do not interrupt the clean-up."""
    for number in set(STOPS).difference(INSISTING):
        signal.signal(number, signal.SIG_IGN)


def leave(number: int, frame: FrameType | None) -> None:
    """A handler that acts like Ctrl-C."""
    ignore_repeats()
    interrupt(number, frame)


@contextlib.contextmanager
def usable_streams() -> Iterator[None]:
    """Make stdin, stdout and stderr usable within the block.

    Closed ones are opened on /dev/null, so that no file gets their descriptors. Characters that the
    locale cannot encode are escaped. Failed writes to stderr are dropped: a note must not stop the
    program.
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
    """Open a closed standard stream on /dev/null; make writes to it blocking."""
    try:
        os.fstat(number)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor: this one
        os.set_inheritable(number, True)
    with contextlib.suppress(OSError, AttributeError):  # not available on Windows
        os.set_blocking(number, True)


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


class _Nowhere(io.TextIOBase):
    """Replaces a closed stream; discards all output."""

    def write(self, text: str) -> int:
        return len(text)


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
