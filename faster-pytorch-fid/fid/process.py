"""This process and its surroundings: standard streams, signals, other processes of torchrun.

The suite uses streams, signals and the place among processes too (utils/cli.py, ...).
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from types import FrameType
from typing import Any, NamedTuple, TextIO, TypeVar

from fid.files import ScoreError

READER_GONE = 141  # what shells report of a command whose reader left (SIGPIPE)
STOPS = [  # that ask a process to end: shells, terminals that close, batch systems
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)  # Windows has two of them
]
INSISTING = (signal.SIGINT, signal.SIGTERM)  # a second one is meant; others repeat by themselves
COUNTS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}  # variable: its smallest value
MEETING = ("MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(days=1)  # with rank 0, which reads caches and compares sets alone

Handler = Callable[[int, "FrameType | None"], Any]
Result = TypeVar("Result")


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


class Place(NamedTuple):
    """The number of a process, how many there are, and its number on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def place() -> Place:
    """The place that torchrun gave this process; alone where the set of variables is incomplete.

    Parts of the set, which outer jobs and their shells leave behind, are ignored with a note.
    Raises `ValueError` for values that no launcher sets.
    """
    return _place(tuple(os.environ.get(name) for name in (*COUNTS, *MEETING)))


@cache  # so that a note comes once
def _place(values: tuple[str | None, ...]) -> Place:
    found = dict(zip((*COUNTS, *MEETING), values, strict=True))
    for name, smallest in COUNTS.items():
        text = found[name]
        if text is not None and not (text.isdecimal() and int(text) >= smallest):
            raise ValueError(
                f"the environment has {name}={text!r}; allowed are whole numbers from {smallest}, "
                "or unset it"
            )
    asked = Place(*(int(found[name] or smallest) for name, smallest in COUNTS.items()))
    missing = [name for name, text in found.items() if not text]
    if missing:
        if asked.rank or asked.world_size > 1:
            has = ", ".join(f"{name}={found[name]}" for name in COUNTS if found[name] is not None)
            lacks = ", ".join(missing)
            print(f"note: {has} is ignored: torchrun would also set {lacks}", file=sys.stderr)
        return Place()
    if asked.rank >= asked.world_size:
        raise ValueError(
            f"the environment has RANK={asked.rank} and WORLD_SIZE={asked.world_size}; ranks count "
            "from 0 to below the size; unset both, or start with torchrun"
        )
    return asked


@dataclass(frozen=True)
class Ranks:
    """This process's number and how many there are."""

    rank: int = 0
    world: int = 1

    @classmethod
    def start(cls) -> Ranks:
        """Join the processes torchrun started; alone without it.

        gloo carries the little that is exchanged (statistics, once), for CPUs and GPUs alike.

        Raises:
            ScoreError: variables that torchrun does not set so, or processes that do not meet.
        """
        try:
            if place().world_size == 1:
                return cls()
        except ValueError as error:
            raise ScoreError(str(error)) from None
        import torch.distributed as dist  # here: the streams are wanted without PyTorch

        try:
            dist.init_process_group("gloo", timeout=PATIENCE)
        except (ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise ScoreError(
                f"the processes of torchrun do not meet at MASTER_ADDR, MASTER_PORT: {reason}; "
                "without torchrun, unset WORLD_SIZE"
            ) from None
        return cls(dist.get_rank(), dist.get_world_size())

    def stop(self) -> None:
        """Leave the group."""
        if self.world > 1:
            import torch.distributed as dist

            dist.destroy_process_group()

    def shard(self, count: int) -> range:
        """This rank's part of `count` images: a run, so that parts in rank order keep the order."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def together(self, work: Callable[[], Result]) -> list[Result]:
        """Do `work` on every rank; every rank gets all results, in rank order.

        Raises:
            ScoreError: on every rank, the first rank's error, so that none waits for a dead one.
        """
        outcome: Result | ScoreError
        try:
            outcome = work()
        except ScoreError as error:
            outcome = error
        outcomes = [outcome]
        if self.world > 1:
            import torch.distributed as dist

            outcomes = [outcome] * self.world
            dist.all_gather_object(outcomes, outcome)
        for found in outcomes:
            if isinstance(found, ScoreError):
                raise found
        return outcomes

    def on_first(self, work: Callable[[], Result]) -> Result:
        """Do `work` on rank 0 only; every rank gets its result or its error."""
        return self.together(lambda: work() if self.rank == 0 else None)[0]
