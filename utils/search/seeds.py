"""The seeds with which the workers of a search repeat its winner, each once."""

from __future__ import annotations

from collections.abc import Iterable

from optuna import Trial
from optuna.trial import TrialState

# a failed trial's seed is free again
LIVE = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
SEED = "seed"  # an attribute of a repeat, since Optuna keeps parameters as floats


class SeedsTaken(Exception):
    """Other trials have all the seeds, until one of them fails."""


def take_seed(trial: Trial, seeds: Iterable[int]) -> int:
    """Give a trial the first seed that no other has. Raises `SeedsTaken` if there is none left.

    Trials that start at the same moment choose in the order of their numbers.
    """
    number = trial.number
    live = trial.study.get_trials(deepcopy=False, states=LIVE)
    taken = {other.user_attrs.get(SEED) for other in live if other.number != number}
    choosing = sum(other.number < number and SEED not in other.user_attrs for other in live)
    free = [seed for seed in seeds if seed not in taken][choosing:]
    if not free:
        raise SeedsTaken
    trial.set_user_attr(SEED, free[0])
    return free[0]
