"""Optuna's search for the learning rate and for any other number of the training (spec section 5).

All trials see the same images, masks and first weights, so that they differ by their settings only.
docs/search.md says how to use it and what it decides.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import optuna
import torch
from optuna import Study, Trial, TrialPruned
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import BaseSampler, PartialFixedSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from config.errors import DivergedError, UserError
from config.loading import flat
from config.schema import Config, SearchConfig, TrainingConfig
from config.search import is_whole
from utils.distributed import world_size
from utils.files import make_folder
from utils.loop import generator_for
from utils.search_referee import Finished, Referee
from utils.search_report import describe, save_search
from utils.search_storage import (
    Crew,
    check_storage,
    default_storage,
    failures_told,
    open_storage,
    shown,
)
from utils.search_workers import run_trials
from utils.train_transformer import Tokens, load_tokens, train_transformer

RATE = "learning_rate"  # the parameter's name; the others are called by their keys
REPORT_RATE = TrainingConfig.model_fields[RATE].default
HOLES = "masking.hole_share"  # above 0, trials need tokens of holed images
RANDOM_TRIALS = 5  # before the sampler has something to go by
SUBSET_STREAM = 77  # of random numbers, for the images that trials use
NOT_ASKED = (  # settings that a trial does not depend on, or that may grow later
    *("training.epochs", "training.max_minutes", "training.validate_every"),
    *("training.checkpoint_every", "search.trials", "search.seeds"),
)
Values = dict[str, float | int]


def search_learning_rate(config: Config, storage: str | None = None) -> Values:
    """Find the values with the lowest validation loss: {"training.learning_rate": ..., ...}.

    storage is a database URL or the path of a journal file, by default <run>/search/study.db. The
    study in it is named after all settings that its trials depend on: workers that agree in them
    share it, and a search cut short goes on where it was. Table, plots and numbers are left in
    <run>/search/. Raises `UserError` when nothing keeps the loss finite.
    """
    if world_size() > 1:
        raise UserError("--lr-search: found torchrun; start its workers as plain processes instead")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = config.run / "search"
    make_folder(folder)
    where = storage or default_storage(folder)
    check_storage(where)
    contest = Contest(config, load_tokens(_with_all_tokens(config)))
    crew = Crew(where)
    with crew.at_work(), failures_told(where):
        with crew.alone():
            backend = open_storage(where)
        print(f"search in {shown(where)}; watch it with optuna-dashboard", flush=True)
        name = f"learning_rate-{contest.fingerprint}"
        study = _open_study(backend, name, crew, MedianPruner(n_startup_trials=1))
        trials = run_trials(study, crew, config.search.trials, contest.trial_of(study))
        checks = []
        if contest.report_was_pruned(trials):
            study = _open_study(backend, f"{name}-report", crew, NopPruner())
            checks = run_trials(study, crew, 1, contest.report_of(study))
        best = _best([*trials, *checks], config)
        winner = "report" if best in checks else best.number
        study = _open_study(backend, f"{name}-seeds-of-{winner}", crew, NopPruner())
        seeds = run_trials(study, crew, config.search.seeds, contest.repeat_of(study, best))
    images = contest.budget.epochs * contest.budget.images
    result = describe(config, trials, best, checks, seeds, images)
    save_search(folder, result)
    print(f"Best learning rate found by Optuna: {best.params[RATE]}")
    return {_key(name): value for name, value in best.params.items()}


@dataclass(frozen=True)
class Budget:
    """What every trial may use."""

    epochs: int
    images: int  # an epoch


def budget_of(search: SearchConfig, images: int, images_a_step: int) -> Budget:
    """Epochs, and images an epoch, for a trial; steps are made of equal epochs, rounded down."""
    images = max(1, round(search.subset * images))
    if search.steps is None:
        return Budget(search.epochs, images)
    passes = min(search.steps, ceil(search.steps * images_a_step / images))
    return Budget(passes, min(images, search.steps // passes * images_a_step))


class Contest:
    """Trials of one study: what they vary, what they share, how each is trained."""

    def __init__(self, config: Config, tokens: Tokens) -> None:
        self.config, self.search = config, config.search
        images_a_step = config.training.images_a_step
        self.budget = budget_of(config.search, len(tokens.train), images_a_step)
        self.tokens = _subset(tokens, self.budget.images, config.seed)
        settings = flat(config, "seed", "data", "transformer", "masking", "training", "search")
        settings = {key: value for key, value in settings.items() if key not in NOT_ASKED}
        settings |= {"images": len(self.tokens.train), "codes": tokens.codes_sha256}
        if tokens.holes is not None:
            settings["decoding.hole_fill"] = config.decoding.hole_fill
        text = json.dumps(settings, sort_keys=True)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:8]
        self.starts = _starting_values(config)

    def trial_of(self, study: Study) -> Any:
        """The objective of the search itself."""

        def objective(trial: Trial, place: int) -> float:
            study.sampler = self._sampler(place)
            values = self._suggest(trial)
            referee = Referee(trial, study, self.search, self.tokens.val)
            return self._train(trial, values, self.config.seed, f"trial_{place}", referee)

        return objective

    def repeat_of(self, study: Study, best: FrozenTrial) -> Any:
        """The objective of the repeats: the best values, other seeds, no looks on the way."""

        def objective(trial: Trial, place: int) -> float:
            seed = self.config.seed + 1 + place
            return self._whole(trial, study, best.params, seed, f"seed_{seed}")

        return objective

    def report_of(self, study: Study) -> Any:
        """The objective of the report's rate, trained to its end for the comparison."""

        def objective(trial: Trial, _: int) -> float:
            values = next(v for v in self.starts if v[RATE] == REPORT_RATE)
            return self._whole(trial, study, values, self.config.seed, "report")

        return objective

    def report_was_pruned(self, trials: list[FrozenTrial]) -> bool:
        """Whether the report's rate was tried but not trained to its end."""
        tried = [
            t for t, start in zip(trials, self.starts, strict=False) if start[RATE] == REPORT_RATE
        ]
        return any(trial.state == TrialState.PRUNED for trial in tried)

    def _whole(self, trial: Trial, study: Study, values: Values, seed: int, name: str) -> float:
        """Train given values to the end, whatever the looks would say."""
        study.sampler = _fixed(values, TPESampler(seed=0))
        trial.set_user_attr("seed", seed)
        search = self.search.model_copy(update={"rungs": 0})
        referee = Referee(trial, study, search, self.tokens.val)
        return self._train(trial, self._suggest(trial), seed, name, referee)

    def _sampler(self, place: int) -> BaseSampler:
        """Known values first, then some at random, then where the losses were low.

        Seeded by the place, so that a search that was interrupted asks for the same values.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler = TPESampler(
                seed=(self.config.seed * 1_000_003 + place) % 2**32,
                n_startup_trials=RANDOM_TRIALS,
                constant_liar=True,  # what other workers are at counts as tried
            )
        return _fixed(self.starts[place], sampler) if place < len(self.starts) else sampler

    def _suggest(self, trial: Trial) -> Values:
        low, high = self.search.low, self.search.high
        values: Values = {_key(RATE): trial.suggest_float(RATE, low, high, log=True)}
        for key, ends in sorted(self.search.space.items()):
            if ends.int or is_whole(key):
                values[key] = trial.suggest_int(key, int(ends.low), int(ends.high), log=ends.log)
            else:
                values[key] = trial.suggest_float(key, ends.low, ends.high, log=ends.log)
        return values

    def _train(self, trial: Trial, values: Values, seed: int, name: str, referee: Referee) -> float:
        """Validation loss after the budget; `TrialPruned` with its reason in the trial before."""
        asked = ", ".join(f"{key.split('.')[1]} {value:.4g}" for key, value in values.items())
        print(f"{name}: {asked}", flush=True)
        began = time.monotonic()
        try:
            config = self._config_of(values, seed, name)
            train_transformer(config, resume=False, restart=True, tokens=self.tokens, watch=referee)
            raise AssertionError("a trial ends when its referee says so")
        except Finished as end:
            print(f"{name}: loss {end.loss:.4f}", flush=True)
            return end.loss
        except (DivergedError, ValidationError) as error:
            trial.set_user_attr("reason", _reason(error))
            raise TrialPruned from error
        finally:
            trial.set_user_attr("seconds", round(time.monotonic() - began, 2))
            trial.set_user_attr("share", referee.share)

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


def _open_study(
    backend: BaseStorage, name: str, crew: Crew, pruner: optuna.pruners.BasePruner
) -> Study:
    with crew.alone():
        return optuna.create_study(
            study_name=name, direction="minimize", storage=backend, load_if_exists=True,
            pruner=pruner,
        )  # fmt: skip


def _with_all_tokens(config: Config) -> Config:
    """The config of the trial that needs most tokens: the one that sees most holes."""
    if HOLES not in config.search.space:
        return config
    most = max(config.masking.hole_share, config.search.space[HOLES].high)
    masking = config.masking.model_copy(update={"hole_share": most})
    return config.model_copy(update={"masking": masking})


def _subset(tokens: Tokens, count: int, seed: int) -> Tokens:
    """The same so many training images for every trial, drawn by the seed."""
    if count == len(tokens.train):
        return tokens
    order = torch.randperm(len(tokens.train), generator=generator_for(seed, SUBSET_STREAM))
    rows = order[:count].sort().values.numpy()
    holes = None if tokens.holes is None else tokens.holes[rows]
    holed = tokens.holed and tokens.holed.part(rows)
    return replace(tokens, train=tokens.train[rows], holes=holes, holed=holed)


def _starting_values(config: Config) -> list[Values]:
    """What the first trials try, where it lies within the ranges: the config's own rate, then the
    report's, each with the config's own values of the rest of the space."""
    search, own = config.search, flat(config, "transformer", "masking", "training")
    others = {key: own[key] for key in search.space}
    for key, ends in search.space.items():
        if others[key] is None or not ends.low <= others[key] <= ends.high:
            return []
    rates = dict.fromkeys([config.training.learning_rate, REPORT_RATE])
    return [{RATE: rate, **others} for rate in rates if search.low <= rate <= search.high]


def _fixed(values: Values, sampler: BaseSampler) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return PartialFixedSampler(values, sampler)


def _best(trials: list[FrozenTrial], config: Config) -> FrozenTrial:
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        raise UserError(
            f"search: no trial kept its loss finite and below its start, from {config.search.low} "
            f"to {config.search.high}; lower search.high, or lengthen the trials"
        )
    return min(complete, key=lambda trial: trial.value)


def _key(name: str) -> str:
    """The setting that a parameter of the study stands for."""
    return f"training.{RATE}" if name == RATE else name


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return error.errors()[0]["msg"].removeprefix("Value error, ")
    return "NaN: " + str(error).split(";")[0]
