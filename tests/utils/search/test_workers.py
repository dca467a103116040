"""Workers on one study: trials of those that die are done again, and all give the same answer."""

from __future__ import annotations

import gc
import sqlite3
import warnings
import weakref
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import NopPruner
from optuna.study import MaxTrialsCallback
from optuna.trial import FrozenTrial, TrialState

from config.errors import StopRequested, UserError
from utils.search import search
from utils.search.search import open_study, run_trials
from utils.search.seeds import SeedsTaken, take_seed
from utils.search.storage import MAX_RETRIES, open_storage, storage_url

COLLECT = gc.collect
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(autouse=True)
def quick(monkeypatch, no_sync) -> None:
    """No waiting for the disk, and no garbage collection after each trial."""
    monkeypatch.setattr(search, "POLL", 0.05)
    monkeypatch.setattr(gc, "collect", lambda: 0)


@pytest.fixture
def study(tmp_path) -> optuna.Study:
    return study_in(tmp_path)


def study_in(folder: Path, first: tuple = ()) -> optuna.Study:
    """Another worker's view of the study."""
    return open_study(open_storage(storage_url(None, folder)), "s", list(first), NopPruner())


def objective(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1)


def died(study: optuna.Study) -> FrozenTrial:
    """A trial whose worker was killed while it trained, long ago."""
    trial = study.ask()
    objective(trial)
    study._storage.record_heartbeat(trial._trial_id)
    with closing(sqlite3.connect(study._storage._backend.engine.url.database)) as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = '2000-01-01 00:00:00'")
        database.commit()
    return study.trials[trial.number]


def test_a_study_gets_as_many_trials_as_wanted_and_no_more_when_asked_again(study):
    assert [trial.number for trial in run_trials(study, 4, objective)] == [0, 1, 2, 3]
    assert len(run_trials(study, 4, objective)) == 4
    assert len(run_trials(study, 6, objective)) == 6


def test_the_values_queued_first_are_tried_first_and_only_once(tmp_path):
    first = ({"x": 0.25}, {"x": 0.5})
    study = study_in(tmp_path, first)
    again = study_in(tmp_path, first)
    assert [t.params["x"] for t in run_trials(again, 3, objective)][:2] == [0.25, 0.5]
    assert len(study.trials) == 3


def test_the_trial_of_a_dead_worker_is_done_again_with_its_values(study):
    lost = died(study)
    done = run_trials(study, 3, objective)
    assert study.trials[lost.number].state == TrialState.FAIL
    assert lost.params in [trial.params for trial in done]
    assert len(done) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, StopRequested, UserError("disk full")])
def test_an_interrupted_trial_is_the_next_one_with_its_values(study, error):
    def interrupted(trial: optuna.Trial) -> float:
        value = objective(trial)
        if trial.number == 1:
            raise error
        return value

    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        run_trials(study, 4, interrupted)
    done = run_trials(study, 4, objective)
    assert done[1].params == study.trials[1].params
    assert [trial.number for trial in done] == [0, 2, 3, 4]


def test_a_trial_that_stops_every_worker_is_given_up(study):
    def deadly(trial: optuna.Trial) -> float:
        if trial.suggest_float("x", 0, 1) == deadly.value:
            raise UserError("out of memory")
        return 1.0

    study.enqueue_trial({"x": 0.5})
    deadly.value = 0.5
    for _ in range(1 + MAX_RETRIES):
        with pytest.raises(UserError):
            run_trials(study, 2, deadly)
    assert 0.5 not in [trial.params["x"] for trial in run_trials(study, 2, deadly)]


def test_the_trial_of_a_living_worker_is_waited_for(study, monkeypatch, capsys):
    theirs = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    monkeypatch.setattr(search.time, "sleep", lambda _: study.tell(theirs, 0.5))
    assert [trial.number for trial in run_trials(study, 2, objective)] == [0, 1]
    assert capsys.readouterr().out == "waiting for 1 trials of other workers\n"


def test_a_worker_that_seemed_dead_drops_its_trial_and_goes_on(study, tmp_path, capsys):
    def slow(trial: optuna.Trial) -> float:
        if trial.number == 0:  # meanwhile another worker fails it
            study_in(tmp_path).tell(0, state=TrialState.FAIL)
        return objective(trial)

    assert [trial.number for trial in run_trials(study, 3, slow)] == [1, 2, 3]
    assert "which seemed dead" in capsys.readouterr().out


def test_a_worker_that_seemed_dead_may_notice_it_while_it_reports(study, tmp_path, capsys):
    def slow(trial: optuna.Trial) -> float:
        if trial.number == 0:
            study_in(tmp_path).tell(0, state=TrialState.FAIL)
        trial.report(1.0, step=1)
        return objective(trial)

    assert [trial.number for trial in run_trials(study, 2, slow)] == [1, 2]
    assert len(study.trials) == 3, "it is not queued a second time"


def test_a_stop_of_a_worker_that_seemed_dead_is_not_lost(study, tmp_path):
    def stopped(trial: optuna.Trial) -> float:
        if trial.number:
            return objective(trial)
        study_in(tmp_path).tell(0, state=TrialState.FAIL)
        raise StopRequested

    with pytest.raises(StopRequested):
        run_trials(study, 3, stopped)
    assert len(study.trials) == 1, "nor is its trial queued a second time"


def test_a_study_of_another_program_is_one_line(tmp_path):
    backend = open_storage(storage_url(None, tmp_path))
    optuna.create_study(study_name="s", storage=backend, direction="maximize")
    with pytest.raises(UserError, match="its study s was not made by this search"):
        study_in(tmp_path)


def test_optunas_experimental_parts_raise_no_other_warnings(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ExperimentalWarning)
        run_trials(study_in(tmp_path), 1, objective)


def test_workers_take_each_seed_once_and_that_of_a_failed_trial_again(study, tmp_path):
    other, seeds = study_in(tmp_path), range(5, 7)
    first, second, third = study.ask(), other.ask(), study.ask()
    assert take_seed(second, seeds) == 6, "the first has not chosen yet"
    assert take_seed(first, seeds) == 5
    with pytest.raises(SeedsTaken):
        take_seed(third, seeds)
    study.tell(third, state=TrialState.FAIL)
    other.tell(second, 1.0)
    study.tell(first, state=TrialState.FAIL)
    assert take_seed(other.ask(), seeds) == 5


def test_a_repeat_too_many_does_not_stand_for_the_seed_of_a_lost_one(study, tmp_path):
    def repeat(trial: optuna.Trial) -> float:
        return take_seed(trial, range(5, 6))

    lost = study.ask()
    assert repeat(lost) == 5
    limit = MaxTrialsCallback(1, states=(*search.DONE, TrialState.RUNNING))
    search._optimize(study_in(tmp_path), repeat, limit)  # as if it had not seen the other begin
    study.tell(lost, state=TrialState.FAIL)
    assert [trial.value for trial in run_trials(study, 1, repeat)] == [5]


def test_a_pruned_trial_leaves_nothing_in_memory(study, monkeypatch):
    monkeypatch.setattr(gc, "collect", COLLECT)

    class Networks:
        pass

    kept: list[weakref.ref] = []

    def pruned(_trial: optuna.Trial) -> float:
        assert not any(networks() for networks in kept)
        networks = Networks()
        kept.append(weakref.ref(networks))
        raise optuna.TrialPruned

    gc.disable()  # which otherwise might happen to run
    try:
        run_trials(study, 3, pruned)
    finally:
        gc.enable()
    assert len(kept) == 3
