"""The seeds with which the workers of a search repeat its winner, each once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.trial import FrozenTrial

LIVE = ("RUNNING", "COMPLETE", "PRUNED")  # a failed trial's seed is free again


class SeedsTaken(Exception):
    """Other trials have all the seeds, until one of them fails."""


def seed_of(trial: FrozenTrial) -> int | None:
    """The seed of a repeat; None while it has not chosen one.

    An attribute, since Optuna keeps parameters as floats.
    """
    return trial.user_attrs.get("seed")


def take_seed(trial: Trial, seeds: Iterable[int]) -> int:
    """Give a trial the first seed that no other has. Raises `SeedsTaken` if there is none left.

    Trials that start at the same moment choose in the order of their numbers.
    """
    number, study = trial.number, trial.study
    others = [
        other
        for other in study.get_trials(deepcopy=False)
        if other.number != number and other.state.name in LIVE
    ]
    taken = {seed_of(other) for other in others}
    choosing = sum(
        other.number < number and other.state.name == "RUNNING" and seed_of(other) is None
        for other in others
    )
    free = [seed for seed in seeds if seed not in taken][choosing:]
    if not free:
        raise SeedsTaken
    trial.set_user_attr("seed", free[0])
    return free[0]
