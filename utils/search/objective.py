"""The objective of the search: what a trial trains, for how long, and when it is pruned.

All trials use the same images, masks and initial weights, so they differ only in their settings.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from optuna import Trial, TrialPruned
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import TPESampler
from optuna.trial import TrialState
from pydantic import ValidationError

from config.errors import DivergedError, SettingsError, StopRequested, UserError
from config.loading import flat, with_settings
from config.schema import Config, SearchConfig, TrainingConfig
from config.transformer import is_whole
from utils.rng import generator_for
from utils.search.seeds import take_seed
from utils.training.token_batches import Tokens
from utils.training.transformer import train_transformer
from utils.training.transformer_step import TransformerTrainer
from utils.training.validate_transformer import validate

RATE = "learning_rate"  # its parameter name; other parameters are named by their keys
REPORT_RATE = TrainingConfig.model_fields[RATE].default
RANDOM_TRIALS = 5  # before the sampler uses earlier losses
PRUNING_POINTS = 4  # at 1/2, 1/4, ... of the training
LOOK_IMAGES = 64  # validation images per report; the final loss uses all
SUBSET_STREAM = 77  # random stream that picks the images of trials
NOT_ASKED = (  # settings that do not affect a trial, or may be raised later
    *("training.epochs", "training.max_minutes", "training.validate_every"),
    *("training.checkpoint_every", "training.pictures_every", "search.trials", "search.seeds"),
)
STEP_COUNTS = {"training.warmup_steps", "training.batch_size", "training.accumulate"}
Values = dict[str, float | int]


@dataclass(frozen=True)
class Budget:
    """The training budget of every trial."""

    epochs: int
    images: int  # per epoch


def budget_of(search: SearchConfig, images: int, images_per_step: int) -> Budget:
    """Epochs and images per epoch of a trial; steps are split into equal epochs, rounded down."""
    if search.steps is None:
        return Budget(search.epochs, images)
    epochs = min(search.steps, math.ceil(search.steps * images_per_step / images))
    return Budget(epochs, min(images, search.steps // epochs * images_per_step))


class Finished(Exception):
    """A trial has reached the end of its training."""


class PruningCallback:
    """Called by `train_transformer` with the trainer before the first step and after each.

    Raises `Finished` at the end, before any weights are written, and `TrialPruned` if the loss is
    not finite or above its initial value, or if the study's pruner decides so.
    """

    def __init__(self, trial: Trial, looks: int = PRUNING_POINTS) -> None:
        self.trial, self.looks = trial, looks
        self.start = math.inf  # loss before the first step
        self.loss = math.nan  # after the last step, on all validation images
        self.share = 0.0  # fraction of the training done

    def __call__(self, trainer: TransformerTrainer) -> None:
        step, total = trainer.position.step, trainer.total_steps
        self.share = step / total
        looks = {round(total / 2 ** (self.looks - look)): look + 1 for look in range(self.looks)}
        if step == 0:
            self.start = validation_loss(trainer, LOOK_IMAGES)
        elif step == total:
            self._require_progress(validation_loss(trainer, LOOK_IMAGES))
            self.loss = validation_loss(trainer)
            raise Finished
        elif step in looks:
            loss = validation_loss(trainer, LOOK_IMAGES)
            self.trial.report(loss, looks[step])
            self._require_progress(loss)
            if self.trial.should_prune():
                raise TrialPruned(f"loss {loss:.4f} behind the median at {self.share:.0%}")

    def _require_progress(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrialPruned("NaN: the validation loss is not finite")
        if loss > self.start:
            raise TrialPruned(f"loss {loss:.4f} above its start {self.start:.4f}")


def validation_loss(trainer: TransformerTrainer, images: int | None = None) -> float:
    """Loss of the averaged weights on the first `images` validation images (default all), nats."""
    val, seen = trainer.tokens.val[:images], trainer.tokens.val_seen
    if seen is not None:
        seen = seen.rows(slice(images))
    network = trainer.averaged.module
    return validate(network, val, trainer.device, trainer.dtype, seen)["val_loss"]


class TrainingLoss:
    """The objective: validation loss, in nats, after a short training with a trial's values."""

    def __init__(self, config: Config, tokens: Tokens) -> None:
        self.config = config
        self.budget = budget_of(config.search, len(tokens.train), config.training.images_per_step)
        self.tokens = _subset(tokens, self.budget.images, config.seed)
        sections = ("seed", "precision", "data", "transformer", "masking", "training", "search")
        settings = flat(config, *sections)
        settings = {key: value for key, value in settings.items() if key not in NOT_ASKED}
        settings |= {"images": len(self.tokens.train), "codes": tokens.codes_sha256}
        settings |= {split: tokens.fingerprint(split) for split in ("train", "val")}
        if tokens.holed is not None:
            settings["decoding.hole_fill"] = config.decoding.hole_fill
        text = json.dumps(settings, sort_keys=True)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:8]

    def __call__(self, trial: Trial) -> float:
        """Train with the sampler's values; raises `TrialPruned`, with the reason in the trial."""
        trial.study.sampler = _sampler(trial, self.config.seed)
        values = _suggest(trial, self.config.search)
        name, callback = f"trial_{trial.number}", PruningCallback(trial)
        return self._train(values, self.config.seed, name, callback)

    def repeat_of(self, best: dict[str, float]) -> Callable[[Trial], float]:
        """The objective of the repeats: the best values with a seed that no other trial has."""
        first, count = self.config.seed + 1, self.config.search.seeds
        values = {key_of(name): value for name, value in best.items()}

        def objective(trial: Trial) -> float:
            seed = take_seed(trial, range(first, first + count))
            name = f"repeat_{trial.number}_seed_{seed}"  # a suspended worker's is locked
            return self._train(values, seed, name, PruningCallback(trial, looks=0))

        return objective

    def _train(self, values: Values, seed: int, name: str, callback: PruningCallback) -> float:
        trial = callback.trial
        asked = ", ".join(f"{key.split('.')[1]} {value:.4g}" for key, value in values.items())
        print(f"{name}: {asked}", flush=True)
        began = time.monotonic()
        try:
            config = self._config_of(values, seed, name)
            train_transformer(
                config, resume=False, restart=True, tokens=self.tokens, callback=callback
            )
            raise AssertionError("the callback ends a trial at its last step")
        except Finished:
            print(f"{name}: loss {callback.loss:.4f}", flush=True)
            return callback.loss
        except (TrialPruned, DivergedError, SettingsError, ValidationError) as error:
            if isinstance(error, SettingsError) and not STEP_COUNTS & values.keys():
                budget = "lower it, or raise search.epochs or search.steps"
                raise UserError(f"search: in a trial {_reason(error)}; {budget}") from None
            trial.set_user_attr("reason", _reason(error))
            print(f"{name}: {_reason(error)}", flush=True)
            raise TrialPruned from error
        except StopRequested:
            shutil.rmtree(self.config.run / "search" / name, ignore_errors=True)  # restarts
            raise StopRequested(f"stopped in {name}; the same command continues") from None
        finally:
            with suppress(UpdateFinishedTrialError):  # by a worker that took it over
                trial.set_user_attr("seconds", round(time.monotonic() - began, 2))
                trial.set_user_attr("share", callback.share)

    def _config_of(self, values: Values, seed: int, name: str) -> Config:
        """The config of a trial; raises `ValidationError` if its values conflict."""
        epochs = self.budget.epochs
        trial = {"run": self.config.run / "search" / name, "seed": seed}
        trial |= {"training.epochs": epochs, "training.max_minutes": None}
        trial |= {"training.validate_every": epochs, "training.checkpoint_every": epochs}
        trial |= {"training.pictures_every": 0}  # which would save weights
        trial |= {"tokenizer.weights": self.config.tokenizer_weights}
        return with_settings(self.config, values | trial)


def key_of(name: str) -> str:
    """Config key of a parameter of the study."""
    return f"training.{RATE}" if name == RATE else name


def starting_values(config: Config) -> list[Values]:
    """Values of the first trials, if within the ranges: the config's learning rate, then the
    report's, each with the config's values for the rest of the space."""
    search, own = config.search, flat(config, "transformer", "masking", "training")
    others = {key: own[key] for key in search.space}
    for key, ends in search.space.items():
        if others[key] is None or not ends.low <= others[key] <= ends.high:
            return []
    rates = dict.fromkeys([config.training.learning_rate, REPORT_RATE])
    return [{RATE: rate, **others} for rate in rates if search.low <= rate <= search.high]


def _subset(tokens: Tokens, count: int, seed: int) -> Tokens:
    """The same `count` training images for every trial, drawn by the seed."""
    if count == len(tokens.train):
        return tokens
    order = torch.randperm(len(tokens.train), generator=generator_for(seed, SUBSET_STREAM))
    rows = order[:count].sort().values.numpy()
    return replace(tokens, train=tokens.train[rows], holed=tokens.holed and tokens.holed.part(rows))


def _sampler(trial: Trial, seed: int) -> TPESampler:
    """A TPE sampler that starts with `RANDOM_TRIALS` random trials.

    Seeded by the number of earlier trials that did not fail, so workers draw different values, and
    a resumed search draws the same values as an uninterrupted one.
    """
    earlier = trial.study.get_trials(deepcopy=False)[: trial.number]
    place = sum(other.state != TrialState.FAIL for other in earlier)
    return TPESampler(
        seed=(seed * 1_000_003 + place) % 2**32,
        n_startup_trials=RANDOM_TRIALS,
        constant_liar=True,  # accounts for trials that are still running
    )


def _suggest(trial: Trial, search: SearchConfig) -> Values:
    values: Values = {key_of(RATE): trial.suggest_float(RATE, search.low, search.high, log=True)}
    for key, ends in sorted(search.space.items()):
        if ends.int or is_whole(key):
            values[key] = trial.suggest_int(key, int(ends.low), int(ends.high), log=ends.log)
        else:
            values[key] = trial.suggest_float(key, ends.low, ends.high, log=ends.log)
    return values


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return error.errors()[0]["msg"].removeprefix("Value error, ")
    found, _, _advice = str(error).partition(";")
    if isinstance(error, DivergedError):
        return f"NaN: {found}"
    return found if isinstance(error, SettingsError) else str(error)
