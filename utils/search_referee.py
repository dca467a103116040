"""Watches a trial while it trains: looks at its loss, reports it, and ends it when it is time."""

from __future__ import annotations

import math

import numpy as np
from optuna import Study, Trial, TrialPruned
from optuna.trial import FrozenTrial, TrialState

from config.schema import SearchConfig
from utils.search_workers import count
from utils.train_transformer import TransformerTrainer
from utils.validate_transformer import validate

CLEAR_LEAD = 0.1  # of what the best had gained since its start
GLANCE = 64  # validation images of a look on the way; the end is judged on all


class Finished(Exception):
    """A trial has used its budget."""

    def __init__(self, loss: float) -> None:
        super().__init__(loss)
        self.loss = loss


class Referee:
    """`train_transformer` shows it the trainer before the first step and after each."""

    def __init__(self, trial: Trial, study: Study, search: SearchConfig, val: np.ndarray) -> None:
        self.trial, self.study, self.search, self.val = trial, study, search, val
        self.start = math.inf  # loss before the first step
        self.share = 0.0  # of its training that the trial has had

    def __call__(self, trainer: TransformerTrainer) -> None:
        """Raise `Finished` at the end, `TrialPruned` at a look that the trial does not survive."""
        step, total = trainer.position.step, trainer.total_steps
        self.share = step / total
        if step == 0:
            self.start = _loss(trainer, self.val[:GLANCE])
        elif step == total:
            self._divergence(_loss(trainer, self.val[:GLANCE]))
            raise Finished(_loss(trainer, self.val))
        elif look := looks(total, self.search.rungs).get(step):
            self._look(look, _loss(trainer, self.val[:GLANCE]))

    def _look(self, look: int, loss: float) -> None:
        self.trial.report(loss, look)
        self.trial.set_user_attr("share", self.share)
        self._divergence(loss)
        if self.trial.should_prune():
            self._prune(f"loss {loss:.4f} behind the median at {self.share:.0%} of its training")
        if self._too_dear(look, loss):
            self._prune(f"loss {loss:.4f} not far ahead at {self.share:.0%}, and the rest is dear")

    def _divergence(self, loss: float) -> None:
        if not math.isfinite(loss):
            self._prune("NaN: the validation loss is not finite")
        if loss > self.start:
            self._prune(f"loss {loss:.4f} above its start {self.start:.4f}")

    def _prune(self, reason: str) -> None:
        self.trial.set_user_attr("reason", reason)
        raise TrialPruned(reason)

    def _too_dear(self, look: int, loss: float) -> bool:
        """Whether going on would spend more than `search.cost`; a clear leader always may.

        A leader must leave the other trials their first look, any other trial also the time to
        train a better one to its end.
        """
        tally = count(self.study)
        best = min(
            (
                trial.intermediate_values.get(look, math.inf)
                for trial in tally.done
                if trial.state == TrialState.COMPLETE
            ),
            default=math.inf,
        )
        lead = best - loss
        if math.isinf(best) or lead > CLEAR_LEAD * (self.start - best):
            return False
        others = [t for t in (*tally.done, *tally.open) if t.number != self.trial.number]
        running = [trial for trial in others if trial.state == TrialState.RUNNING]
        to_come = self.search.trials - len(tally.done) - len(running) - 1
        needed = sum(map(share_of, others)) + 1.0
        needed += max(0, to_come) * share_after(0, self.search.rungs)
        if lead <= 0:
            needed += share_after(look, self.search.rungs)
        return needed > self.search.cost * self.search.trials


def looks(total: int, rungs: int) -> dict[int, int]:
    """{optimiser step: number of the look, from 1}, at total / 2^rungs, ..., total / 2."""
    steps = {round(total * share_after(look - 1, rungs)): look for look in range(1, rungs + 1)}
    return {step: look for step, look in steps.items() if 0 < step < total}


def share_after(look: int, rungs: int) -> float:
    """Share of its training that a trial has had at the look after this one; 0 is the start."""
    return 2.0 ** (look - rungs)


def share_of(trial: FrozenTrial) -> float:
    """Share of its training that a trial has had, as far as it is known."""
    return trial.user_attrs.get("share", 0.0)


def _loss(trainer: TransformerTrainer, val: np.ndarray) -> float:
    """Validation loss of the averaged weights, comparable between runs, in nats."""
    network, seen = trainer.averaged.module, trainer.tokens.val_seen
    return validate(network, val, trainer.device, trainer.dtype, seen)["val_loss"]
