"""How much speed is left next to other processes: threads within operations against images shared.

    python -m bench.busy [--works repair encode] [--others 0 1 2 8] [--quick]

`old` is the way before: within each operation as many threads as the process may use, one group of
images after another. `new` shares images, or parts of a batch, among threads that compute alone
(models/parallel.py). Each side keeps its networks in a process of its own; the sides take turns in
short rounds while the given number of other processes count as fast as they can. Works: repairing
and encoding at cats64 size, scoring, training at both sizes. Weights are random, images crops of
photographs.

Its last line is {WORK: {PROCESSES: {"old", "new", "ratio"}}, ...}: images a second and new over
old, each the median of the rounds with the lowest and the highest. The result is not appended where
rounds of the new side differ too much (bench/common.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import torch

from bench import common
from models import parallel

CPU = torch.device("cpu")
OTHERS = (0, 1, 2, 8)
ROUNDS, QUICK_ROUNDS = 5, 1
SECONDS, QUICK_SECONDS = 4.0, 0.2  # of a round of a side, at least one piece of work
REPAIRED, ENCODED, SCORED = 8, 64, 64  # images of a piece of work
TRAINED = {"cats64": 32, "lab": 2}  # images of a batch
OLD, NEW = "old", "new"
SETTLE = 0.5  # seconds that other processes get to start
Work = Callable[[], int]  # does a piece of work; its number of images


def main() -> None:
    """Start both sides, measure every work next to every number of other processes, report."""
    parser = common.parser_of(__doc__)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--others", nargs="+", type=int, default=OTHERS, help="busy processes")
    args = parser.parse_args()
    from bench.inpaint import prepare  # what computes is imported by each side for itself

    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if args.quick else (ROUNDS, SECONDS)
    result: dict[str, dict] = {work: {} for work in args.works}
    loads = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        side(OLD, folder) as old,
        side(NEW, folder) as new,
    ):
        prepare(Path(folder), ENCODED)
        for work in args.works:  # weights are read, memory is taken
            compare(old, new, work, 0.0, 1)
        for count in args.others:
            before = common.load()
            with busy(count):
                for work in args.works:
                    result[work][count] = compare(old, new, work, seconds, rounds)
                    print(f"{work} next to {count}: {json.dumps(result[work][count])}", flush=True)
            loads[count] = {"before": before, "after": common.load()}
    details = {"loads": loads, "workers": parallel.workers(), "rounds": rounds, "seconds": seconds}
    ours = {w: {n: cell[NEW] for n, cell in cells.items()} for w, cells in result.items()}
    common.report("busy", result, details, args.quick, steady=ours)


def compare(
    old: ProcessPoolExecutor, new: ProcessPoolExecutor, work: str, seconds: float, rounds: int
) -> dict[str, dict[str, float]]:
    """Images a second of both sides, in turns, and their ratio."""
    found = common.in_turns(
        {
            OLD: lambda: old.submit(rate, work, seconds).result(),
            NEW: lambda: new.submit(rate, work, seconds).result(),
        },
        rounds,
    )
    spreads = {name: common.spread(rates) for name, rates in found.items()}
    return spreads | {"ratio": common.ratios(found[NEW], found[OLD])}


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Other processes that take all the time they get."""
    command = [sys.executable, "-S", "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(count)]
    time.sleep(SETTLE if others else 0)
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def side(name: str, folder: str) -> ProcessPoolExecutor:
    """A process for one side, which keeps its networks."""
    return ProcessPoolExecutor(1, get_context("spawn"), start, (name, Path(folder)))


def start(name: str, folder: Path) -> None:
    """Set a side's process up: how it uses threads, and where its files are."""
    sys.stdout = sys.stderr  # the last line is the result's
    made_of.folder = folder
    if name == OLD:
        as_before()


@cache
def made_of(name: str) -> Work:
    """A work with its networks, made once in a process."""
    return WORKS[name](made_of.folder)


def as_before() -> None:
    """Threads within each operation, as many as would share images, and nothing shared."""
    torch.set_num_threads(parallel.workers())
    parallel.workers = lambda: 1
    parallel.one_thread = as_they_are  # for what is imported from here on
    from utils.training import transformer_step

    transformer_step.may_share = lambda *_: False


@contextmanager
def as_they_are() -> Iterator[None]:
    """Change no number of threads; a decorator too, as `one_thread` is."""
    yield


def rate(work: str, seconds: float) -> float:
    """Images a second over pieces of work that take at least this long."""
    do = made_of(work)
    began, images = time.perf_counter(), 0
    while True:
        images += do()
        if (passed := time.perf_counter() - began) >= seconds:
            return images / passed


def repairing(folder: Path) -> Work:
    """From files to files, weights in memory."""
    from bench.inpaint import config_of, first
    from utils.inpainting import job
    from utils.inpainting.inpainter import Inpainter

    config = config_of(folder, "cats64")
    inpainter, dataset = Inpainter(config), first(config, REPAIRED)
    job.Inpainter = lambda _: inpainter  # read once

    def work() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as output:
            job.inpaint_set(config, dataset, Path(output))
        return REPAIRED

    return work


def encoding(folder: Path) -> Work:
    """Tokens of a split in both plain views."""
    from bench.inpaint import config_of
    from utils.training.token_cache import cached_tokens
    from utils.weights.store import load_tokenizer

    config = config_of(folder, "cats64")
    vqgan = load_tokenizer(config.tokenizer_weights, config.tokenizer)
    data = config.data.model_copy(update={"val": config.data.root / "test"})

    def work() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            rows = cached_tokens(vqgan, data, "val", Path(place), CPU)
        return rows.shape[0] * rows.shape[1]

    return work


def scoring(_folder: Path) -> Work:
    """Frechet distance of images to others, with the default features."""
    from utils.scoring import FeatureDistance

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (SCORED, 64, 64, 3), dtype=torch.uint8, generator=generator)
    distance = FeatureDistance(images[:8], CPU)

    def work() -> int:
        distance(images)
        return len(images)

    return work


def training(size: str, folder: Path) -> Work:
    """Batches and optimiser steps of stage 2 over a token cache."""
    from bench.train import our_work, size_config, write_cache

    config = size_config(size, CPU, TRAINED[size])
    tokens = folder / f"{size}-{os.getpid()}"
    tokens.mkdir()
    write_cache(tokens, config)
    ours, trainer = our_work(config, tokens)

    def work() -> int:
        with parallel.one_thread() if trainer.shares_batches else nullcontext():
            ours.batch()
            ours.step()
        return ours.batch_size

    return work


WORKS: dict[str, Callable[[Path], Work]] = {
    "repair": repairing,
    "encode": encoding,
    "score": scoring,
    "train": partial(training, "cats64"),
    "train_lab": partial(training, "lab"),
}


if __name__ == "__main__":
    main()
