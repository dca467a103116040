"""What every benchmark needs: the machine's description, its peak speeds, memory, and reporting.

A benchmark appends one JSON line to `bench/results/NAME.jsonl` and prints its result as its last
line. Sides that are compared take turns in short rounds, and ratios are medians over the rounds; a
figure that varies too much between rounds is printed but not appended.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

Result = TypeVar("Result")

RESULTS = Path(__file__).resolve().parent / "results"
PEAK_SECONDS = 1.0  # how long each peak is sought
WIDEST = 1.5  # highest over lowest of the rounds that a result may have to be appended
CONV_BATCHES = (1, 4, 16, 64)  # over which the convolution peak is sought
_LAUNCHER = """
import os, sys
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
with open(sys.argv[1], "w") as file:
    file.write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def machine() -> dict[str, Any]:
    """The hardware and software that the numbers belong to."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpus": [torch.cuda.get_device_name(index) for index in gpus],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "load": load(),
    }


def load() -> float | None:
    """Processes that wanted to run, the mean of the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def in_turns(sides: dict[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """What each side gives in each round; every other round begins with the last side."""
    found: dict[str, list[Result]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            found[name].append(sides[name]())
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of the rounds, to three digits."""
    found = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: float(f"{value:.3g}") for name, value in found.items()}


def ratios(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """The spread of quotients, round by round."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def too_wide(result: dict[str, Any], within: str = "") -> list[str]:
    """Names of the spreads in a nested result whose rounds differ by more than `WIDEST` times."""
    if {"low", "high"} <= result.keys():
        return [within.strip()] if result["high"] > WIDEST * result["low"] else []
    parts = result.items()
    return [name for key, part in parts for name in too_wide(part, f"{within} {key}")]


def report(
    name: str,
    result: dict[str, Any],
    details: dict[str, Any] | None = None,
    unsteady: Sequence[str] = (),
) -> None:
    """Append result, details, machine and date to `bench/results/NAME.jsonl`; print the result.

    unsteady: of `too_wide`; if there are any, the result is printed only.
    """
    if unsteady:
        reason = f"rounds differ by more than {WIDEST} times in {', '.join(unsteady)}"
        print(f"not appended: {reason}", file=sys.stderr)
        print(json.dumps(result), flush=True)
        return
    RESULTS.mkdir(exist_ok=True)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    record = {"date": now, "result": result, "details": details or {}, "machine": machine()}
    with open(RESULTS / f"{name}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps(result), flush=True)


def peak_memory(command: Sequence[str]) -> tuple[int, str]:
    """Run a command; its peak resident memory in bytes and what it printed.

    The kernel counts the largest single process among the command and the children it waited for.

    Raises:
        RuntimeError: the command failed.
    """
    # The kernel also counts the launching process, and this one has loaded torch: a small one
    # launches.
    with tempfile.NamedTemporaryFile("r") as peak:
        launched = subprocess.run(
            [sys.executable, "-S", "-c", _LAUNCHER, peak.name, *command],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if launched.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} left with code {launched.returncode}")
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        return int(peak.read()) * unit, launched.stdout


def conv_peak(dtype: torch.dtype, channels: int = 256, side: int = 32) -> float:
    """Best FLOP/s of a 3 x 3 convolution, channels last, on the default device.

    Sought over batches: small ones stay in a processor's cache, large ones fill a GPU.
    """
    return max(_conv_speed(dtype, channels, side, batch) for batch in CONV_BATCHES)


def _conv_speed(dtype: torch.dtype, channels: int, side: int, batch: int) -> float:
    device, layout = default_device(), torch.channels_last
    images = torch.randn(batch, channels, side, side, device=device).to(dtype, memory_format=layout)
    kernel = torch.randn(channels, channels, 3, 3, device=device).to(dtype, memory_format=layout)
    flops = 2 * batch * side**2 * channels**2 * 9
    return flops / _best_seconds(lambda: F.conv2d(images, kernel, padding=1))


def mean_seconds(work: Callable[[], object], times: int) -> float:
    """Mean time of a call; a GPU is waited for before the first and after the last."""
    _wait()
    start = time.perf_counter()
    for _ in range(times):
        work()
    _wait()
    return (time.perf_counter() - start) / times


def _best_seconds(work: Callable[[], object]) -> float:
    """Shortest of the repetitions that fit into `PEAK_SECONDS`."""
    with torch.inference_mode():
        mean_seconds(work, 1)  # the first call chooses kernels and allocates
        best, end = mean_seconds(work, 1), time.perf_counter() + PEAK_SECONDS
        while time.perf_counter() < end:
            best = min(best, mean_seconds(work, 1))
    return best


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
