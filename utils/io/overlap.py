"""Reading ahead and writing behind in threads, with bounded memory."""

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
    """Yield `function` of each item, in order, computing at most ``ahead`` results in advance."""
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
    """Run jobs in threads with a bounded queue; re-raises the first error.

    At most ``pending`` jobs wait, holding at most ``most_bytes`` together; a larger job waits
    alone. Leaving the block waits for all jobs, also after an error.
    """

    def __init__(self, threads: int, pending: int, most_bytes: int) -> None:
        self.pool, self.pending, self.most_bytes = ThreadPoolExecutor(threads), pending, most_bytes
        self.waiting: deque[tuple[Future[None], int]] = deque()  # with the bytes each one holds

    def submit(self, job: Callable[[], None], size: int) -> None:
        """Queue a job that holds ``size`` bytes, waiting if full; raises an earlier job's error."""
        while self.waiting and (self._is_full(size) or self.waiting[0][0].done()):
            self._wait_for_first()
        self.waiting.append((self.pool.submit(job), size))

    def _is_full(self, size: int) -> bool:
        held = sum(of for _, of in self.waiting)
        return len(self.waiting) >= self.pending or held + size > self.most_bytes

    def _wait_for_first(self) -> None:
        self.waiting.popleft()[0].result()

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
                self._wait_for_first()
        finally:
            self.pool.shutdown()
