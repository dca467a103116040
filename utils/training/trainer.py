"""Base class of both stages' trainers: position in a run, learning rate, time limit and state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config.errors import DivergedError, SettingsError
from config.loading import flat
from config.schema import (
    Config,
    TokenizerConfig,
    TokenizerTraining,
    TrainingConfig,
    TransformerConfig,
)
from utils import distributed
from utils.device import Compute, is_main, world_size
from utils.io.messages import note_once
from utils.rng import shuffled_batches
from utils.training.optim import EMA, learning_rate
from utils.training.state import Position, State, TimeLimit, load_parts, settings_that_count
from utils.weights.store import save_weights

AGREE_EVERY = 10  # steps between exchanges of several GPUs about stopping
LOOK_EVERY = 20  # batches between reads of the loss, each a sync with the device


class Trainer(ABC):
    """A stage's networks and optimisers, and its position in a run (utils/training/run.py).

    Under torchrun every process has an equal trainer. Each draws the global batch and computes on
    its own rows, so that N processes train like a single one with an N times larger batch.
    """

    section: str  # of the config with its settings
    weights_file: str
    description: TokenizerConfig | TransformerConfig  # of the network that is trained
    best_metric: str  # the metric of `validate` that selects the best weights; lower is better
    flops_per_image: float  # of a training step
    shares_batches = False  # whether CPU threads split each batch
    averaged: EMA
    parts: dict[str, Any]  # by name: everything with a state_dict in the checkpoint
    settings_of_run: dict[str, Any]  # that the result depends on

    def __init__(
        self,
        config: Config,
        settings: TokenizerTraining | TrainingConfig,
        compute: Compute,
        *,
        images: int,
        accumulate: int = 1,
    ) -> None:
        """images: of the training set. accumulate: batches that make an optimiser step."""
        self.config, self.settings, self.compute = config, settings, compute
        self.device, self.dtype = compute.device, compute.dtype
        self.world = world_size()
        self.image_count, self.batch_size = images, self.world * settings.batch_size
        self.batches_per_epoch = math.ceil(images / self.batch_size)
        self.batches_a_step = accumulate
        self.steps_per_epoch = math.ceil(self.batches_per_epoch / accumulate)
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.position, self.time_share = Position(), 0.0
        self.limit = TimeLimit(settings.max_minutes)
        if settings.warmup_steps >= self.total_steps:
            raise SettingsError(
                f"{self.section}.warmup_steps is {settings.warmup_steps}, but the whole training "
                f"has {self.total_steps} steps; lower it or raise --epochs"
            )

    def settings_in(self, *sections: str) -> dict[str, Any]:
        """Settings of some sections, and the others that the weights of both stages depend on."""
        settings = settings_that_count(flat(self.config, "seed", "data", *sections))
        settings[f"{self.section}.batch_size"] = self.batch_size  # of all processes together
        return settings | {"images": self.image_count, "precision": str(self.dtype)}

    @abstractmethod
    def batches(self) -> Iterator[Any]:
        """Global batches of the rest of the current epoch, made lazily."""

    @abstractmethod
    def step(self, batch: Any) -> None:
        """Train on a batch and advance the position."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Metrics of the averaged weights; only the main process calls it."""

    @abstractmethod
    def draw_curves(self, folder: Path, rows: list[dict]) -> None:
        """Plot the log of all epochs into the run folder."""

    @abstractmethod
    def memory_advice(self) -> dict[str, bool]:
        """Settings that need less memory, and whether each could still be applied."""

    def pictures(self) -> dict[str, Tensor]:
        """Pictures to show after this epoch, by name, (rows, columns, 3) uint8."""
        return {}

    def progress_text(self) -> list[str]:
        """Further text for the progress bar; a collective call."""
        return []

    def notes(self) -> dict[str, str]:
        """Metadata of a weights file besides the network's description."""
        place = {"epoch": str(self.position.epoch), "seed": str(self.config.seed)}
        return place | {"pixels": self.config.data.normalisation}

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or the time is used up."""
        return self.position.epoch >= self.settings.epochs or self.time_share == 1.0

    @property
    def nothing_left(self) -> bool:
        """Whether the run is finished and the last epoch, if cut short by time, was completed."""
        return self.finished and not self.position.batch

    @property
    def progress(self) -> float:
        """Share of the training that is done, by steps or, where it is limited, by time."""
        return min(1.0, max(self.position.step / self.total_steps, self.time_share))

    @property
    def epoch_ends(self) -> bool:
        """Whether the last batch was the epoch's last one."""
        return self.position.batch == self.batches_per_epoch or self.time_share == 1.0

    @property
    def images_in_batch(self) -> int:
        """Images of the last batch; the last one of an epoch may be smaller."""
        before = (self.position.batch - 1) * self.batch_size
        return min(self.batch_size, self.image_count - before)

    @property
    def saves_now(self) -> bool:
        return self.is_due(self.settings.checkpoint_every)

    def is_due(self, every: int) -> bool:
        """Whether something done every ``every`` epochs, and at the end, is due now."""
        return self.position.epoch % every == 0 or self.finished

    def group_is_full(self) -> bool:
        """Whether an optimiser step is due; the last group of an epoch may be shorter."""
        done = self.position.batch
        return done % self.batches_a_step == 0 or done == self.batches_per_epoch

    def image_ids(self, order: torch.Generator) -> Iterator[Tensor]:
        """Image indices (B,) of each remaining batch of the current epoch."""
        return shuffled_batches(self.image_count, self.batch_size, order, skip=self.position.batch)

    @property
    def rate(self) -> float:
        return learning_rate(self.settings, self.position.step, self.total_steps, self.time_share)

    # Collective calls: all processes must make them together

    def means(self) -> dict[str, float]:
        """Mean losses of the current epoch so far, over all processes, each since it began."""
        place, sums = self.position, self._sums_of_all()
        batches = {name: place.batch - place.missed.get(name, 0) for name in sums}
        return {name: float(total) / (batches[name] or 1) for name, total in sums.items()}

    def numbers(self) -> dict[str, float]:
        return {**self.means(), "learning_rate": self.rate}

    def any_process_stops(self, stopping: bool) -> bool:
        """Whether any process was asked to stop; also synchronises the share of the time used up.

        Several GPUs do so only every `AGREE_EVERY` steps, since they wait for each other.
        """
        waits = self.world > 1 and self.device.type != "cpu" and not self.epoch_ends
        if waits and self.position.step % AGREE_EVERY:
            return False
        share, stops = distributed.furthest([self.limit.share, float(stopping)], self.device)
        self.time_share = share
        return stops > 0

    def require_finite(self, losses: Iterable[float]) -> None:
        """Raise `DivergedError` for a loss that is not finite; it names the setting to lower."""
        if all(math.isfinite(loss) for loss in losses):
            return
        place = f"epoch {self.position.epoch + 1}, batch {self.position.batch}"
        raise DivergedError(
            f"{place}: the loss is no longer finite at step {self.position.step}; the last "
            f"checkpoint is kept, lower {self.section}.learning_rate"
        )

    def _sums_of_all(self) -> dict[str, Tensor]:
        return {k: distributed.total(v.to(self.device)) for k, v in self.position.sums.items()}

    def save_weights(self, path: Path) -> None:
        save_weights(path, self.averaged.module.state_dict(), self.description, self.notes())

    def state_dict(self) -> State:
        """Everything that a resume needs; a collective call."""
        self.position.seconds, sums = self.limit.spent, self._sums_of_all()
        place = {"position": {**vars(self.position), "sums": sums}, "epoch_size": self._epoch_size}
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        return {**parts, **place, "settings": self.settings_of_run}

    def load_state_dict(self, state: State) -> None:
        """Continue from a state; a collective call.

        Raises `UserError` for one of other networks or optimisers.
        """
        load_parts(self.parts, state)
        self.position = Position(**state["position"])
        self._keep_share(*state.get("epoch_size", self._epoch_size))
        if not is_main():  # they are the sums of all
            sums = self.position.sums
            self.position.sums = {k: torch.zeros_like(v) for k, v in sums.items()}
        self.limit = TimeLimit(self.settings.max_minutes, self.position.seconds)
        (self.time_share,) = distributed.furthest([self.limit.share], self.device)

    @property
    def _epoch_size(self) -> tuple[int, int]:
        return self.batches_per_epoch, self.steps_per_epoch

    def _keep_share(self, batches: int, steps: int) -> None:
        """Move to the same share of the training as in a run with these epoch sizes.

        Within an epoch, rounds down to a whole group of batches, so that no image is skipped.
        """
        if (batches, steps) == self._epoch_size:
            return
        place = self.position
        place.step = round(place.step * self.steps_per_epoch / steps)
        groups = place.batch * self.batches_per_epoch // (batches * self.batches_a_step)
        before, place.batch = place.batch, groups * self.batches_a_step
        place.sums = {k: v * place.batch / before for k, v in place.sums.items()}
        place.missed = {k: v * place.batch / before for k, v in place.missed.items()}


def in_fp32(compute: Compute) -> Compute:
    """The same device in fp32 instead of fp16, in which small gradients would vanish unscaled."""
    if is_main():
        text = "gradients are scaled in stage 2 on a GPU only, so training is in fp32"
        note_once("fp16", f"precision fp16: {text}")
    return Compute(compute.device, torch.float32)
