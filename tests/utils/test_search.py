"""The search for a learning rate: its trials, its answer, and going on after a stop."""

from __future__ import annotations

import math
import re

import optuna
import pytest

from config.errors import StopRequested
from config.schema import Config
from utils import search
from utils.search import search_learning_rate

BEST = 1e-3  # where the pretended training has its lowest loss


@pytest.fixture
def config(config, changed) -> Config:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = {"search.trials": 4, "search.low": 1e-5, "search.high": 1e-1, "search.epochs": 3}
    return changed(config, settings)


class Training:
    """Pretends to train: the loss is the distance to the best rate, in decades."""

    def __init__(self) -> None:
        self.configs: list[Config] = []
        self.stop_at = math.inf

    def __call__(self, config: Config, *, resume: bool, restart: bool, after_epoch) -> None:
        assert not resume
        assert restart
        self.configs.append(config)
        if len(self.configs) == self.stop_at:
            raise StopRequested
        loss = abs(math.log10(config.training.learning_rate / BEST))
        for epoch in range(1, config.training.epochs + 1):
            after_epoch(epoch, loss + config.training.epochs - epoch)

    @property
    def rates(self) -> list[float]:
        return [config.training.learning_rate for config in self.configs]


@pytest.fixture
def training(monkeypatch) -> Training:
    pretended = Training()
    monkeypatch.setattr(search, "train_transformer", pretended)
    return pretended


def study_of(config: Config) -> optuna.Study:
    path = config.run / "search" / "study.db"
    return optuna.load_study(study_name=None, storage=f"sqlite:///{path}")  # the only one


def test_so_many_short_trainings_as_configured_each_in_its_own_folder(config, training):
    search_learning_rate(config)
    assert [c.training.epochs for c in training.configs] == [3] * 4
    assert [c.run for c in training.configs] == [
        config.run / "search" / f"trial_{i}" for i in range(4)
    ]
    assert {c.tokenizer_weights for c in training.configs} == {config.tokenizer_weights}
    assert all(1e-5 <= rate <= 1e-1 for rate in training.rates)


def test_the_answer_has_the_lowest_loss_of_the_last_epoch_and_is_printed(config, training, capsys):
    best = search_learning_rate(config)
    assert best == min(training.rates, key=lambda rate: abs(math.log10(rate / BEST)))
    assert capsys.readouterr().out == f"Best learning rate found by Optuna: {best}\n"


def test_the_study_minimises_one_parameter_on_a_logarithmic_scale(config, training):
    search_learning_rate(config)
    study = study_of(config)
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    assert list(study.best_params) == ["learning_rate"]
    assert study.trials[0].distributions["learning_rate"].log


def test_a_seed_gives_the_same_rates_and_another_seed_others(config, training, changed):
    runs = [("a", 0), ("b", 0), ("c", 1)]
    for name, seed in runs:
        search_learning_rate(changed(config, {"run": config.run / name, "seed": seed}))
    first, again, other = (training.rates[i : i + 4] for i in (0, 4, 8))
    assert first == again
    assert first != other


def test_a_search_cut_short_goes_on_until_it_has_all_its_trials(config, training):
    training.stop_at = 3
    with pytest.raises(StopRequested):
        search_learning_rate(config)
    training.stop_at = math.inf
    search_learning_rate(config)
    assert len(training.configs) == 5, "two whole ones, one cut short, two more"
    complete = study_of(config).get_trials(states=[optuna.trial.TrialState.COMPLETE])
    assert len(complete) == 4


def test_a_finished_search_only_repeats_its_answer(config, training, capsys):
    best = search_learning_rate(config)
    assert search_learning_rate(config) == best
    assert len(training.configs) == 4
    assert len(re.findall("Best learning rate", capsys.readouterr().out)) == 2


@pytest.mark.usefixtures("quick")
def test_real_trainings_end_in_a_rate_of_the_range(config, weights, changed):
    config = changed(config, {"search.trials": 2, "search.epochs": 1})
    assert 1e-5 <= search_learning_rate(config) <= 1e-1
    assert (config.run / "search" / "trial_1" / "transformer" / "log.jsonl").is_file()
