"""Process environment: warnings, signals, standard streams, torchrun.

The suite uses it too (utils/cli.py, utils/distributed.py).
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from types import FrameType
from typing import Any, NamedTuple, TextIO

from fid.files import ScoreError
from fid.hooks import end_import

READER_GONE = 141  # the shell's code for SIGPIPE
STOPS = [  # signals that ask a process to end: from shells, closed terminals, batch systems
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)  # Windows has only two of them
]
INSISTING = [  # a second one is intended; others are resent automatically, all of them by torchrun
    number for number in STOPS[:3] if "TORCHELASTIC_RUN_ID" not in os.environ
]
COUNTS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}  # variable: smallest value
MEETING = ("MASTER_ADDR", "MASTER_PORT")


def keep_warnings_harmless() -> None:
    """Show warnings, mostly from libraries, instead of raising them under python -W error."""
    filters = [("default" if a == "error" else a, *rest) for a, *rest in warnings.filters]
    if filters != warnings.filters:
        warnings.resetwarnings()
        warnings.filters.extend(filters)


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
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


def leave(_number: int, frame: FrameType | None) -> None:
    """A handler that acts like Ctrl-C."""
    ignore_repeats()
    end_import(frame, "interrupted")
    raise KeyboardInterrupt


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


class Place(NamedTuple):
    """Rank, world size, and rank on this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def place() -> Place:
    """This process's place under torchrun; a single process if torchrun's variables are incomplete.

    Leftover variables of an outer job are ignored with a note. Raises `ScoreError` for invalid
    values.
    """
    return _place(tuple(os.environ.get(name) for name in (*COUNTS, *MEETING)))


@cache  # so that the note is printed once
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
    """Connect torchrun's processes; ``patience`` is the timeout of this and all later exchanges.

    Raises `ScoreError` if they cannot connect.
    """
    import torch.distributed as dist  # imported here: a single process does not need it

    try:
        dist.init_process_group(backend, timeout=patience)
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ScoreError(
            f"the processes of torchrun do not meet at MASTER_ADDR, MASTER_PORT: {reason}; "
            "without torchrun, unset WORLD_SIZE"
        ) from error
