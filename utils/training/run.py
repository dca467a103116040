"""The training run of both stages: lock, open or start, epochs, clean stop, validate, log, save.

Each stage provides a trainer with `batches`, `step` and `validate` (utils/training/trainer.py).
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from fid.process import INSISTING, handled
from torch import Tensor
from tqdm import tqdm

from config.errors import StopRequested, UserError
from config.loading import save_config
from models.parallel import one_thread
from utils import distributed
from utils.device import environment, is_main
from utils.io.files import alone_in, atomic, make_folder, read_rows, remove_unfinished, write_text
from utils.io.images import save_png
from utils.io.messages import is_out_of_memory
from utils.training.state import BEST, LOG, STATE, Opening, clear_run, open_state, save_state
from utils.training.throughput import Peak, Speed
from utils.training.trainer import LOOK_EVERY, Trainer

Callback = Callable[[Any], None]  # called with the trainer


def ignore(_trainer: Trainer) -> None:
    pass


@contextmanager
def run_alone(folder: Path, device: torch.device) -> Iterator[None]:
    """Lock the folder against other runs, tidy it, and join this run's processes."""
    with alone_in(folder) if is_main() else nullcontext(), distributed.joined(device):
        if is_main():
            remove_unfinished(folder)
        yield


def train(
    trainer: Trainer,
    folder: Path,
    opening: Opening,
    begin: Callable[[], None],
    callback: Callback = ignore,
) -> Path:
    """Train to the end and return the weights file of the last epoch.

    begin initialises a new run. The callback gets the trainer before the first optimiser step
    and after each, and may raise to end the training. Raises `UserError` for a run that can be
    neither resumed nor overwritten, out of memory and a loss that is not finite, `StopRequested`
    after a clean stop.
    """
    state = open_state(folder / STATE, trainer.settings_of_run, opening)
    if state is not None:
        trainer.load_state_dict(state)
        del state  # as large as the trainer
    else:
        begin()
        clear_run(folder / STATE)
    if not trainer.nothing_left:
        threads = one_thread() if trainer.shares_batches else nullcontext()
        advice = [text for text, helps in trainer.memory_advice().items() if helps]
        with threads, memory_for(trainer.device, advice):
            Run(trainer, folder, callback).train()
    elif is_main():
        done, wanted = trainer.position.epoch, trainer.settings.epochs
        limited = f"{done} of {wanted} epochs are done; training.max_minutes is used up"
        print(f"{folder}: {limited if done < wanted else f'all {done} epochs are done'}")
    return folder / trainer.weights_file


class Run:
    """The epochs of a training run; only the main process validates and writes."""

    def __init__(self, trainer: Trainer, folder: Path, callback: Callback) -> None:
        self.trainer, self.folder, self.callback = trainer, folder, callback
        self.log = RunLog(folder, trainer) if is_main() else None
        peak = Peak(folder, trainer.device, trainer.dtype) if self.log else None
        self.speed = Speed(trainer.flops_per_image, peak, trainer.world)

    def train(self) -> None:
        """Train the remaining epochs."""
        trainer, place = self.trainer, self.trainer.position
        board = closing(self.log.board) if self.log else nullcontext()
        with board, stop_signals() as stopping:
            self.callback(trainer)
            while not trainer.nothing_left:
                self.train_epoch(stopping)
                numbers = {**trainer.numbers(), **self.speed.epoch()}
                place.next_epoch()
                if self.log:
                    self.validate_and_log(self.log, numbers)
                if trainer.saves_now:
                    self.save()
                if self.log:  # after saving, so that no plot or picture that fails costs an epoch
                    if trainer.saves_now:
                        trainer.draw_curves(self.folder, self.log.rows())
                    for name, picture in trainer.pictures().items():
                        self.log.picture(name, picture, place.epoch)
        if self.log:
            self.name_weights()

    def train_epoch(self, stopping: list[int]) -> None:
        """Train the rest of the current epoch, with a progress bar."""
        trainer, place = self.trainer, self.trainer.position
        title = f"epoch {place.epoch + 1}/{trainer.settings.epochs}"
        with tqdm(
            desc=title,
            total=trainer.batches_per_epoch,
            initial=place.batch,
            dynamic_ncols=True,
            disable=self.log is None,
        ) as bar:
            self.speed.pause()
            for batch in trainer.batches():
                if trainer.time_share == 1.0:
                    break
                trainer.step(batch)
                self.speed.count(trainer.images_in_batch)
                bar.update()
                if trainer.group_is_full():
                    self.callback(trainer)
                    if trainer.any_process_stops(bool(stopping)):
                        self.save()
                        raise StopRequested(f"stopped in {title}, saved; continue with --resume")
                if place.batch % LOOK_EVERY == 0 or trainer.epoch_ends:
                    self.look(bar)

    def look(self, bar: tqdm) -> None:
        """Show losses, learning rate and speed; raise if a loss is not finite."""
        means = self.trainer.means()
        self.trainer.require_finite(means.values())
        speed = self.speed.look()  # reading the losses has synchronised with the device
        shown = [f"{name} {mean:.4f}" for name, mean in means.items()]
        shown += self.trainer.progress_text()
        shown += [f"lr {self.trainer.rate:.1e}", f"{speed['images_per_second']:,.0f} images/s"]
        shown += [f"MFU {speed['mfu']:.0%}"] if "mfu" in speed else []
        bar.set_postfix_str(", ".join(shown))

    def validate_and_log(self, log: RunLog, numbers: dict[str, float]) -> None:
        """Validate when due, keep the averaged weights if they are the best, and log the epoch."""
        trainer, place = self.trainer, self.trainer.position
        if trainer.is_due(trainer.settings.validate_every):
            numbers |= trainer.validate()
            judged = numbers[trainer.best_metric]
            trainer.require_finite([judged])
            if judged < place.best_loss:
                place.best_loss, place.best_epoch = judged, place.epoch
                trainer.save_weights(self.folder / BEST)
            numbers[f"best_{trainer.best_metric}"] = place.best_loss
            numbers["best_epoch"] = place.best_epoch
        log.epoch(place.epoch, numbers)

    def save(self) -> None:
        """Write the averaged weights and the training state; a collective call."""
        state = self.trainer.state_dict()
        if self.log:
            self.trainer.save_weights(self.folder / self.trainer.weights_file)
            save_state(self.folder / STATE, state)

    def name_weights(self) -> None:
        """Print where the weights are and how good the best ones are."""
        trainer, place = self.trainer, self.trainer.position
        print(f"last weights: {self.folder / trainer.weights_file}, epoch {place.epoch}")
        if place.best_epoch:
            figure = f"{trainer.best_metric.replace('_', ' ')} {place.best_loss:.4f}"
            print(f"best weights: {self.folder / BEST}, epoch {place.best_epoch}, {figure}")


class RunLog:
    """The folder of a run: config, environment, metrics by epoch and pictures."""

    def __init__(self, folder: Path, trainer: Trainer) -> None:
        """Continue the log; rows after the trainer's epoch, of an interrupted run, are dropped."""
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        make_folder(folder)
        with atomic(folder / "config.yml") as temporary:
            save_config(trainer.config, temporary)
        stated = json.dumps(environment(trainer.device), indent=1)
        write_text(folder / "environment.json", stated + "\n")
        self.folder, self.path, done = folder, folder / LOG, trainer.position.epoch
        kept = [row for row in self.rows() if row["epoch"] <= done]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.board = SummaryWriter(folder / "tensorboard", purge_step=done + 1)

    def rows(self) -> list[dict]:
        """All rows so far, one per epoch; a line truncated by a crash is skipped."""
        return [row for row in read_rows(self.path) if isinstance(row.get("epoch"), int)]

    def epoch(self, epoch: int, numbers: dict[str, float]) -> None:
        """Add the numbers of an epoch, counted from 1."""
        row = {"epoch": epoch, "time": round(time.time(), 1), **numbers}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in numbers.items():
            self.board.add_scalar(name, value, epoch)

    def picture(self, name: str, image: Tensor, epoch: int) -> None:
        """Write an image (H, W, 3) uint8 to samples/ and to TensorBoard."""
        save_png(self.folder / "samples" / f"{name}_{epoch:04d}.png", image.numpy())
        self.board.add_image(name, image, epoch, dataformats="HWC")


@contextmanager
def memory_for(device: torch.device, advice: list[str]) -> Iterator[None]:
    """Turn running out of memory into a `UserError` that says which settings to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        needs_less = "; ".join(advice) or "a smaller network"
        raise UserError(f"{device}: out of memory; what needs less: {needs_less}") from error


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect signals that ask the process to stop; a second Ctrl-C or SIGTERM kills it at once.

    Other signals repeat by themselves: SIGHUP from the terminal and its shell, SIGXCPU every
    second. A signal that the block did not act on is raised again after it.
    """
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        received.append(number)
        if number in INSISTING:
            signal.signal(number, signal.SIG_DFL)

    try:
        with handled(note):
            yield received
    except StopRequested:
        received.clear()
        raise
    finally:
        if received:
            signal.raise_signal(received[0])
