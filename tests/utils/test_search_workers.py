"""Workers on one study: whoever dies, no trial is lost and none is done twice."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.engine import Engine

from config.errors import UserError
from utils import search_workers
from utils.search_storage import Crew, open_storage, shown
from utils.search_workers import SURPLUS, WORKER, count, run_trials


@pytest.fixture(autouse=True)
def quick_database(monkeypatch) -> Iterator[None]:
    def hurry(connection, _):
        if "sqlite" in type(connection).__module__:
            connection.execute("PRAGMA synchronous=OFF")

    monkeypatch.setattr(search_workers, "POLL", 0.02)
    event.listen(Engine, "connect", hurry)
    yield
    event.remove(Engine, "connect", hurry)


@pytest.fixture(params=["sqlite", "journal"])
def where(request, tmp_path) -> str:
    return {"sqlite": f"sqlite:///{tmp_path / 's.db'}", "journal": str(tmp_path / "s.log")}[
        request.param
    ]


def study_in(where: str) -> optuna.Study:
    return optuna.create_study(study_name="s", storage=open_storage(where), load_if_exists=True)


def objective(trial: optuna.Trial, place: int) -> float:
    trial.set_user_attr("place", place)
    return trial.suggest_float("x", 0, 1)


def work(where: str, wanted: int = 4, task=objective) -> list[optuna.trial.FrozenTrial]:
    crew = Crew(where)
    with crew.at_work():
        return run_trials(study_in(where), crew, wanted, task)


def name_of_the_dead(where: str) -> str:
    crew = Crew(where)
    with crew.at_work():
        return crew.name


def test_so_many_trials_as_wanted_in_the_order_of_their_places(where):
    assert [trial.user_attrs["place"] for trial in work(where)] == [0, 1, 2, 3]
    assert len(study_in(where).trials) == 4


def test_the_trial_of_a_dead_worker_is_done_again_with_its_values(where):
    study = study_in(where)
    left = study.ask()
    x = left.suggest_float("x", 0, 1)
    left.set_user_attr(WORKER, name_of_the_dead(where))
    done = work(where)
    assert study_in(where).trials[0].state == TrialState.FAIL
    assert len(done) == 4
    assert done[0].params == {"x": x}
    assert done[0].user_attrs["place"] == 0
    assert done[0].system_attrs["retry_history"] == [0]


def test_a_worker_that_died_before_it_could_name_itself_is_noticed(where):
    study_in(where).ask()
    assert [trial.user_attrs["place"] for trial in work(where)] == [0, 1, 2, 3]


def test_the_trial_of_a_living_worker_is_waited_for(where, monkeypatch, capsys):
    study, other = study_in(where), Crew(where)
    with other.at_work():
        theirs = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        theirs.set_user_attr(WORKER, other.name)
        ending = SimpleNamespace(sleep=lambda _: study.tell(theirs, 0.5))
        monkeypatch.setattr(search_workers, "time", ending)
        done = work(where, wanted=2)
    assert [trial.number for trial in done] == [0, 1]
    assert capsys.readouterr().out == "waiting for 1 trials of other workers\n"


def test_what_an_objective_raises_ends_the_work_and_its_trial_is_queued_again(where):
    def interrupted(trial: optuna.Trial, place: int) -> float:
        value = objective(trial, place)
        if place == 2:
            raise KeyboardInterrupt
        return value

    with pytest.raises(KeyboardInterrupt):
        work(where, task=interrupted)
    cut = study_in(where).trials[2]
    done = work(where)
    assert done[2].params == cut.params
    assert len(done) == 4


def test_a_trial_too_many_is_given_up_before_it_costs_anything(where):
    study, other = study_in(where), Crew(where)
    with other.at_work():  # two others have begun what was missing, seen by nobody yet
        for _ in range(2):
            trial = study.ask()
            trial.set_user_attr(WORKER, other.name)
        crew, asked = Crew(where), []
        with crew.at_work():
            search_workers._take(study, crew, 2, lambda *a: asked.append(a), crew.alone())
    assert not asked
    assert study.trials[2].user_attrs[SURPLUS] is True
    assert len(count(study).open) == 2


def test_of_two_retries_of_one_trial_only_the_first_counts(where):
    study = study_in(where)
    study.ask()
    study.tell(0, state=TrialState.FAIL)
    for _ in range(2):
        search_workers._queue_again(study, study.trials[0])
    done = work(where, wanted=3)
    assert [trial.user_attrs["place"] for trial in done] == [0, 1, 2]
    assert [SURPLUS in trial.user_attrs for trial in study_in(where).trials][:3] == [
        *(False, False, True)
    ]


def test_a_trial_that_kills_every_worker_is_given_up_and_replaced(where):
    def deadly(trial: optuna.Trial, place: int) -> float:
        if place == 1:
            raise RuntimeError
        return objective(trial, place)

    for _ in range(1 + search_workers.MAX_RETRIES):
        with pytest.raises(RuntimeError):
            work(where, task=deadly)
    assert [trial.user_attrs["place"] for trial in work(where, task=deadly)] == [0, 2, 3, 4]


def test_a_worker_thought_dead_drops_its_trial_and_goes_on(where, capsys):
    def slow(trial: optuna.Trial, place: int) -> float:
        if trial.number == 0:  # meanwhile somebody fails it
            study_in(where).tell(0, state=TrialState.FAIL)
        return objective(trial, place)

    done = work(where, task=slow)
    assert [trial.user_attrs["place"] for trial in done] == [0, 1, 2, 3]
    assert "given to another worker" in capsys.readouterr().out


def test_a_server_s_dead_workers_are_known_by_their_heartbeat(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = RDBStorage(
            f"sqlite:///{tmp_path / 'server.db'}", heartbeat_interval=1, grace_period=1
        )
    study = optuna.create_study(study_name="s", storage=storage)
    left = study.ask()
    x = left.suggest_float("x", 0, 1)
    storage.record_heartbeat(left._trial_id)
    server = Crew("postgresql://somewhere/s")
    assert not server.sees_deaths
    time.sleep(2.5)
    with server.at_work():
        done = run_trials(study, server, 3, objective)
    assert done[0].params == {"x": x}
    assert [trial.user_attrs["place"] for trial in done] == [0, 1, 2]


def test_a_journal_whose_last_line_was_cut_off_is_read_on(tmp_path):
    path = tmp_path / "s.log"
    work(str(path), wanted=2)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":5,"wor')
    assert len(work(str(path), wanted=3)) == 3
    assert path.read_bytes().startswith(whole)


def test_workers_leave_no_locks_of_their_own(where, tmp_path):
    work(where)
    (folder,) = tmp_path.glob("*.workers")
    assert {path.name for path in folder.iterdir()} <= {"queue.lock"}


MISTAKES = {  # what is given: what the line must say
    "postgres://u@h/d": "--storage postgres://...: unknown (did you mean 'postgresql'?)",
    "redis://h": "allowed are sqlite, postgresql, mysql URLs and the path of a journal file",
    "sqlite://:::": "no database URL",
    "mysql+pymysql://u:secret@h/d": "mysql+pymysql://u:***@h/d: no driver found; pip install "
    "pymysql",
}


@pytest.mark.parametrize(("url", "said"), MISTAKES.items())
def test_a_storage_that_cannot_be_is_one_line(url, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymysql", None)  # as if it were not installed
    with pytest.raises(UserError) as caught:
        open_storage(url)
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_file_that_is_something_else_is_one_line_and_stays_as_it_is(tmp_path, kind):
    path = tmp_path / "photo.png"
    path.write_bytes(b"\x89PNG no database at all\n" * 40)
    with pytest.raises(UserError, match=r"photo\.png: "):
        open_storage(f"sqlite:///{path}" if kind == "sqlite" else str(path))
    assert path.read_bytes() == b"\x89PNG no database at all\n" * 40


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for where in (f"sqlite:///{tmp_path / 'file' / 's.db'}", str(tmp_path / "file" / "s.log")):
        with pytest.raises(UserError, match="cannot be made"):
            open_storage(where)


def test_a_password_is_never_shown():
    assert shown("postgresql://u:secret@h/d") == "postgresql://u:***@h/d"
