"""Optuna search for the learning rate and other numeric training settings.

docs/search.md explains usage and results.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable

import optuna
from optuna import Study, Trial, TrialPruned
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, UpdateFinishedTrialError
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.study import MaxTrialsCallback, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from config.errors import UserError
from config.schema import Config
from utils.device import Compute
from utils.io.files import make_folder
from utils.search.objective import RATE, TrainingLoss, Values, key_of, starting_values
from utils.search.report import describe_search, save_search
from utils.search.seeds import SeedsTaken
from utils.search.storage import (
    open_storage,
    public_url,
    retry_callback,
    storage_errors,
    storage_url,
)
from utils.training.transformer import load_tokens

NEVER_PRUNED = 2  # first trials, with the config's and the report's learning rate
POLL = 1.0  # seconds between checks on other workers' trials
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
TrialLoss = Callable[[Trial], float]


def search_learning_rate(config: Config, storage: str | None = None) -> Values:
    """Find the values with the lowest validation loss: {"training.learning_rate": ..., ...}.

    storage: URL of a database, by default SQLite in <run>/search/study.db. Its study's
    name contains a digest of all settings that trials depend on, so workers with equal settings
    share it and an interrupted search continues. Writes table, plots and numbers to <run>/search/.
    Raises `UserError` when no trial keeps its loss finite.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = config.run / "search"
    make_folder(folder)
    url = storage_url(storage, folder)
    objective = TrainingLoss(config, load_tokens(config, Compute.of(config).device))
    with warnings.catch_warnings(), storage_errors(url):
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", module="optuna")  # plots of a single trial
        backend = open_storage(url)
        print(f"search in {public_url(url)}; watch it with optuna-dashboard", flush=True)
        name, count = f"learning_rate-{objective.fingerprint}", config.search.seeds
        pruner = MedianPruner(n_startup_trials=NEVER_PRUNED)
        study = open_study(backend, name, starting_values(config), pruner)
        trials = run_trials(study, config.search.trials, objective)
        best = _best(trials, config)
        repeats = open_study(backend, f"{name}-{count}-seeds-of-{best.number}", [], NopPruner())
        repeated = run_trials(repeats, count, objective.repeat_of(best.params))
        images = objective.budget.epochs * objective.budget.images
        save_search(folder, describe_search(config, trials, best, repeated, images), study)
    print(f"Best learning rate found by Optuna: {best.params[RATE]}")
    return {key_of(name): value for name, value in best.params.items()}


def open_study(backend: RDBStorage, name: str, first: list[Values], pruner: BasePruner) -> Study:
    """Create or load a study that minimises; its creator queues the values of the first trials."""
    kwargs = {"study_name": name, "storage": backend, "pruner": pruner}
    try:
        study = optuna.create_study(direction="minimize", **kwargs)
        for values in first:
            study.enqueue_trial(values)
    except DuplicatedStudyError:
        study = optuna.load_study(**kwargs)
    if study.directions != [StudyDirection.MINIMIZE]:
        raise UserError(f"--storage: its study {name} was not made by this search; give another")
    return study


def run_trials(study: Study, wanted: int, objective: TrialLoss) -> list[FrozenTrial]:
    """Run trials until `wanted` are complete or pruned, and return all of those, by number.

    Any number of workers may share a study. Each waits for the others' last trials, so all return
    the same, and takes over the trials of dead workers.
    """
    limit = MaxTrialsCallback(wanted, states=(*DONE, TrialState.RUNNING))
    waiting = 0
    while True:
        fail_stale_trials(study)
        count = Counter(trial.state for trial in study.get_trials(deepcopy=False))
        done, running = sum(count[state] for state in DONE), count[TrialState.RUNNING]
        if done >= wanted and not running:
            return study.get_trials(states=DONE)
        if done + running < wanted:
            _optimize(study, objective, limit)
            continue
        if running != waiting:
            print(f"waiting for {running} trials of other workers", flush=True)
        waiting = running
        time.sleep(POLL)


def _optimize(study: Study, objective: TrialLoss, limit: MaxTrialsCallback) -> None:
    """Run trials until there are enough; an interrupted one is queued again, by one worker only.

    A repeat too many, started when several workers saw one missing, fails and so does not count:
    the trial that has its seed may still be lost.
    """

    errors: list[BaseException] = []  # Optuna replaces that of a trial which was taken over

    def attempt(trial: Trial) -> float:
        try:
            return objective(trial)
        except (TrialPruned, SeedsTaken, UpdateFinishedTrialError):
            raise
        except BaseException as error:
            errors.append(error)
            found = study.trials[trial.number]
            if not found.state.is_finished():
                retry_callback()(study, found)
            raise

    try:
        # a pruned trial's networks are in a reference cycle: Optuna keeps its error's traceback
        study.optimize(attempt, callbacks=[limit], gc_after_trial=True, catch=SeedsTaken)
    except ValueError as error:
        if "Cannot tell" not in str(error):
            raise
        if errors:
            raise errors[0] from None
        print("another worker took over a trial of this one, which seemed dead", flush=True)


def _best(trials: list[FrozenTrial], config: Config) -> FrozenTrial:
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        raise UserError(
            f"search: no trial reached its end, from {config.search.low} to {config.search.high} "
            f"({trials[0].user_attrs.get('reason')}); lower search.high, narrow "
            "search.space, or lengthen the trials"
        )
    return min(complete, key=lambda trial: trial.value)
