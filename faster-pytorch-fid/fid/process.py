"""Signals, and the processes that torchrun started: their ranks, how they connect and share work.

The suite uses it too (utils/distributed.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from queue import SimpleQueue
from types import FrameType
from typing import Any, ClassVar, NamedTuple, TypeVar

from fid import interrupt
from fid.files import ScoreError, note, of_the_machine

Result = TypeVar("Result")
ELASTIC = "TORCHELASTIC_RUN_ID"  # variable that only torchrun sets
OPTIONAL = "LOCAL_WORLD_SIZE"  # not every launcher sets it
COUNTS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, OPTIONAL: 1}  # variable: smallest value
MEETING = ("MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(days=1)  # timeout while rank 0 reads caches and compares sets alone
MEETING_TIME = timedelta(minutes=10)  # from the first process's start to the last one's
GONE = ("Connection closed by peer", "Connection reset by peer", "NCCL communicator was aborted")
DIED = "another process of this run died; start all of them again"
STOPS = [  # signals that ask a process to end: from shells, closed terminals, batch systems
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)  # Windows has only two of them
]
INSISTING = [  # a second one is intended; others are resent automatically, all of them by torchrun
    number for number in STOPS[:3] if ELASTIC not in os.environ
]


class Pool(ThreadPoolExecutor):
    """A pool of threads that what a handler of `handled` raises interrupts between its steps alone.

    Else it could leave a lock taken for which the threads wait forever, or a thread that
    `shutdown` does not know.
    """

    postponed: ClassVar[list[int]] = []  # signals received within a step

    def submit(self, *work: Any, **named: Any) -> Future:
        return self._step(self._submit, *work, **named)

    def _submit(self, *work: Any, **named: Any) -> Future:
        future = super().submit(*work, **named)
        future.ended = SimpleQueue()
        future.add_done_callback(future.ended.put)
        return future

    def result(self, future: Future) -> Any:
        """Wait for a job, and return its result or raise its error; once for each job."""
        future.ended.get()  # its lock is released whatever interrupts it
        return self._step(future.result)

    def _step(self, step: Callable, *arguments: Any, **named: Any) -> Any:
        try:
            return self._whole(step, *arguments, **named)
        finally:
            if self.postponed:
                signal.raise_signal(self.postponed.pop())

    def _whole(self, step: Callable, *arguments: Any, **named: Any) -> Any:
        return step(*arguments, **named)


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], Any] | int) -> Iterator[None]:
    """Install a handler for `STOPS`; signals already ignored, as under nohup, stay ignored."""

    def between_steps(number: int, frame: FrameType | None) -> None:
        caller = frame
        while caller and caller.f_code is not Pool._whole.__code__:
            caller = caller.f_back
        if caller:
            Pool.postponed.append(number)
        else:
            handler(number, frame)

    free = [n for n in STOPS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    installed = between_steps if callable(handler) else handler
    before = {number: signal.signal(number, installed) for number in free}
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


class Ranks(NamedTuple):
    """This process's place among torchrun's: rank and world size, and both on this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def start(cls) -> Ranks:
        """Join torchrun's processes over Gloo, on CPUs and GPUs alike; one rank without torchrun.

        Raises `ScoreError` for invalid torchrun variables or if the processes cannot connect.
        """
        ranks = own_ranks()
        if ranks.world_size > 1:
            meet("gloo", PATIENCE)
        return ranks

    def stop(self) -> None:
        """Leave the process group."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()

    def shard(self, count: int) -> range:
        """This rank's contiguous share of `count` images; shares in rank order keep the order."""
        start, size = count * self.rank, self.world_size
        return range(start // size, (start + count) // size)

    def together(self, work: Callable[[], Result]) -> list[Result]:
        """Do `work` on every rank; every rank gets all results, in rank order.

        Raises the first `ScoreError` of any rank on every rank, so that none waits for a dead one;
        errors of memory and disk count as such.
        """
        outcome: Result | ScoreError
        try:
            outcome = work()
        except ScoreError as error:
            outcome = error
        except (MemoryError, RuntimeError, OSError) as error:
            if self.world_size == 1 or (line := of_the_machine(error)) is None:
                raise  # the others find that this process is gone
            outcome = ScoreError(line)
        outcomes = [outcome] * self.world_size
        if self.world_size > 1:
            import torch.distributed as dist

            try:
                dist.all_gather_object(outcomes, outcome)
            except RuntimeError as error:
                if not any(text in str(error) for text in GONE):
                    raise
                raise ScoreError(DIED) from error
        for found in outcomes:
            if isinstance(found, ScoreError):
                raise found
        return outcomes

    def on_first(self, work: Callable[[], Result]) -> Result:
        """Do `work` on rank 0 only; every rank gets its result or its error."""
        return self.together(lambda: work() if self.rank == 0 else None)[0]


def own_ranks() -> Ranks:
    """This process's ranks under torchrun; a single process if its variables are incomplete.

    Leftover variables of an outer job are ignored with a note. Raises `ScoreError` for invalid
    values.
    """
    found = {name: os.environ.get(name) for name in (*COUNTS, *MEETING)}
    for name, smallest in COUNTS.items():
        text = found[name]
        if text is not None and not (text.isdecimal() and int(text) >= smallest):
            allowed = f"allowed are whole numbers from {smallest}, or unset it"
            raise ScoreError(f"the environment has {name}={text!r}; {allowed}")
    asked = Ranks(*(int(found[name] or smallest) for name, smallest in COUNTS.items()))
    missing = [name for name, text in found.items() if not text and name != OPTIONAL]
    if missing:
        if asked.rank or asked.world_size > 1:
            has = ", ".join(f"{name}={found[name]}" for name in COUNTS if found[name] is not None)
            text = f"{has} is ignored: torchrun would also set {', '.join(missing)}"
            note(text, once=text)
        return Ranks()
    if asked.rank >= asked.world_size:
        raise ScoreError(
            f"the environment has RANK={asked.rank} and WORLD_SIZE={asked.world_size}; ranks count "
            "from 0 to below the size; unset both, or start with torchrun"
        )
    return asked


def meet(backend: str, patience: timedelta) -> None:
    """Connect torchrun's processes; ``patience`` is the timeout of all later exchanges.

    While it waits, every signal ends the process at once, since PyTorch does not return to Python.
    Raises `ScoreError` if they cannot connect.
    """
    import torch.distributed as dist  # imported here: a single process does not need it

    own, address = own_ranks(), ":".join(os.environ[name] for name in MEETING)
    if ELASTIC not in os.environ:  # perhaps left over from an outer job
        text = f"process {own.rank + 1} of {own.world_size} waits at {address} for the others"
        note(f"{text}; if there are none, unset WORLD_SIZE")
    try:
        with handled(signal.SIG_DFL):
            store, rank, size = next(dist.rendezvous("env://", timeout=MEETING_TIME))
            store.set_timeout(patience)
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=size, timeout=patience
            )
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ScoreError(
            f"the processes of torchrun do not meet at MASTER_ADDR, MASTER_PORT: {reason}; "
            "without torchrun, unset WORLD_SIZE"
        ) from error
