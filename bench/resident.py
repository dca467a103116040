"""Memory of running programs: sampled while they work, compared, drawn.

A program's own memory is what it asked for and wrote to. Pages of files, programs and
libraries come on top; the system drops and fetches these as it likes, so they come and go by tens
of MiB and say nothing about a leak.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EVERY = 0.1  # seconds before each sample
STARTED = 0.2  # share of a run after which it counts as started
POINTS = 400  # of a curve that is kept
OWN, FILES = ("RssAnon", "VmSwap"), ("RssFile", "RssShmem")  # as /proc/PID/status counts them


class Sample(NamedTuple):
    """What a program and all below it held at a moment."""

    seconds: float
    own: float  # MiB
    files: float  # MiB; what processes share counts for each


Curve = list[Sample]


def held(process: int) -> tuple[float, float]:
    """Own memory and pages of files, MiB, of a process and all below it; zeros if it is gone."""
    own, files, waiting = 0, 0, [process]
    while waiting:
        place = Path(f"/proc/{waiting.pop()}")
        try:
            lines = (place / "status").read_text().splitlines()
            for children in place.glob("task/*/children"):
                waiting += map(int, children.read_text().split())
        except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
            continue
        kib = {name: int(value.split()[0]) for name, value in _pairs(lines) if name in OWN + FILES}
        own += sum(kib.get(name, 0) for name in OWN)
        files += sum(kib.get(name, 0) for name in FILES)
    return own / 1024, files / 1024


def _pairs(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, _, value = line.partition(":")
        yield name, value


@contextmanager
def recorded(process: int) -> Iterator[Curve]:
    """Sample a process's memory for as long as the block runs."""
    curve: Curve = []
    over, began = threading.Event(), time.perf_counter()

    def sample() -> None:
        while not over.wait(EVERY):
            own, files = held(process)
            if own:
                curve.append(Sample(time.perf_counter() - began, own, files))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield curve
    finally:
        over.set()
        thread.join()


def growth(curve: Curve) -> float:
    """Own memory: mean of the last tenth over the tenth that follows the start, less one."""
    own = [sample.own for sample in curve]
    tenth, start = max(1, len(own) // 10), int(STARTED * len(own))
    return float(np.mean(own[-tenth:]) / np.mean(own[start : start + tenth]) - 1)


def thinned(curve: Curve) -> list[list[float]]:
    """A curve of at most `POINTS` samples, rounded."""
    return [[round(value, 1) for value in one] for one in curve[:: -(-len(curve) // POINTS)]]


def draw(curves: dict[str, Curve], path: Path) -> None:
    """One panel a program, MiB from zero on, over its seconds; the start is shaded."""
    size = (2.6 * len(curves), 2.4)
    figure, panels = plt.subplots(1, len(curves), figsize=size, layout="constrained", squeeze=False)
    for axes, (name, curve) in zip(panels[0], curves.items(), strict=True):
        at, own, files = zip(*curve, strict=True)
        axes.plot(at, own, color="#0f766e", linewidth=1.2, label="its own")
        axes.plot(at, np.add(own, files), color="#a8a29e", linewidth=0.8, label="with files")
        axes.axvspan(0, at[int(STARTED * len(at))], color="#e7e5e4", linewidth=0)
        axes.set(ylim=(0, 1.25 * max(np.add(own, files))), xlim=(0, at[-1]), xlabel="seconds")
        axes.set_title(f"{name}: {growth(curve):+.1%}", fontsize=9)
        axes.tick_params(labelsize=7)
    panels[0, 0].set_ylabel("memory, MiB", fontsize=8)
    panels[0, -1].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
