"""Reports a trial's loss during training, and ends the trial when complete or falling behind."""

from __future__ import annotations

import math

from optuna import Trial, TrialPruned

from utils.training.transformer_step import TransformerTrainer
from utils.training.validate_transformer import validate

PRUNING_POINTS = 4  # at 1/2, 1/4, ... of the training
LOOK_IMAGES = 64  # validation images per report; the final loss uses all


class Finished(Exception):
    """A trial has reached the end of its training."""

    def __init__(self, loss: float) -> None:
        super().__init__(loss)
        self.loss = loss


class PruningCallback:
    """Called by `train_transformer` with the trainer before the first step and after each.

    Raises `Finished` at the end, before any weights are written, and `TrialPruned` if the loss is
    not finite or above its initial value, or if the study's pruner decides so.
    """

    def __init__(self, trial: Trial, looks: int = PRUNING_POINTS) -> None:
        self.trial, self.looks = trial, looks
        self.start = math.inf  # loss before the first step
        self.share = 0.0  # fraction of the training done

    def __call__(self, trainer: TransformerTrainer) -> None:
        step, total = trainer.position.step, trainer.total_steps
        self.share = step / total
        if step == 0:
            self.start = validation_loss(trainer, LOOK_IMAGES)
        elif step == total:
            self._require_progress(validation_loss(trainer, LOOK_IMAGES))
            raise Finished(validation_loss(trainer))
        elif look := look_steps(total, self.looks).get(step):
            loss = validation_loss(trainer, LOOK_IMAGES)
            self.trial.report(loss, look)
            self._require_progress(loss)
            if self.trial.should_prune():
                raise TrialPruned(f"loss {loss:.4f} behind the median at {self.share:.0%}")

    def _require_progress(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrialPruned("NaN: the validation loss is not finite")
        if loss > self.start:
            raise TrialPruned(f"loss {loss:.4f} above its start {self.start:.4f}")


def look_steps(total: int, looks: int) -> dict[int, int]:
    """{optimiser step: index of the report, from 1}: total / 2^looks, ..., total / 4, total / 2."""
    steps = {round(total / 2 ** (looks + 1 - look)): look for look in range(1, looks + 1)}
    return {step: look for step, look in steps.items() if 0 < step < total}


def validation_loss(trainer: TransformerTrainer, images: int | None = None) -> float:
    """Loss of the averaged weights on the first `images` validation images (default all), nats."""
    val, seen = trainer.tokens.val[:images], trainer.tokens.val_seen
    network = trainer.averaged.module
    return validate(network, val, trainer.device, trainer.dtype, seen)["val_loss"]
