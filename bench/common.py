"""Shared by all benchmarks: arguments, sides in turns, ratios, memory, reporting.

A benchmark prints its result as its last line and appends it to `bench/results/NAME.jsonl`. Sides
take turns, each run in its own process; ratios are medians over rounds. Results of `--quick`, and
results that vary too much between rounds, are printed but not appended.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from config.loading import Override, load_config
from config.schema import Config
from utils.cli import first_line
from utils.device import pick_device, pick_dtype

Result = TypeVar("Result")
Figures = dict[str, float]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
RELEASED = ROOT / "models" / "pretrained" / "cats64"
PRESETS = {"lab": "MaskGit.yml", "cats64": "cats64.yml"}  # the report's size, the released one
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CONFIG_OPTIONS = {
    "--data": ("data.root", str, "prepared folder"),
    "--tokenizer": ("tokenizer.weights", str, "tokenizer weights file"),
    "--device": ("device", str, "auto, cpu, cuda or cuda:N"),
}
ROUNDS = 3
MIB = 2**20
WIDEST = 1.5  # largest ratio of highest to lowest round that is appended


def parser_of(documentation: str | None, *, has_presets: bool = False) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=first_line(documentation))
    add_quick(parser)
    if has_presets:
        parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    return parser


def add_quick(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="appends nothing; shorter if possible")


def preset(name: str, overrides: Sequence[Override] = ()) -> Config:
    """The config of one size."""
    return load_config(ROOT / "config" / PRESETS[name], overrides)


def prepare_photographs(folder: Path, count: int) -> None:
    """Crops of photographs with lab-like holes, `count` of them in the test set."""
    command = [sys.executable, "prepare_data.py", "photos", "--out", str(folder), "--split"]
    subprocess.run([*command, "1", "1", str(count)], cwd=ROOT, check=True, capture_output=True)


def machine() -> dict[str, Any]:
    """Hardware and software of the measurement."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    own_cores = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))  # of Linux
    return {
        "cpu": _cpu_name(),
        "cores": len(own_cores(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in gpus],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "dtype": str(pick_dtype("auto", pick_device("auto"))).removeprefix("torch."),
        "load_before": LOAD_BEFORE,
        "load": load(),
    }


def load() -> float:
    """Load average of the last minute."""
    return round(os.getloadavg()[0], 2)


LOAD_BEFORE = load()


def in_turns(sides: dict[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """Results of each side in each round; every other round reverses the order of sides."""
    found: dict[str, list[Result]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            found[name].append(sides[name]())
    return found


def side_by_side(
    task: Callable[..., Figures], sides: dict[str, dict[str, Any]], rounds: int
) -> dict[str, list[Figures]]:
    """Figures of a task with each side's arguments in each round."""
    calls = {side: partial(in_process, task, **arguments) for side, arguments in sides.items()}
    return in_turns(calls, rounds)


def in_process(task: Callable[..., Figures], **arguments: Any) -> Figures:
    """Run a task in its own process; its figures and peak memory."""
    begin = peak_memory  # imports before the task allocates memory
    with ProcessPoolExecutor(1, get_context("spawn"), begin) as process:
        found = process.submit(task, **arguments).result()
        found |= process.submit(peak_memory).result()
    print(f"{json.dumps(arguments, default=str)}: {json.dumps(found)}", flush=True)
    return found


def column(found: dict[str, list[Figures]], key: str) -> dict[str, list[float]]:
    """One figure of each side by round."""
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
    varied: Sequence[str] | None = None,
) -> None:
    """Print the result; append it with details, machine and date to `bench/results/NAME.jsonl`.

    varied: keys of the result that are not appended; by default nothing is if a spread is too wide.
    Nor is anything of a quick run.
    """
    wide = [] if quick else too_wide(result) if varied is None else varied
    kept = {} if varied is None and wide else {k: v for k, v in result.items() if k not in wide}
    if wide:
        reason = f"rounds differ by more than {WIDEST} times in {', '.join(wide)}"
        print(f"not appended: {reason}", file=sys.stderr)
    if not quick and kept:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        record = {"date": now, "result": kept, "details": details or {}, "machine": machine()}
        with open(RESULTS / f"{name}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    print(json.dumps(result), flush=True)


def peak_memory() -> Figures:
    """Peak memory of this process in MiB: resident, and allocated by PyTorch on a GPU."""
    status = Path("/proc/self/status")  # getrusage would include the parent process
    if status.is_file():
        peaks = {"peak_mib": int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1024}
    else:
        peaks = {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB}  # macOS
    if torch.cuda.is_available():
        peaks["gpu_peak_mib"] = torch.cuda.max_memory_allocated() / MIB
    return {name: round(mib, 1) for name, mib in peaks.items()}


def mean_seconds(work: Callable[[], object], times: int) -> float:
    """Mean time of a call; synchronises a GPU before the first and after the last."""
    _wait()
    start = time.perf_counter()
    for _ in range(times):
        work()
    _wait()
    return (time.perf_counter() - start) / times


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _cpu_name() -> str:
    about = Path("/proc/cpuinfo")  # of Linux
    found = about.is_file() and re.search(r"model name\s*: (.*)", about.read_text())
    return found[1] if found else platform.processor() or platform.machine()
