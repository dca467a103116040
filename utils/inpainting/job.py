"""Repair a set of images: read, decode and write at the same time, skipping finished ones.

Images of the model's size are decoded in batches, any others in windows (windows.py).

Shapes: B batch, R rows (samples of all images), N tokens, T steps, H x W pixels, S x S windows.
"""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from config.errors import UserError, printable
from config.schema import Config
from models.parallel import one_thread
from utils.data.datasets import InpaintingItem, InpaintingSet
from utils.device import is_main, rank, world_size
from utils.inpainting.inpainter import Inpainter
from utils.inpainting.manifest import Manifest
from utils.inpainting.outputs import Outputs, Repair, input_digest, settings_of
from utils.io.files import WriteBehind, alone_in, read_ahead
from utils.io.images import opened

THREADS = 2  # that read, and that write
HELD_BYTES = 1 << 28  # of images read ahead, and of those waiting to be written


@dataclass(frozen=True)
class Task:
    """One image of the job, read and ready to be decoded."""

    item: InpaintingItem
    stamp: str
    done: bool
    filled: np.ndarray | None
    """Input of the tokenizer; None for finished images and those repaired in windows."""
    truth: np.ndarray | None  # None where it is unknown, or not shown


class Job:
    """The repair of a set of images; counts written and skipped results."""

    def __init__(
        self, inpainter: Inpainter, dataset: InpaintingSet, output: Path, restart: bool
    ) -> None:
        config = inpainter.config
        self.inpainter, self.dataset, self.restart = inpainter, dataset, restart
        self.side = config.data.image_size
        self.outputs = Outputs(output, config.decoding, self.side)
        settings = settings_of(config, inpainter.dtype)
        self.manifest = Manifest(config, dataset, self.outputs, settings)
        self.skipped, self.written = 0, 0
        self.counting = threading.Lock()  # several threads write

    def read(self, index: int) -> Task:
        """Read one image with its mask and, unless it is already repaired, fill its hole."""
        item = self.dataset[index]
        stamp = f"{self.manifest.digest}{input_digest(item.image, item.hole, item.profile)}"
        filled = truth = None
        if self.inpainter.config.decoding.comparison:
            truth = self.dataset.ground_truth(index, item.image)
        done = not self.restart and self.outputs.is_done(item, stamp, truth)
        if not done and item.hole.shape == (self.side, self.side):
            filled = self.inpainter.fill(item.image, item.hole)
        return Task(item, stamp, done, filled, truth)

    def repair_batch(self, tasks: list[Task], writer: WriteBehind, verbose: bool) -> None:
        """Decode a batch of the model's size and hand its pictures to the writer."""
        samples = self.inpainter.config.decoding.samples
        trace = self.inpainter.decode(
            np.stack([task.filled for task in tasks]),
            np.stack([task.item.hole for task in tasks]),
            [task.item.index for task in tasks],
            samples,
        )
        steps = trace.token_ids if self.outputs.shows_steps else trace.token_ids[-1:]
        images = self.inpainter.decoded_steps(steps, trace.known)  # (T or 1, R, H, W, 3)
        masks = torch.stack(trace.hidden).cpu().numpy()  # (T, R, N)
        for row in range(images.shape[1]):
            task, sample = tasks[row // samples], row % samples
            if verbose:
                name = self.outputs.result_name(task.item.index, sample)
                counts = " ".join(map(str, masks[:, row].sum(1)))
                tqdm.write(f"{name}: hidden tokens after each step {counts}")
            own = images[:, row]
            write = partial(self._write, task, sample, list(own), masks[:, row])
            writer.submit(write, own.nbytes)

    def repair_in_windows(self, task: Task, writer: WriteBehind, verbose: bool) -> None:
        """Decode a picture of another size in windows and hand it to the writer."""
        item, is_animated = task.item, self.outputs.is_animated(task.item)
        for sample in range(self.inpainter.config.decoding.samples):
            rounds = self.inpainter.repair_in_windows(
                item.image, item.hole, item.index, sample, shows_rounds=is_animated
            )
            images: list[np.ndarray] = []  # rounds are shown by an animation only
            title = f"{printable(item.name)} in windows"
            for image in tqdm(rounds, title, unit="step", leave=False):
                images = [*images, image] if is_animated else [image]
            if verbose:
                name = self.outputs.result_name(item.index, sample)
                tqdm.write(f"{name}: repaired in windows")
            write = partial(self._write, task, sample, images)
            writer.submit(write, sum(held.nbytes for held in [item.image, *images]))

    def _write(
        self,
        task: Task,
        sample: int,
        images: list[np.ndarray],
        masks: np.ndarray | None = None,
    ) -> None:
        """Composite with the known pixels (windows already did) and write a repair's files."""
        if masks is not None:
            images = [self.inpainter.join(i, task.item.image, task.item.hole) for i in images]
        self.outputs.write(Repair(task.item, sample, task.stamp, images, masks, task.truth))
        with self.counting:
            self.written += 1


@one_thread()
def inpaint_set(
    config: Config,
    dataset: InpaintingSet,
    output: Path,
    *,
    restart: bool = False,
    verbose: bool = False,
) -> dict[str, float]:
    """Repair every image of a set that is not repaired yet, or with ``restart`` all of them.

    Under torchrun each process takes its share, and the last one to finish writes the manifest
    with the times of all. Returns this process's seconds, images repaired, images per second and
    images skipped. Raises `UserError` for weights or images that do not fit, and for an output
    that cannot be written, contains repairs of other pictures or inputs, or in which another run
    is at work; finished images are kept.
    """
    inpainter, began = Inpainter(config), time.perf_counter()
    job = Job(inpainter, dataset, output, restart)
    job.manifest.refuse_inputs()
    mine = range(rank(), len(dataset), world_size())
    with alone_in(output) if is_main() else nullcontext():
        job.manifest.begin(restart)
        try:
            _repair_all(job, mine, verbose)
        except UserError as error:
            finished = job.skipped + job.written // config.decoding.samples
            rest = f"; {finished} of {len(mine)} images are finished and stay" if finished else ""
            raise UserError(f"{error}{rest}") from error
        seconds = time.perf_counter() - began
        return job.manifest.finish(len(mine) - job.skipped, job.skipped, seconds)


def _repair_all(job: Job, indices: range, verbose: bool) -> None:
    """Read, decode and write a share of the images, all three concurrently."""
    size, batch = job.inpainter.batch_size, []
    bytes_of = partial(_bytes_of, job.dataset)
    tasks = read_ahead(job.read, indices, THREADS, size, bytes_of, HELD_BYTES)
    how = job.inpainter.config.decoding
    title = f"inpainting, {how.rule} {how.mask_schedule} {how.steps}/{how.total_iter}"
    bar = tqdm(total=len(indices), desc=title, unit="image")
    with bar, WriteBehind(THREADS, 2 * size, HELD_BYTES) as writer:
        for task in tasks:
            if task.done:
                job.skipped += 1
                bar.update()
            elif task.filled is None:
                job.repair_in_windows(task, writer, verbose)
                bar.update()
            else:
                batch.append(task)
            if len(batch) == size:
                job.repair_batch(batch, writer, verbose)
                bar.update(len(batch))
                batch = []
        if batch:
            job.repair_batch(batch, writer, verbose)
            bar.update(len(batch))


def _bytes_of(dataset: InpaintingSet, index: int) -> int:
    """Bytes of an image, its hole and its ground truth, if any, by its header."""
    path = dataset.images[index]
    try:
        with opened(path, str(path)) as image:
            return (7 if dataset.truth else 4) * image.width * image.height
    except UserError:  # reading it says what is wrong with it
        return 0
