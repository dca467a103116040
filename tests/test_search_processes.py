"""Searches in processes of their own: several on one storage, and one that is killed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from config.loading import save_config
from config.schema import Config
from utils.search_storage import open_storage
from utils.search_workers import SURPLUS, WORKER

ROOT = Path(__file__).parents[1]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
PATIENCE = 300  # seconds for a search on a busy machine
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@pytest.fixture
def config(weights, changed) -> Config:
    """Ten trials of about a second each."""
    settings = {"search.trials": 10, "search.epochs": 40, "search.seeds": 0, "search.high": 0.1}
    config = changed(weights, settings)
    save_config(config, config.run / "c.yml")
    return config


def start(config: Config, *arguments: str) -> subprocess.Popen:
    script = [sys.executable, "training_transformer.py", "--config", str(config.run / "c.yml")]
    return subprocess.Popen(
        [*script, "--lr-search-only", *arguments],
        cwd=ROOT, env=ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def trials_in(where: str) -> list[FrozenTrial]:
    """Trials of the search itself, without the checks after it."""
    storage = open_storage(where)
    (name,) = (n for n in optuna.get_all_study_names(storage) if n.count("-") == 1)
    return optuna.load_study(study_name=name, storage=storage).trials


def together(config: Config, workers: int, where: str) -> list[FrozenTrial]:
    """The trials of so many processes, after checks that none was lost and none done twice."""
    processes = [start(config, "--storage", where) for _ in range(workers)]
    said = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * workers
    answers = {re.findall("found by Optuna: (.*)", text)[0] for text in said}
    assert len(answers) == 1, "all come to the same answer"
    trials = [trial for trial in trials_in(where) if SURPLUS not in trial.user_attrs]
    wanted = config.search.trials
    assert [trial.state in DONE for trial in trials] == [True] * wanted
    rates = [trial.params["learning_rate"] for trial in trials]
    assert len(set(rates)) == wanted
    started = re.findall(r"^trial_(\d+): learning_rate", "".join(said), re.MULTILINE)
    assert sorted(map(int, started)) == list(range(wanted)), "each trial was trained once"
    return trials


def test_two_workers_share_a_journal_without_losing_or_doubling_a_trial(config, changed, tmp_path):
    config = changed(config, {"search.trials": 6, "search.epochs": 10})
    save_config(config, config.run / "c.yml")
    trials = together(config, 2, str(tmp_path / "study.log"))
    assert len({trial.user_attrs[WORKER] for trial in trials}) == 2


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sqlite:///{}/study.db", "{}/study.log"])
def test_four_workers_share_a_storage_without_losing_or_doubling_a_trial(config, tmp_path, kind):
    trials = together(config, 4, kind.format(tmp_path))
    assert len({trial.user_attrs[WORKER] for trial in trials}) >= 3


@pytest.mark.long
def test_a_search_killed_twice_at_random_ends_with_the_trials_of_one_never_killed(config, changed):
    whole = changed(config, {"run": config.run / "whole"})
    whole = changed(whole, {"tokenizer.weights": config.tokenizer_weights})
    whole.run.mkdir()
    save_config(whole, whole.run / "c.yml")
    assert start(whole).wait(timeout=PATIENCE) == 0
    database = config.run / "search" / "study.db"
    for _ in range(2):
        process = start(config)
        while not database.exists() or not list(database.parent.glob("trial_*")):
            time.sleep(0.05)
        time.sleep(random.uniform(0.0, 6.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(config).wait(timeout=PATIENCE) == 0
    found = [json.loads((c.run / "search" / "search.json").read_text()) for c in (config, whole)]
    kept = ("params", "loss", "looks", "reason")
    killed, never = ([{k: t[k] for k in kept} for t in numbers["trials"]] for numbers in found)
    assert killed == never
    assert len(killed) == 10
