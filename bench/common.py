"""What every benchmark shares: arguments, sides in turns, ratios, memory, peak speeds, reporting.

A benchmark prints its result as its last line and appends it to `bench/results/NAME.jsonl`. Sides
take turns, each time in a process of their own, and ratios are medians over the rounds. A result
of `--quick`, or one that varies too much between rounds, is printed but not appended.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from utils.device import pick_device

Result = TypeVar("Result")
Task = dict[str, Any]  # keyword arguments of what a benchmark runs in a process of its own
Figures = dict[str, float]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
RELEASED = ROOT / "models" / "pretrained" / "cats64"
PRESETS = {"lab": "MaskGit.yml", "cats64": "cats64.yml"}  # the report's size, the released one
CONFIG_OPTIONS = {
    "--data": ("data.root", str, "prepared folder"),
    "--tokenizer": ("tokenizer.weights", str, "tokenizer weights file"),
    "--device": ("device", str, "auto, cpu, cuda or cuda:N"),
}
ROUNDS = 3
MIB = 2**20
PEAK_SECONDS = 1.0  # how long each peak is sought
WIDEST = 1.5  # highest over lowest of the rounds that a result may have to be appended
CONV_BATCHES = (1, 4, 16, 64)  # over which the convolution peak is sought


def parser_of(documentation: str, *, has_presets: bool = False) -> argparse.ArgumentParser:
    """A parser with --quick, and with the flags by which a benchmark starts its own tasks."""
    parser = argparse.ArgumentParser(description=documentation.partition("\n")[0])
    add_quick(parser)
    if has_presets:
        parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser


def add_quick(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="a check: nothing is appended")


def parsed(parser: argparse.ArgumentParser, run_task: Callable[..., Figures]) -> argparse.Namespace:
    """The arguments; where they name a task, run it, print its figures and memory, and exit."""
    args = parser.parse_args()
    if args.task is not None:
        print(json.dumps(run_task(args.work, **args.task) | peak_memory()))
        sys.exit()
    return args


def machine() -> dict[str, Any]:
    """The hardware and software that the numbers belong to."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in gpus],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "load": load(),
    }


def load() -> float:
    """Processes that wanted to run, the mean of the last minute."""
    return round(os.getloadavg()[0], 2)


def in_turns(sides: dict[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """What each side gives in each round; every other round begins with the last side."""
    found: dict[str, list[Result]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            found[name].append(sides[name]())
    return found


def side_by_side(
    module: str, work: Path, tasks: dict[str, Task], rounds: int
) -> dict[str, list[Figures]]:
    """Figures of each side's task in each round."""
    sides = {side: partial(in_child, module, work, task) for side, task in tasks.items()}
    return in_turns(sides, rounds)


def in_child(module: str, work: Path, task: Task) -> Figures:
    """Figures of a benchmark's task, run in a process of its own."""
    command = [sys.executable, "-m", module, "--work", str(work), "--task", json.dumps(task)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{json.dumps(task)}: {json.dumps(found)}", flush=True)
    return found


def column(found: dict[str, list[Figures]], key: str) -> dict[str, list[float]]:
    """One figure of each side in each round."""
    return {side: [figures[key] for figures in each] for side, each in found.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of the rounds, to three digits."""
    found = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: float(f"{value:.3g}") for name, value in found.items()}


def ratios(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """The spread of quotients, round by round."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def too_wide(result: Any, within: str = "") -> list[str]:
    """Names of the spreads in a nested result whose rounds differ by more than `WIDEST` times."""
    if not isinstance(result, dict):
        return []
    if {"low", "high"} <= result.keys():
        return [within.strip()] if result["high"] > WIDEST * result["low"] else []
    parts = result.items()
    return [name for key, part in parts for name in too_wide(part, f"{within} {key}")]


def report(
    name: str,
    result: dict[str, Any],
    details: dict[str, Any] | None = None,
    quick: bool = False,
    steady: dict[str, Any] | None = None,
) -> None:
    """Print the result; append it with details, machine and date to `bench/results/NAME.jsonl`.

    Nothing is appended if the run was quick or the spreads in `steady`, by default those of the
    result, are too wide.
    """
    wide = [] if quick else too_wide(result if steady is None else steady)
    if wide:
        reason = f"rounds differ by more than {WIDEST} times in {', '.join(wide)}"
        print(f"not appended: {reason}", file=sys.stderr)
    if not quick and not wide:
        RESULTS.mkdir(exist_ok=True)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        record = {"date": now, "result": result, "details": details or {}, "machine": machine()}
        with open(RESULTS / f"{name}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    print(json.dumps(result), flush=True)


def peak_memory() -> Figures:
    """Peak memory of this process in MiB: resident, and what PyTorch took on a GPU."""
    status = Path("/proc/self/status")  # getrusage would count the process that started this one
    if status.is_file():
        lines = status.read_text(encoding="utf-8").splitlines()
        found = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    else:
        found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB  # bytes on macOS
    gpu = torch.cuda.max_memory_allocated() / MIB if torch.cuda.is_available() else None
    peaks = {"peak_mib": found} | ({} if gpu is None else {"gpu_peak_mib": gpu})
    return {name: round(mib, 1) for name, mib in peaks.items()}


def conv_peak(dtype: torch.dtype, channels: int = 256, side: int = 32) -> float:
    """Best FLOP/s of a 3 x 3 convolution, channels last, on the default device.

    Sought over batches: small ones stay in a processor's cache, large ones fill a GPU.
    """
    return max(_conv_speed(dtype, channels, side, batch) for batch in CONV_BATCHES)


def _conv_speed(dtype: torch.dtype, channels: int, side: int, batch: int) -> float:
    device, layout = pick_device("auto"), torch.channels_last
    images = torch.randn(batch, channels, side, side, device=device).to(dtype, memory_format=layout)
    kernel = torch.randn(channels, channels, 3, 3, device=device).to(dtype, memory_format=layout)
    flops = 2 * batch * side**2 * channels**2 * 9
    return flops / best_seconds(lambda: F.conv2d(images, kernel, padding=1))


def mean_seconds(work: Callable[[], object], times: int) -> float:
    """Mean time of a call; a GPU is waited for before the first and after the last."""
    _wait()
    start = time.perf_counter()
    for _ in range(times):
        work()
    _wait()
    return (time.perf_counter() - start) / times


def best_seconds(work: Callable[[], object], seconds: float = PEAK_SECONDS) -> float:
    """Shortest of the repetitions that fit into this time."""
    with torch.inference_mode():
        mean_seconds(work, 1)  # the first call chooses kernels and allocates
        best, end = mean_seconds(work, 1), time.perf_counter() + seconds
        while time.perf_counter() < end:
            best = min(best, mean_seconds(work, 1))
    return best


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _cpu_name() -> str:
    about = Path("/proc/cpuinfo")  # of Linux
    lines = about.read_text(encoding="utf-8").splitlines() if about.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
