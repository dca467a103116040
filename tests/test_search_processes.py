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
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from config.loading import save_config
from config.schema import Config

ROOT = Path(__file__).parents[1]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
PATIENCE = 300  # seconds for a search on a busy machine
DONE = {TrialState.COMPLETE, TrialState.PRUNED}


@pytest.fixture
def config(weights, changed) -> Config:
    """Ten trials of about a second each."""
    settings = {"search.trials": 10, "search.epochs": 40, "search.seeds": 0, "search.high": 0.1}
    config = changed(weights, settings)
    save_config(config, config.run / "c.yml")
    return config


def start(config: Config) -> subprocess.Popen:
    script = [sys.executable, "training_transformer.py", "--config", str(config.run / "c.yml")]
    return subprocess.Popen([*script, "--lr-search-only"], cwd=ROOT, env=ONE_THREAD)


def trials_in(where: str) -> list[FrozenTrial]:
    """Trials of the search itself, without the repeats of the winner."""
    (name,) = (n for n in optuna.get_all_study_names(where) if n.count("-") == 1)
    return optuna.load_study(study_name=name, storage=where).trials


def together(config: Config, workers: int, where: str, in_copies: Callable) -> None:
    """Processes on one study: none of its trials is lost, and all give the same answer."""
    command = [ROOT / "training_transformer.py", "--config", config.run / "c.yml"]
    command += ["--lr-search-only", "--storage", where]
    ends = in_copies(*command, torchrun=False, count=workers)
    assert [end.code for end in ends] == [0] * workers, ends
    answers = {re.findall("found by Optuna: (.*)", end.out)[0] for end in ends}
    assert len(answers) == 1
    trials, wanted = trials_in(where), config.search.trials
    assert {trial.state for trial in trials} <= DONE
    assert wanted <= len(trials) < wanted + workers, "a race may add trials, not lose any"
    rates = [trial.params["learning_rate"] for trial in trials]
    assert len(set(rates)) == len(trials), "no worker repeats what another one does"
    shares = [len(re.findall(r"^trial_", end.out, re.MULTILINE)) for end in ends]
    assert all(shares)


@pytest.mark.usefixtures("quick", "no_sync")
def test_two_workers_share_a_study(config, changed, tmp_path, in_copies):
    config = changed(config, {"search.trials": 6, "search.epochs": 3, "search.seeds": 2})
    save_config(config, config.run / "c.yml")
    together(config, 2, f"sqlite:///{tmp_path}/study.db", in_copies)
    repeats = json.loads((config.run / "search" / "search.json").read_text())["repeats"]
    assert sorted(row["seed"] for row in repeats) == [1, 2], "each once"


@pytest.mark.long
def test_four_workers_share_a_study(config, tmp_path, in_copies):
    together(config, 4, f"sqlite:///{tmp_path}/study.db", in_copies)


@pytest.mark.long
def test_a_search_killed_twice_at_random_loses_no_trial(config, changed):
    database = config.run / "search" / "study.db"
    for _ in range(2):
        process = start(config)
        while not database.exists() or not list(database.parent.glob("trial_*")):
            time.sleep(0.05)
        time.sleep(random.uniform(0.0, 6.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(config).wait(timeout=PATIENCE) == 0
    trials = trials_in(f"sqlite:///{database}")
    done = [trial.params for trial in trials if trial.state in DONE]
    assert len(done) == 10
    assert all(trial.params in done for trial in trials), "what was killed was done again"
    shown = json.loads((database.parent / "search.json").read_text())["trials"]
    assert [trial["params"] for trial in shown] == done
