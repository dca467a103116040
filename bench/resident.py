"""Resident memory of running programs: sampled while they work, compared, drawn."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PAGE = os.sysconf("SC_PAGE_SIZE")
EVERY = 0.1  # seconds before each sample
STARTED = 0.2  # share of a run after which it counts as started
POINTS = 400  # of a curve that is kept

Curve = list[tuple[float, float]]  # seconds, MiB


def resident(process: int) -> float:
    """MiB that a process and all below it hold; what they share counts for each. 0 if it is gone"""
    total, waiting = 0, [process]
    while waiting:
        place = Path(f"/proc/{waiting.pop()}")
        try:
            total += int((place / "statm").read_text().split()[1])
            for children in place.glob("task/*/children"):
                waiting += map(int, children.read_text().split())
        except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
            continue
    return total * PAGE / 2**20


@contextmanager
def recorded(process: int) -> Iterator[Curve]:
    """Sample a process's memory for as long as the block runs."""
    curve: Curve = []
    over, began = threading.Event(), time.perf_counter()

    def sample() -> None:
        while not over.wait(EVERY):
            if held := resident(process):
                curve.append((time.perf_counter() - began, held))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield curve
    finally:
        over.set()
        thread.join()


def growth(curve: Curve) -> float:
    """Mean of the last tenth over that of the tenth that follows the start, less one."""
    held = [value for _, value in curve]
    tenth, start = max(1, len(held) // 10), int(STARTED * len(held))
    return float(np.mean(held[-tenth:]) / np.mean(held[start : start + tenth]) - 1)


def thinned(curve: Curve) -> Curve:
    """A curve of at most `POINTS` points."""
    return [(round(at, 1), round(held, 1)) for at, held in curve[:: -(-len(curve) // POINTS)]]


def draw(curves: dict[str, Curve], path: Path) -> None:
    """One panel a program, MiB from zero on, over its seconds; the start is shaded."""
    figure, panels = plt.subplots(
        1, len(curves), figsize=(2.6 * len(curves), 2.4), layout="constrained"
    )
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        at, held = zip(*curve, strict=True)
        axes.plot(at, held, color="#0f766e", linewidth=1.2)
        axes.axvspan(0, at[int(STARTED * len(at))], color="#e7e5e4", linewidth=0)
        axes.set(ylim=(0, 1.25 * max(held)), xlim=(0, at[-1]), xlabel="seconds")
        axes.set_title(f"{name}: {growth(curve):+.1%}", fontsize=9)
        axes.tick_params(labelsize=7)
    panels[0].set_ylabel("resident memory, MiB", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
