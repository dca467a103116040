"""Reading ahead and writing behind in threads, with bounds, so that memory stays flat."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Iterator[Result]:
    """Yield `function` of each item, in order; at most ``ahead`` results wait to be taken."""
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class WriteBehind:
    """Runs jobs in threads; at most ``pending`` wait, and the first error is raised again.

    Leaving the block waits for what was begun; after an error, jobs that were not are dropped.
    """

    def __init__(self, threads: int, pending: int) -> None:
        self.pool, self.pending = ThreadPoolExecutor(threads), pending
        self.waiting: deque[Future[None]] = deque()

    def submit(self, job: Callable[[], None]) -> None:
        """Hand over one job; waits while too many are pending. Raises an earlier job's error."""
        while len(self.waiting) >= self.pending or (self.waiting and self.waiting[0].done()):
            self.waiting.popleft().result()
        self.waiting.append(self.pool.submit(job))

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            while self.waiting and kind is None:
                self.waiting.popleft().result()
        finally:
            self.pool.shutdown(cancel_futures=True)
