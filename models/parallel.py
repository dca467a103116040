"""Parallelism over images on a CPU: in networks this small, threads within an operation cost more
than they gain, above all next to other busy processes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

Part = TypeVar("Part")
Result = TypeVar("Result")

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # e.g. "200000 100000": microseconds of each period
_limits: list[threadpool_limits] = []  # of each thread's outermost block, the first at its start
_limiting = threading.Lock()  # BLAS libraries have one number of threads for all of ours
_block = threading.local()  # count: of the innermost block of `threads` around this thread's work


@cache  # before `one_thread` changes PyTorch's number of threads
def workers() -> int:
    """How many parts a CPU computes at once: PyTorch's number of threads, within the CPU quota.

    PyTorch takes its number from OMP_NUM_THREADS, or the cores available to the process.
    """
    return min(torch.get_num_threads(), cpu_quota(QUOTA) or torch.get_num_threads())


def cpu_quota(file: Path) -> int | None:
    """Whole cores that the control group may use, at least 1; None without a limit."""
    with suppress(OSError, ValueError):
        limit, period = file.read_text().split()
        return max(1, int(limit) // int(period))
    return None


def parallel_map(
    work: Callable[[Part], Result], parts: Sequence[Part], device: torch.device
) -> list[Result]:
    """Map ``work`` over parts, results in order; on a CPU by `workers` single-threaded threads.

    Threads inherit the caller's autocast and inference mode. Since each part is computed by one
    thread, results do not depend on the number of threads.
    """
    count = min(workers(), len(parts)) if device.type == "cpu" else 1
    if count <= 1:
        return [work(part) for part in parts]
    is_on, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    is_inference, has_grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def in_thread(part: Part) -> Result:
        with (
            torch.inference_mode(is_inference),
            torch.set_grad_enabled(has_grad),
            torch.autocast("cpu", dtype=dtype, enabled=is_on, cache_enabled=False),
        ):
            return work(part)

    return list(_pool(workers()).map(in_thread, parts))


def one_thread() -> AbstractContextManager[None]:
    """Run each operation of PyTorch and NumPy on a single thread within the block."""
    return threads(1)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let ``count`` threads share each operation of PyTorch and NumPy within the block."""
    outer = getattr(_block, "count", None)
    if outer == count:  # holds already, and finding the BLAS libraries takes a millisecond
        yield
        return
    workers()
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    _block.count = count
    with _limiting:
        own = threadpool_limits(count, user_api="blas")
        if outer is None:
            _limits.append(own)
    try:
        yield
    finally:
        with _limiting:
            if outer is None:
                own = _limits.pop()  # the first thread's if this one is the last to leave
            if outer is not None or not _limits:
                own.restore_original_limits()
        torch.set_num_threads(before)
        _block.count = outer


@lru_cache(1)
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "images", initializer=torch.set_num_threads, initargs=(1,))


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_pool.cache_clear)  # whose threads exist in the parent only
    os.register_at_fork(
        before=_limiting.acquire,
        after_in_parent=_limiting.release,
        after_in_child=_limiting.release,
    )
