"""Optuna's search for the learning rate (spec section 5)."""

from __future__ import annotations

import hashlib
import json

import optuna
from optuna.trial import TrialState

from config.errors import DivergedError, UserError
from config.loading import flat
from config.schema import Config
from utils.files import make_folder
from utils.train_transformer import train_transformer

DONE = (TrialState.COMPLETE, TrialState.PRUNED)  # a trial that was cut off does not count


def search_learning_rate(config: Config) -> float:
    """Train `search.trials` short runs and return the rate with the lowest validation loss.

    The study lies in <run>/search/study.db under a name that changes with the settings; a search
    cut short goes on where it was. Each trial trains in a folder of its own beside it. Raises
    `UserError` when no rate keeps the loss finite.
    """
    folder, settings = config.run / "search", config.search
    make_folder(folder)
    study = optuna.create_study(
        study_name=f"learning_rate-{_fingerprint(config)}",
        direction="minimize",
        storage=f"sqlite:///{folder / 'study.db'}",
        load_if_exists=True,
    )

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("learning_rate", settings.low, settings.high, log=True)
        try:
            return _trial_loss(config, rate, f"trial_{trial.number}")
        except DivergedError as error:
            trial.set_user_attr("reason", str(error))
            raise optuna.TrialPruned from error

    while (done := len(study.get_trials(states=DONE))) < settings.trials:
        study.sampler = optuna.samplers.TPESampler(seed=config.seed + done)
        study.optimize(objective, n_trials=1)
    if not study.get_trials(states=[TrialState.COMPLETE]):
        raise UserError(f"search: the loss was finite for no rate up to {settings.high}; lower it")
    best = study.best_params["learning_rate"]
    print(f"Best learning rate found by Optuna: {best}")
    return best


def _fingerprint(config: Config) -> str:
    """Eight hexadecimal digits of all settings that a trial depends on."""
    settings = flat(config, "seed", "data", "transformer", "masking", "training")
    settings |= {key: value for key, value in flat(config, "search").items() if "trials" not in key}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def _trial_loss(config: Config, rate: float, name: str) -> float:
    """Validation loss after training `search.epochs` epochs at this rate."""
    losses: list[float] = []
    training = config.training.model_copy(
        update={"learning_rate": rate, "epochs": config.search.epochs}
    )
    tokenizer = config.tokenizer.model_copy(update={"weights": config.tokenizer_weights})
    trial = config.model_copy(
        update={
            "training": training,
            "tokenizer": tokenizer,
            "run": config.run / "search" / name,
        }
    )
    train_transformer(
        trial, resume=False, restart=True, after_epoch=lambda _, loss: losses.append(loss)
    )
    return losses[-1]
