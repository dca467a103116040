"""Trials of one study by any number of workers: none lost, none doubled, whoever dies.

The trial of a worker that died is failed and queued again with the same settings; one that was
started although enough are under way is given up before it costs anything ("surplus"). A trial and
the trials that retry it are one trial to the study, counted by its place: 0 for the first.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from optuna import Study, Trial
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from utils.search_storage import Crew

DONE = (TrialState.COMPLETE, TrialState.PRUNED)
MAX_RETRIES = 10  # of one trial; what kills so many workers will kill the next
POLL = 1.0  # seconds between looks while others work
WORKER, SURPLUS = "worker", "surplus"  # attributes of a trial
Objective = Callable[[Trial, int], float]  # trial, its place -> loss

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ExperimentalWarning)
    _queue_again = RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES)


class Surplus(Exception):
    """Enough trials are under way without this one."""


@dataclass
class Tally:
    """The trials of a study as they count: without surplus ones and those that were retried."""

    done: list[FrozenTrial] = field(default_factory=list)
    open: list[FrozenTrial] = field(default_factory=list)
    given_up: list[FrozenTrial] = field(default_factory=list)

    def room(self, wanted: int) -> bool:
        """Whether there is a trial to take up: one that waits, or a new one."""
        waiting = any(trial.state == TrialState.WAITING for trial in self.open)
        return waiting or len(self.done) + len(self.open) < wanted


def run_trials(study: Study, crew: Crew, wanted: int, objective: Objective) -> list[FrozenTrial]:
    """Work, beside any others, until so many trials are complete or pruned; return them by place.

    What an objective raises, a pruned trial apart, ends the work here; its trial is queued again
    by the next worker that looks.
    """
    told = False
    while True:
        held = crew.alone()
        with held:
            _tidy(study, crew)
            tally = count(study)
            if len(tally.done) >= wanted:
                return sorted(tally.done, key=lambda trial: place(trial, study.get_trials()))
            if tally.room(wanted):
                _take(study, crew, wanted, objective, held)
                told = False
                continue
        if not told:
            print(f"waiting for {len(tally.open)} trials of other workers", flush=True)
        told = True
        time.sleep(POLL)


def count(study: Study) -> Tally:
    """Sort a study's trials by what has become of them."""
    trials = study.get_trials()
    tally, retried = Tally(), _retried(trials)
    for trial in trials:
        if SURPLUS in trial.user_attrs or trial.number in retried:
            continue
        if trial.state in DONE:
            tally.done.append(trial)
        else:
            (tally.given_up if _exhausted(trial) else tally.open).append(trial)
    return tally


def place(trial: FrozenTrial, trials: list[FrozenTrial]) -> int:
    """How many trials came before this one; a retry stands where the first attempt stood."""
    first = _history(trial)[0] if _history(trial) else trial.number
    return sum(
        not _history(other) and SURPLUS not in other.user_attrs and other.number < first
        for other in trials
    )


def _take(study: Study, crew: Crew, wanted: int, objective: Objective, held: ExitStack) -> None:
    """Work on the next trial; the queue is held until it is known whose it is."""
    lost = False

    def work(trial: Trial) -> float:
        nonlocal lost
        trial.set_user_attr(WORKER, crew.name)
        held.close()
        trials = study.get_trials()
        mine = next(other for other in trials if other.number == trial.number)
        if _is_surplus(mine, trials, wanted):
            trial.set_user_attr(SURPLUS, True)
            raise Surplus
        try:
            return objective(trial, place(mine, trials))
        except UpdateFinishedTrialError:
            lost = True
            raise

    try:
        study.optimize(work, n_trials=1, catch=(Surplus,))
    except (ValueError, UpdateFinishedTrialError):  # what Optuna says of a trial that is over
        if not lost:
            raise
        print("a trial was given to another worker, who thought this one dead", flush=True)


def _is_surplus(trial: FrozenTrial, trials: list[FrozenTrial], wanted: int) -> bool:
    """Whether an earlier trial already is this retry, or enough trials came before."""
    if history := _history(trial):
        return any(
            _history(other)[-1:] == history[-1:] and other.number < trial.number for other in trials
        )
    given_up = sum(_exhausted(other) and SURPLUS not in other.user_attrs for other in trials)
    return place(trial, trials) >= wanted + given_up


def _tidy(study: Study, crew: Crew) -> None:
    """Fail the trials of dead workers, and queue again what failed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        fail_stale_trials(study)
    if crew.sees_deaths:  # the queue is ours, so a trial without a name lost its worker at birth
        for trial in study.get_trials(states=[TrialState.RUNNING]):
            worker = trial.user_attrs.get(WORKER)
            if worker is None or not crew.lives(worker) or worker == crew.name:
                study.tell(trial.number, state=TrialState.FAIL)
    trials = study.get_trials()
    retried = _retried(trials)
    for trial in trials:
        lost = trial.state == TrialState.FAIL and SURPLUS not in trial.user_attrs
        if lost and trial.number not in retried:
            _queue_again(study, trial)


def _retried(trials: list[FrozenTrial]) -> set[int]:
    """Numbers of trials that another one retries."""
    return {_history(trial)[-1] for trial in trials if _history(trial)}


def _history(trial: FrozenTrial) -> list[int]:
    """Numbers of the earlier attempts at a trial, the first one first; [] for a first attempt."""
    return trial.system_attrs.get("retry_history", [])


def _exhausted(trial: FrozenTrial) -> bool:
    """Whether a failed trial was tried so often that it will not be queued again."""
    return trial.state == TrialState.FAIL and len(_history(trial)) >= MAX_RETRIES
