"""Standard streams and signals, in whatever state a shell, a batch system or a service leaves them.

The scorer stands alone and has a copy of this file (a test holds them equal).
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TextIO

READER_GONE = 141  # what shells report of a command whose reader left (SIGPIPE)
STOPS = [  # that ask a process to end: shells, terminals that close, batch systems
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)  # Windows has two of them
]
INSISTING = (signal.SIGINT, signal.SIGTERM)  # a second one is meant; others repeat by themselves
Handler = Callable[[int, "FrameType | None"], Any]


@contextlib.contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """Let a function handle the signals of `STOPS`; ignored ones, as under nohup, stay ignored."""
    free = [n for n in STOPS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, handler) for number in free}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def usable_streams() -> Iterator[None]:
    """Make stdin, stdout and stderr usable within the block.

    Closed ones lead nowhere, so that no file gets their numbers. Characters that the locale does
    not know are escaped. What cannot be written to stderr is dropped: notes must not end the work.
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
        flush_or_drop(sys.stdout)
        flush_or_drop(sys.stderr)
        sys.stdout, sys.stderr = before


def flush_or_drop(stream: TextIO) -> None:
    """Write what a stream still holds; if that fails, send it and all that follows nowhere."""
    try:
        stream.flush()
    except (OSError, ValueError):  # a full disk, a reader or a terminal that is gone; closed
        drop(stream)


def drop(stream: TextIO) -> None:
    """Send what a stream still holds, and all that follows, nowhere."""
    with contextlib.suppress(OSError, ValueError):  # one that is no file has nowhere to go
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _open_and_wait(number: int) -> None:
    """Open a standard stream that is closed; let writing to one that is full wait."""
    try:
        os.fstat(number)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, this one
        os.set_inheritable(number, True)
    with contextlib.suppress(OSError, AttributeError):  # Windows has no such mode
        os.set_blocking(number, True)


class _Nowhere(io.TextIOBase):
    """A stream in the place of a closed one."""

    def write(self, text: str) -> int:
        return len(text)


class _Notes:
    """A text stream whose errors nobody hears of."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            drop(self._stream)
        return len(text)

    def flush(self) -> None:
        flush_or_drop(self._stream)
