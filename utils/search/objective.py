"""What a trial of the search trains, and for how long.

All trials see the same images, masks and first weights, so that they differ by their settings only.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil

import torch
from optuna import Trial, TrialPruned
from optuna.samplers import TPESampler
from optuna.trial import TrialState
from pydantic import ValidationError

from config.errors import DivergedError
from config.loading import flat
from config.schema import Config, SearchConfig, TrainingConfig
from config.search import is_whole
from utils.rng import generator_for
from utils.search.pruning import Finished, PruningCallback
from utils.training.token_batches import Tokens
from utils.training.transformer import train_transformer

RATE = "learning_rate"  # the parameter's name; the others are called by their keys
REPORT_RATE = TrainingConfig.model_fields[RATE].default
RANDOM_TRIALS = 5  # before the sampler has losses to learn from
SUBSET_STREAM = 77  # of random numbers, for the images that trials use
NOT_ASKED = (  # settings that a trial does not depend on, or that may grow later
    *("training.epochs", "training.max_minutes", "training.validate_every"),
    *("training.checkpoint_every", "search.trials", "search.seeds"),
)
Values = dict[str, float | int]


@dataclass(frozen=True)
class Budget:
    """What every trial may use."""

    epochs: int
    images: int  # an epoch


def budget_of(search: SearchConfig, images: int, images_per_step: int) -> Budget:
    """Epochs, and images an epoch, for a trial; steps become equal epochs, rounded down."""
    if search.steps is None:
        return Budget(search.epochs, images)
    epochs = min(search.steps, ceil(search.steps * images_per_step / images))
    return Budget(epochs, min(images, search.steps // epochs * images_per_step))


class TrainingLoss:
    """The objective: validation loss, in nats, after a short training with a trial's values."""

    def __init__(self, config: Config, tokens: Tokens) -> None:
        self.config = config
        self.budget = budget_of(config.search, len(tokens.train), config.training.images_per_step)
        self.tokens = _subset(tokens, self.budget.images, config.seed)
        settings = flat(config, "seed", "data", "transformer", "masking", "training", "search")
        settings = {key: value for key, value in settings.items() if key not in NOT_ASKED}
        settings |= {"images": len(self.tokens.train), "codes": tokens.codes_sha256}
        if tokens.holed is not None:
            settings["decoding.hole_fill"] = config.decoding.hole_fill
        text = json.dumps(settings, sort_keys=True)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:8]

    def __call__(self, trial: Trial) -> float:
        """Train with values that the sampler proposes; `TrialPruned`, its reason in the trial."""
        trial.study.sampler = _sampler(trial, self.config.seed)
        values = _suggest(trial, self.config.search)
        callback = PruningCallback(trial)
        return self._train(trial, values, self.config.seed, f"trial_{trial.number}", callback)

    def repeat_of(self, best: dict[str, float]) -> Callable[[Trial], float]:
        """The objective of another study: the same values with the trial's seed."""
        first, last = self.config.seed + 1, self.config.seed + self.config.search.seeds
        values = {key_of(name): value for name, value in best.items()}

        def objective(trial: Trial) -> float:
            seed = trial.suggest_int("seed", first, last)
            return self._train(trial, values, seed, f"seed_{seed}", PruningCallback(trial, looks=0))

        return objective

    def _train(
        self, trial: Trial, values: Values, seed: int, name: str, callback: PruningCallback
    ) -> float:
        asked = ", ".join(f"{key.split('.')[1]} {value:.4g}" for key, value in values.items())
        print(f"{name}: {asked}", flush=True)
        began = time.monotonic()
        try:
            config = self._config_of(values, seed, name)
            train_transformer(
                config, resume=False, restart=True, tokens=self.tokens, callback=callback
            )
            raise AssertionError("the callback ends a trial at its last step")
        except Finished as end:
            print(f"{name}: loss {end.loss:.4f}", flush=True)
            return end.loss
        except (TrialPruned, DivergedError, ValidationError) as error:
            trial.set_user_attr("reason", _reason(error))
            raise TrialPruned from error
        finally:
            trial.set_user_attr("seconds", round(time.monotonic() - began, 2))
            trial.set_user_attr("share", callback.share)

    def _config_of(self, values: Values, seed: int, name: str) -> Config:
        """The config of a trial; a `ValidationError` if its values do not go together."""
        epochs, tree = self.budget.epochs, self.config.model_dump()
        for key, value in values.items():
            section, setting = key.split(".")
            tree[section][setting] = value
        tree["training"] |= {"epochs": epochs, "max_minutes": None}
        tree["training"] |= {"validate_every": epochs, "checkpoint_every": epochs}
        tree["tokenizer"]["weights"] = self.config.tokenizer_weights
        return Config.model_validate(
            tree | {"run": self.config.run / "search" / name, "seed": seed}
        )


def key_of(name: str) -> str:
    """The setting that a parameter of the study stands for."""
    return f"training.{RATE}" if name == RATE else name


def starting_values(config: Config) -> list[Values]:
    """What the first trials try, where it lies within the ranges: the config's own rate, then the
    report's, each with the config's own values of the rest of the space."""
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
    """Random values first, then values near low losses.

    Seeded by the number of earlier trials that did not fail: workers draw different values, and a
    search that was interrupted draws what it would have drawn.
    """
    earlier = trial.study.get_trials(deepcopy=False)[: trial.number]
    place = sum(other.state != TrialState.FAIL for other in earlier)
    return TPESampler(
        seed=(seed * 1_000_003 + place) % 2**32,
        n_startup_trials=RANDOM_TRIALS,
        constant_liar=True,  # what other workers are training counts as tried
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
    if isinstance(error, DivergedError):
        return "NaN: " + str(error).split(";")[0]
    return str(error)
