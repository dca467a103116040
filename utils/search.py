"""Optuna's search for the learning rate (spec section 5)."""

from __future__ import annotations

import optuna

from config.schema import Config
from utils.train_transformer import train_transformer


def search_learning_rate(config: Config) -> float:
    """Train `search.trials` short runs and return the rate with the lowest validation loss.

    The study lies in <run>/search/study.db; a search cut short goes on where it was. Each trial
    trains in a folder of its own below <run>/search.
    """
    folder, settings = config.run / "search", config.search
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="learning_rate",
        direction="minimize",
        sampler=optuna.samplers.TPESampler(seed=config.seed),
        storage=f"sqlite:///{folder / 'study.db'}",
        load_if_exists=True,
    )

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("learning_rate", settings.low, settings.high, log=True)
        return _trial_loss(config, rate, f"trial_{trial.number}")

    finished = len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE]))
    study.optimize(objective, n_trials=max(0, settings.trials - finished))
    best = study.best_params["learning_rate"]
    print(f"Best learning rate found by Optuna: {best}")
    return best


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
    train_transformer(trial, resume=False, after_epoch=lambda _, loss: losses.append(loss))
    return losses[-1]
