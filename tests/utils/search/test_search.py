"""The search for a learning rate: its trials, its answer, and going on after a stop."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState

from config.errors import DivergedError, StopRequested, UserError
from config.schema import Config, SearchConfig
from utils.io.files import read_rows
from utils.search import objective, report, search
from utils.search.objective import REPORT_RATE, Budget, TrainingLoss, budget_of
from utils.search.search import search_learning_rate
from utils.training.token_batches import Tokens
from utils.training.transformer import train_transformer

ROOT = Path(__file__).parents[3]
BEST = 1e-3  # where the pretended training has its lowest loss
TOO_HIGH = 3e-2  # from here on it diverges
START, STEPS = 7.0, 32
pytestmark = pytest.mark.usefixtures("no_sync")


class Training:
    """Pretends to train: the loss falls evenly, the further the nearer the rate is to the best."""

    def __init__(self) -> None:
        self.configs: list[Config] = []
        self.tokens: list[Tokens] = []
        self.stop_at = math.inf

    def __call__(self, config: Config, *, resume, restart, tokens, callback) -> None:
        assert not resume
        assert restart
        self.configs.append(config)
        self.tokens.append(tokens)
        if len(self.configs) == self.stop_at:
            raise StopRequested
        for step in range(STEPS + 1):
            if config.training.learning_rate > TOO_HIGH and step == STEPS // 4:
                raise DivergedError("the loss is no longer finite; lower it")
            position = SimpleNamespace(step=step)
            callback(SimpleNamespace(position=position, total_steps=STEPS, config=config))

    @staticmethod
    def loss(trainer, images: int | None = None) -> float:
        """What `validate` would say."""
        decades = abs(math.log10(trainer.config.training.learning_rate / BEST))
        seed = 0.001 * trainer.config.seed
        return START - trainer.position.step / STEPS * (3 - decades) + seed

    @property
    def rates(self) -> list[float]:
        return [config.training.learning_rate for config in self.configs]


@pytest.fixture
def config(config, changed) -> Config:
    settings = {"search.trials": 4, "search.low": 1e-5, "search.high": 1e-1}
    return changed(config, settings | {"search.seeds": 0, "training.learning_rate": 2e-3})


@pytest.fixture
def training(monkeypatch) -> Training:
    pretended = Training()
    tokens = Tokens(
        np.zeros((40, 2, 16), np.uint16), np.zeros((70, 2, 16)), torch.zeros(16, 8), "theirs"
    )
    monkeypatch.setattr(objective, "train_transformer", pretended)
    monkeypatch.setattr(search, "load_tokens", lambda config, device: tokens)
    monkeypatch.setattr(objective, "validation_loss", Training.loss)
    monkeypatch.setattr(report, "save_plots", lambda folder, study: None)
    return pretended


@pytest.fixture(autouse=True)
def no_collection_after_each_trial(monkeypatch) -> None:
    monkeypatch.setattr("gc.collect", lambda: 0)


def study_of(config: Config) -> optuna.Study:
    url = f"sqlite:///{config.run / 'search' / 'study.db'}"
    names = [name for name in optuna.get_all_study_names(url) if name.count("-") == 1]
    return optuna.load_study(study_name=names[-1], storage=url)


def numbers_of(config: Config) -> dict:
    return json.loads((config.run / "search" / "search.json").read_text())


def test_each_trial_trains_for_its_budget_in_a_folder_of_its_own(config, training, changed):
    search_learning_rate(changed(config, {"search.epochs": 3, "training.max_minutes": 1.0}))
    trials = training.configs
    assert [c.run for c in trials] == [config.run / "search" / f"trial_{i}" for i in range(4)]
    assert {c.training.epochs for c in trials} == {3}
    assert {c.training.max_minutes for c in trials} == {None}
    assert {c.training.pictures_every for c in trials} == {0}
    assert {c.tokenizer_weights for c in trials} == {config.tokenizer_weights}
    assert all(1e-5 <= rate <= 1e-1 for rate in training.rates)


def test_the_configs_own_rate_comes_first_then_the_reports_both_to_their_end(config, training):
    search_learning_rate(config)
    assert training.rates[:2] == [2e-3, REPORT_RATE]
    assert [trial.state for trial in study_of(config).trials[:2]] == [TrialState.COMPLETE] * 2


def test_the_answer_has_the_lowest_loss_on_a_logarithmic_scale_and_is_printed(
    config, training, capsys
):
    found = search_learning_rate(config)["training.learning_rate"]
    assert abs(math.log10(found / BEST)) <= math.log10(2) + 1e-9, "2e-3 was tried to its end"
    assert capsys.readouterr().out.endswith(f"Best learning rate found by Optuna: {found}\n")
    assert numbers_of(config)["best"]["params"] == {"learning_rate": found}
    study = study_of(config)
    assert study.best_params == {"learning_rate": found}
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    assert study.trials[0].distributions == {
        "learning_rate": optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True)
    }


def test_a_seed_gives_the_same_trials_and_another_seed_others(config, training, changed):
    rates = []
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        training.configs.clear()
        search_learning_rate(changed(config, {"run": config.run / name, "seed": seed}))
        rates.append(training.rates)
    first, again, other = rates
    assert first == again
    assert first[2:] != other[2:]


def test_a_search_cut_short_tries_the_same_values_when_it_is_continued(config, training, changed):
    search_learning_rate(config)
    whole = training.rates
    for at in (1, 3, 4):
        config = changed(config, {"run": config.run / str(at)})
        training.configs, training.stop_at = [], at
        with pytest.raises(StopRequested):
            search_learning_rate(config)
        training.stop_at = math.inf
        search_learning_rate(config)
        assert training.rates[:at] == whole[:at]
        assert sorted(training.rates[at:]) == sorted(whole[at - 1 :]), "with the one cut short"
        done = study_of(config).get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
        assert len(done) == 4


def test_a_finished_search_only_repeats_its_answer(config, training):
    found = search_learning_rate(config)
    trained = len(training.configs)
    assert search_learning_rate(config) == found
    assert len(training.configs) == trained


def test_more_trials_go_on_where_the_fewer_ended(config, training, changed):
    search_learning_rate(config)
    first = set(training.rates)
    training.configs.clear()
    search_learning_rate(changed(config, {"search.trials": 6}))
    assert len([rate for rate in training.rates if rate not in first]) == 2


def test_other_settings_begin_another_study(config, training, changed):
    config = changed(config, {"search.trials": 2})
    for count, change in enumerate(
        (
            {},
            {"transformer.num_layers": 1},
            {"search.epochs": 2},
            {"search.high": 0.05},
            {"precision": "bf16"},
        )
    ):
        search_learning_rate(changed(config, change))
        assert len(training.configs) == 2 * (1 + count), change


@pytest.mark.parametrize("split", ["train", "val"])
def test_other_images_begin_another_study_even_if_there_are_as_many(config, split):
    rows = np.zeros((40, 2, 16), np.uint16)
    tokens = Tokens(rows, rows, torch.zeros(16, 8), "theirs")
    first, second = (
        TrainingLoss(config, t) for t in (tokens, replace(tokens, **{split: rows + 1}))
    )
    assert first.fingerprint != second.fingerprint


def test_pictures_during_the_training_begin_no_other_study(config, changed):
    rows = np.zeros((40, 2, 16), np.uint16)
    tokens = Tokens(rows, rows, torch.zeros(16, 8), "theirs")
    drawing = changed(config, {"training.pictures_every": 3})
    assert TrainingLoss(drawing, tokens).fingerprint == TrainingLoss(config, tokens).fingerprint


def test_a_rate_that_diverges_is_pruned_with_its_reason(config, training, changed):
    search_learning_rate(changed(config, {"training.learning_rate": 0.05}))
    first = study_of(config).trials[0]
    assert first.state == TrialState.PRUNED
    assert first.user_attrs["reason"] == "NaN: the loss is no longer finite"


def test_a_loss_above_its_start_is_pruned_with_its_reason(config, training, monkeypatch):
    def loss(trainer, images=None):
        return START + (trainer.position.step > 0)

    monkeypatch.setattr(objective, "validation_loss", loss)
    said = r"no trial reached its end, .* \(loss 8.0000 above its start 7.0000\); lower search.high"
    with pytest.raises(UserError, match=said):
        search_learning_rate(config)
    first = study_of(config).trials[0]
    assert first.user_attrs["reason"] == "loss 8.0000 above its start 7.0000"
    assert first.user_attrs["share"] == 1 / 16, "at the first look already"


def test_later_trials_are_pruned_behind_the_median_at_their_first_look(config, training, changed):
    # losses at the first look, of steps 2 of 32: 7 - (3 - |decades from 1e-3|) / 16, of which the
    # median of 2e-3 (0.301 decades) and 1.49e-4 (0.826) is that of 0.563 decades
    search_learning_rate(changed(config, {"search.trials": 3}))
    study = study_of(config)
    third = study.trials[2]
    decades = abs(math.log10(third.params["learning_rate"] / BEST))
    if decades > 0.563:
        assert third.state == TrialState.PRUNED
        loss = 7 - (3 - decades) / 16
        assert third.user_attrs["reason"] == f"loss {loss:.4f} behind the median at 6%"
        assert third.user_attrs["share"] == 1 / 16
    else:
        assert third.state == TrialState.COMPLETE


def test_the_best_is_repeated_with_other_seeds(config, training, changed):
    search_learning_rate(changed(config, {"search.seeds": 2, "seed": 5}))
    best = numbers_of(config)["best"]["params"]["learning_rate"]
    assert [c.seed for c in training.configs[:4]] == [5] * 4
    assert [c.seed for c in training.configs[-2:]] == [6, 7]
    assert training.rates[-2:] == [best, best]
    noise = numbers_of(config)["noise"]
    assert noise["deviation"] == pytest.approx(0.001)  # of x, x + 0.001, x + 0.002
    assert noise["seeds"] == 3


def test_large_seeds_are_recorded_as_they_were_trained(config, training, changed):
    search_learning_rate(changed(config, {"seed": 2**60, "search.seeds": 2}))
    trained = [trial.seed for trial in training.configs[-2:]]
    assert trained == [2**60 + 1, 2**60 + 2]
    assert [row["seed"] for row in numbers_of(config)["repeats"]] == trained


def test_a_repeat_that_is_lost_is_done_again_in_another_folder(config, training, changed):
    repeating = changed(config, {"search.seeds": 1})  # a suspended worker locks its folder
    loss = TrainingLoss(repeating, search.load_tokens(repeating, "cpu"))
    study, repeat = optuna.create_study(), loss.repeat_of({"learning_rate": 1e-3})
    for _ in range(2):
        trial = study.ask()
        repeat(trial)
        study.tell(trial, state=TrialState.FAIL)
    first, again = training.configs
    assert first.seed == again.seed == 1
    assert first.run != again.run


def test_a_trial_that_is_stopped_after_another_worker_took_it_over_says_so(
    config, training, changed, monkeypatch
):
    study = optuna.create_study()
    trial = study.ask()

    def stopped(*_: object, **__: object) -> None:
        study.tell(trial, state=TrialState.FAIL)
        raise StopRequested

    monkeypatch.setattr(objective, "train_transformer", stopped)
    repeating = changed(config, {"search.seeds": 1})
    loss = TrainingLoss(repeating, search.load_tokens(repeating, "cpu"))
    with pytest.raises(StopRequested, match="stopped in repeat_0"):
        loss.repeat_of({"learning_rate": 1e-3})(trial)


def test_more_seeds_are_trained_when_they_are_asked_for(config, training, changed):
    search_learning_rate(changed(config, {"search.seeds": 1}))
    search_learning_rate(changed(config, {"search.seeds": 3}))
    assert [row["seed"] for row in numbers_of(config)["repeats"]] == [1, 2, 3]


def test_a_seed_that_diverges_is_named_with_its_reason(config, training, changed, monkeypatch):
    def loss(trainer, images=None):
        return math.nan if trainer.config.seed == 1 else Training.loss(trainer)

    monkeypatch.setattr(objective, "validation_loss", loss)
    search_learning_rate(changed(config, {"search.seeds": 2}))
    text = (config.run / "search" / "search.md").read_text()
    assert "seeds: NaN: the validation loss is not finite (seed 1)" in text
    assert numbers_of(config)["noise"]["seeds"] == 2


def test_a_wider_search_varies_whole_and_broken_numbers(config, training, changed):
    space = {
        "training.weight_decay": {"low": 0.0, "high": 0.1},
        "training.warmup_steps": {"low": 0, "high": 9},
        "masking.label_smoothing": {"low": 0.0, "high": 0.2},
    }
    found = search_learning_rate(changed(config, {"search.space": space, "search.trials": 6}))
    assert found.keys() == {"training.learning_rate", *space}
    trials = training.configs
    assert len({c.training.weight_decay for c in trials}) > 3
    assert len({c.masking.label_smoothing for c in trials}) > 3
    assert all(c.training.warmup_steps in range(10) for c in trials)


@pytest.mark.parametrize("shows_holes", [False, True])
def test_a_study_knows_how_the_holes_it_shows_were_filled(config, changed, shows_holes):
    rows = np.zeros((40, 2, 16), np.uint16)
    tokens = Tokens(
        rows,
        rows,
        torch.zeros(16, 8),
        "theirs",
        SimpleNamespace(part=None) if shows_holes else None,
    )
    first, second = (
        TrainingLoss(changed(config, {"decoding.hole_fill": fill}), tokens)
        for fill in ("grey", "mean")
    )
    assert (first.fingerprint != second.fingerprint) == shows_holes


def test_values_that_do_not_go_together_are_a_pruned_trial(config, training, changed):
    space = {"transformer.dim": {"low": 15, "high": 17}}  # of 4 heads only 16 is a multiple
    search_learning_rate(changed(config, {"search.space": space, "search.trials": 6}))
    reasons = [trial.user_attrs.get("reason", "") for trial in study_of(config).trials]
    assert any("is not divisible by num_heads 4" in reason for reason in reasons)
    assert {c.transformer.dim for c in training.configs} == {16}


STEPS_OF_A_TRIAL = {"search.low": 1e-3, "search.high": 0.05, "search.seeds": 0}  # 3 of 4 images


@pytest.mark.usefixtures("quick")
def test_a_warm_up_longer_than_a_trial_is_a_pruned_trial_where_it_was_drawn(weights, changed):
    keys = {**STEPS_OF_A_TRIAL, "search.trials": 3}
    space = {"training.warmup_steps": {"low": 0, "high": 1000}}  # the first has the config's 0
    search_learning_rate(changed(weights, {**keys, "search.space": space}))
    first, *others = numbers_of(weights)["trials"]
    assert first["state"] == "complete"
    for row in others:
        steps = row["params"]["training.warmup_steps"]
        said = f"training.warmup_steps is {steps:.0f}, but the whole training has 3 steps"
        assert (row["state"], row["reason"]) == ("pruned", said)


@pytest.mark.usefixtures("quick")
def test_a_warm_up_longer_than_every_trial_names_what_sets_their_length(weights, changed):
    config = changed(weights, {**STEPS_OF_A_TRIAL, "training.warmup_steps": 3})
    said = "training.warmup_steps is 3, .* raise search.epochs or search.steps"
    with pytest.raises(UserError, match=said):
        search_learning_rate(config)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epochs": 3}, Budget(3, 1000)),
        ({"steps": 5}, Budget(1, 500)),  # 5 steps of 100 images
        ({"steps": 25}, Budget(3, 800)),  # 3 passes of 8 steps, one step unused
    ],
)
def test_a_budget_of_1000_images_in_steps_of_100(settings, expected):
    assert budget_of(SearchConfig(**settings), 1000, 100) == expected


def test_trials_of_few_steps_share_the_same_part_of_the_images(config, training, changed):
    search_learning_rate(changed(config, {"search.steps": 2}))  # of 4 images each
    assert len(training.tokens[0].train) == 8
    assert all(tokens is training.tokens[0] for tokens in training.tokens)


@pytest.mark.usefixtures("quick")
def test_the_loss_of_a_trial_is_what_the_training_itself_would_report(weights, changed):
    keys = {"search.trials": 1, "search.epochs": 2, "search.seeds": 0, "search.low": 1e-3}
    config = changed(weights, keys)  # the first trial has the config's own rate, 0.01
    search_learning_rate(changed(config, {"search.high": 0.05}))
    train_transformer(config, resume=False)
    (*_, last) = read_rows(config.run / "transformer" / "log.jsonl")
    assert numbers_of(config)["best"]["loss"] == last["val_loss"]
    assert not list((config.run / "search").rglob("*.safetensors")), "a trial leaves no weights"


@pytest.mark.usefixtures("quick")
def test_a_trial_that_is_stopped_leaves_nothing_and_says_how_to_continue(weights, stop_after):
    stop_after(1)
    with pytest.raises(StopRequested, match="stopped in trial_0; the same command continues$"):
        search_learning_rate(weights)
    assert [path.name for path in (weights.run / "search").iterdir()] == ["study.db"]


@pytest.mark.usefixtures("quick")
def test_a_look_at_images_with_holes_is_at_as_many_as_without(weights, changed, monkeypatch):
    monkeypatch.setattr(objective, "LOOK_IMAGES", 2)  # of 6, and fewer than a forward pass takes
    keys = {"search.trials": 1, "search.low": 1e-3, "search.high": 0.05}
    search_learning_rate(changed(weights, {**keys, "transformer.conditioning": "pixels"}))
    (trial,) = numbers_of(weights)["trials"]
    assert trial["state"] == "complete"


def test_importing_the_training_script_loads_neither_optuna_nor_sqlalchemy_nor_matplotlib():
    code = "import sys, training_transformer; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"optuna", "sqlalchemy", "matplotlib"} & set(done.stdout.split())
