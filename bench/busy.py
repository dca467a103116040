"""Speed next to busy processes: threads within operations against images shared by threads.

    python -m bench.busy [--works repair encode] [--others 0 1 2 8] [--quick]

`old`, the previous method, uses all threads within each operation, one batch at a time. `new`
distributes images, or parts of a batch, over single-threaded workers (models/parallel.py). Each
side keeps its networks in its own process; the sides take turns in short rounds while the given
number of other processes run busy loops. Works: repairing and encoding at cats64 size, scoring,
training at both sizes, stage 1 at cats64 size. Weights are random, images are crops of photographs.

Its last line is {WORK: {PROCESSES: {"old", "new", "ratio"}}, ...}: images per second and new over
old, each a median over rounds with minimum and maximum. A work is not appended if the rounds of its
new side differ too much (bench/common.py).
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
SECONDS, QUICK_SECONDS = 4.0, 0.2  # per side and round; at least one call of the work
REPAIRED, ENCODED, SCORED = 8, 64, 64  # images per call
TRAINED = {"cats64": 32, "lab": 10}  # batch size
OLD, NEW = "old", "new"
SETTLE = 0.5  # seconds for other processes to start
Work = Callable[[], int]  # does one piece of work; returns its number of images


def main() -> None:
    parser = common.parser_of(__doc__)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--others", nargs="+", type=int, default=OTHERS, help="busy processes")
    args = parser.parse_args()
    from bench.inpaint import prepare  # each side imports what computes itself

    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if args.quick else (ROUNDS, SECONDS)
    result: dict[str, dict] = {work: {} for work in args.works}
    loads = {}
    with tempfile.TemporaryDirectory() as name, side(OLD) as old, side(NEW) as new:
        sides, folder = {OLD: old, NEW: new}, Path(name)
        prepare(folder, ENCODED)
        for work in args.works:  # reads weights, allocates memory
            compare(sides, work, folder, 0.0, 1)
        for count in args.others:
            before = common.load()
            with busy(count):
                for work in args.works:
                    result[work][count] = compare(sides, work, folder, seconds, rounds)
                    print(f"{work} next to {count}: {json.dumps(result[work][count])}", flush=True)
            loads[count] = {"before": before, "after": common.load()}
    details = {"loads": loads, "workers": parallel.workers(), "rounds": rounds, "seconds": seconds}
    ours = {w: {n: cell[NEW] for n, cell in cells.items()} for w, cells in result.items()}
    varied = [work for work, cells in ours.items() if common.too_wide(cells)]
    common.report("busy", result, details, args.quick, varied)


def compare(
    sides: dict[str, ProcessPoolExecutor], work: str, folder: Path, seconds: float, rounds: int
) -> dict[str, dict[str, float]]:
    """Images per second of both sides, in turns, and their ratio."""

    def ask(process: ProcessPoolExecutor) -> float:
        return process.submit(rate, work, folder, seconds).result()

    calls = {name: partial(ask, process) for name, process in sides.items()}
    found = common.in_turns(calls, rounds)
    spreads = {name: common.spread(rates) for name, rates in found.items()}
    return spreads | {"ratio": common.ratios(found[NEW], found[OLD])}


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Run processes with busy loops."""
    command = [sys.executable, "-S", "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(count)]
    time.sleep(SETTLE if others else 0)
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def side(name: str) -> ProcessPoolExecutor:
    """A process for one side, which holds its networks."""
    return ProcessPoolExecutor(1, get_context("spawn"), start, (name,))


def start(name: str) -> None:
    """Set up a side's process; the old one threads within operations and shares nothing."""
    sys.stdout = sys.stderr  # stdout ends with the result
    if name == NEW:
        return
    torch.set_num_threads(parallel.workers())
    parallel.workers = lambda: 1
    parallel.one_thread = as_they_are  # for what is imported from here on
    from utils.training import tokenizer_step, transformer_step

    transformer_step.may_share = tokenizer_step.may_share_images = lambda *_: False


@contextmanager
def as_they_are() -> Iterator[None]:
    """Keep the number of threads; also a decorator, like `one_thread`."""
    yield


@cache
def made(work: str, folder: Path) -> Work:
    """A work with its networks, built once per process."""
    return WORKS[work](folder)


def rate(work: str, folder: Path, seconds: float) -> float:
    """Images per second over at least this many seconds."""
    do = made(work, folder)
    began, images = time.perf_counter(), 0
    while True:
        images += do()
        if (passed := time.perf_counter() - began) >= seconds:
            return images / passed


def repairing(folder: Path) -> Work:
    """Repair from files to files, weights in memory."""
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
    """Encode a split in both plain views."""
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


def training_tokenizer(_folder: Path) -> Work:
    """Optimiser steps of stage 1 at cats64 size."""
    from utils.device import Compute
    from utils.training.tokenizer_step import TokenizerTrainer

    overrides = ["tokenizer.decoder_conditioning=none", "tokenizer.training.warmup_steps=0"]
    config = common.preset("cats64", overrides)
    size, side = config.tokenizer.training.batch_size, config.data.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (size, 3, side, side), dtype=torch.uint8, generator=generator)
    trainer = TokenizerTrainer(config, images, images, Compute.of(config))

    def work() -> int:
        with parallel.one_thread() if trainer.shares_batches else nullcontext():
            trainer.step(images / 255)
        return size

    return work


WORKS: dict[str, Callable[[Path], Work]] = {
    "repair": repairing,
    "encode": encoding,
    "score": scoring,
    "train": partial(training, "cats64"),
    "train_lab": partial(training, "lab"),
    "train_tokenizer": training_tokenizer,
}


if __name__ == "__main__":
    main()
