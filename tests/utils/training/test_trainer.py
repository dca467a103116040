"""The position in a run, the order of its batches, and what a signal does."""

from __future__ import annotations

import copy
import math
import os
import re
import signal

import pytest
import torch
from fid.process import STOPS

from config.errors import DivergedError, UserError
from config.schema import Config, TrainingConfig
from utils import distributed
from utils.device import Compute
from utils.rng import generator_for, shuffled_batches
from utils.training import state as place
from utils.training.run import memory_for, stop_signals
from utils.training.state import Position, TimeLimit, settings_that_count
from utils.training.trainer import Trainer


def draw(*key: int) -> torch.Tensor:
    return torch.rand(4, generator=generator_for(*key))


def test_a_key_gives_the_same_draws_each_time():
    assert torch.equal(draw(0, 1, 2), draw(0, 1, 2))


def test_keys_of_any_length_give_draws_of_their_own():
    keys = [(s, e, b) for s in range(3) for e in range(3) for b in range(3)]
    keys += [(s, e) for s in range(3) for e in range(3)] + [(s,) for s in range(3)]
    seeds = {generator_for(*key).initial_seed() for key in keys}
    assert len(seeds) == len(keys)


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_the_smallest_and_the_largest_seed_are_taken(seed):
    assert draw(seed, 1).shape == (4,)


def test_an_epoch_shows_every_image_once_and_its_last_batch_is_shorter():
    batches = list(shuffled_batches(10, 4, generator_for(0, 0)))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert torch.cat(batches).sort().values.tolist() == list(range(10))


def test_epochs_are_shuffled_differently():
    first, second = (torch.cat([*shuffled_batches(50, 8, generator_for(0, e))]) for e in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("skip", [0, 1, 2, 3])
def test_skipped_batches_leave_the_others_as_they_were(skip):
    whole = list(shuffled_batches(10, 4, generator_for(0, 0)))
    rest = list(shuffled_batches(10, 4, generator_for(0, 0), skip=skip))
    assert [batch.tolist() for batch in rest] == [batch.tolist() for batch in whole[skip:]]


def test_means_are_sums_over_the_batches_of_the_present_epoch():
    trainer = Small()
    for a, b in ((1.0, 10.0), (2.0, 30.0), (6.0, 20.0)):
        trainer.position.add({"a": torch.tensor(a), "b": torch.tensor(b)})
    assert trainer.means() == pytest.approx({"a": 3.0, "b": 20.0})
    assert trainer.position.batch == 3


def test_a_loss_that_joins_within_an_epoch_is_averaged_over_its_own_batches():
    trainer, other = Small(), Small(batches=20)
    for losses in ({"a": 1.0}, {"a": 2.0}, {"a": 6.0, "b": 10.0}, {"a": 3.0, "b": 30.0}):
        trainer.position.add({name: torch.tensor(value) for name, value in losses.items()})
    assert trainer.means() == {"a": 3.0, "b": 20.0}
    other.load_state_dict(trainer.state_dict())  # at batch 8 of 20, b since batch 4
    assert other.means() == {"a": 3.0, "b": 20.0}
    trainer.position.next_epoch()
    trainer.position.add({"b": torch.tensor(4.0)})
    assert trainer.means() == {"b": 4.0}


def test_a_new_epoch_starts_from_nothing_but_keeps_its_steps():
    position = Position(step=7)
    position.add({"a": torch.tensor(1.0)})
    position.next_epoch()
    assert position == Position(epoch=1, batch=0, step=7, sums={})


def test_a_limit_counts_the_seconds_of_all_sessions(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(place.time, "monotonic", lambda: now[0])
    limit = TimeLimit(minutes=2.0, spent=30.0)
    assert (limit.spent, limit.share) == (30.0, 0.25)
    now[0] += 60
    assert (limit.spent, limit.share) == (90.0, 0.75)
    now[0] += 60
    assert (limit.spent, limit.share) == (150.0, 1.0)


def test_without_a_limit_no_time_is_counted():
    limit = TimeLimit(None, spent=30.0)
    assert (limit.spent, limit.share) == (0.0, 0.0)


def test_sums_hold_no_graph():
    position = Position()
    position.add({"a": torch.ones((), requires_grad=True) * 2})
    assert not position.sums["a"].requires_grad


def too_much_for_the_cpu() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def too_much_for_a_gpu() -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def too_much_for_python() -> None:
    raise MemoryError


@pytest.mark.parametrize("need", [too_much_for_the_cpu, too_much_for_a_gpu, too_much_for_python])
def test_too_little_memory_is_one_line_with_advice(need):
    with (
        pytest.raises(UserError, match="^cpu: out of memory; what needs less: smaller batches$"),
        memory_for(torch.device("cpu"), ["smaller batches"]),
    ):
        need()


def test_other_errors_are_not_taken_for_too_little_memory():
    with (
        pytest.raises(RuntimeError, match="shape"),
        memory_for(torch.device("cpu"), ["smaller batches"]),
    ):
        torch.zeros(2).view(3)


class Small(Trainer):
    """A trainer of two weights on 10 images, one a batch unless given otherwise."""

    section = "training"

    def __init__(self, epochs: int = 3, batches: int = 10, accumulate: int = 1) -> None:
        settings = TrainingConfig(epochs=epochs, batch_size=1)
        compute = Compute(torch.device("cpu"), torch.float32)
        super().__init__(Config(), settings, compute, images=batches, accumulate=accumulate)
        self.network = torch.nn.Linear(1, 1)
        self.optimizer = torch.optim.AdamW(self.network.parameters())
        self.parts = {"network": self.network, "optimizer": self.optimizer}
        self.settings_of_run = {"seed": 0}

    def batches(self): ...

    def step(self, batch): ...

    def validate(self): ...

    def draw_curves(self, folder, rows): ...

    def memory_advice(self): ...


def test_a_trainer_comes_back_where_its_state_was_taken(assert_same):
    first, second = Small(), Small()
    first.network(torch.ones(1, 1)).sum().backward()
    first.optimizer.step()
    first.position.add({"loss": torch.tensor(2.0)})
    first.position.step = 1
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert_same(second.state_dict(), first.state_dict())


@pytest.mark.parametrize(
    ("batches", "accumulate", "step", "batch"),
    [
        (10, 2, 13, 6),  # the same again
        (20, 2, 26, 12),
        (5, 2, 8, 2),  # 13 of 15 steps are 7.8 of 9; batch 3 of 5 is in the second group
        (10, 4, 8, 4),
        (3, 4, 3, 0),
    ],
)
def test_with_other_batches_a_run_goes_on_at_the_same_share(batches, accumulate, step, batch):
    before = Small(accumulate=2)
    before.position.epoch, before.position.step, before.position.batch = 2, 13, 6
    before.position.sums = {"loss": torch.tensor(12.0)}
    after = Small(batches=batches, accumulate=accumulate)
    after.load_state_dict(before.state_dict())
    assert (after.position.step, after.position.batch) == (step, batch)
    assert after.means()["loss"] == (2.0 if batch else 0.0)


def test_a_state_is_taken_with_the_kernels_of_this_machine():
    state = Small().state_dict()
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = True
    trainer = Small()
    trainer.load_state_dict(state)
    assert {group["fused"] for group in trainer.optimizer.param_groups} == {None}


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (torch.nn.Linear(2, 1), r"network does not fit \(size mismatch for weight: .*\)"),
        (torch.nn.Linear(1, 1, bias=False), r"network does not fit \(Unexpected key.*bias.*\)"),
    ],
)
def test_a_state_of_other_shapes_is_refused_in_one_line(own, said):
    trainer = Small()
    trainer.parts = {"network": own, "optimizer": trainer.optimizer}
    with pytest.raises(UserError) as caught:
        trainer.load_state_dict(Small().state_dict())
    advice = "undo the change of the config, or start again with --restart"
    assert re.fullmatch(f"the state's {said}; {advice}", str(caught.value))


@pytest.mark.parametrize("need", [too_much_for_the_cpu, too_much_for_a_gpu])
def test_memory_that_a_state_lacks_is_not_taken_for_a_change_of_shapes(monkeypatch, need):
    trainer = Small()
    monkeypatch.setattr(trainer.network, "load_state_dict", lambda _: need())
    with pytest.raises(RuntimeError, match="memory"):
        trainer.load_state_dict(Small().state_dict())


def test_progress_is_the_larger_share_of_steps_and_time():
    trainer = Small()
    trainer.position.step = 9  # of 3 epochs of 10
    assert trainer.progress == 0.3
    trainer.time_share = 0.5
    assert trainer.progress == 0.5
    trainer.position.step = 40
    assert trainer.progress == 1.0


def test_processes_resume_with_the_time_of_the_slowest_clock(monkeypatch):
    monkeypatch.setattr(distributed, "furthest", lambda values, _device: [max([0.25, *values])])
    trainer = Small()
    trainer.load_state_dict(Small().state_dict())
    assert trainer.time_share == 0.25


@pytest.mark.parametrize(
    ("epoch", "time_share", "finished"), [(2, 0.9, False), (3, 0.0, True), (1, 1.0, True)]
)
def test_a_run_is_finished_by_its_epochs_or_its_time(epoch, time_share, finished):
    trainer = Small()
    trainer.position.epoch, trainer.time_share = epoch, time_share
    assert trainer.finished == finished


def test_what_happens_every_so_often_happens_at_the_end_too():
    trainer, due = Small(epochs=5), []
    for trainer.position.epoch in range(1, 6):
        due.append(trainer.is_due(2))
    assert due == [False, True, False, True, True]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named_with_its_place_and_the_setting_to_lower(loss):
    trainer = Small()
    trainer.require_finite([1.0, 2.0])
    trainer.position = Position(epoch=2, batch=7, step=23)
    said = (
        "epoch 3, batch 7: the loss is no longer finite at step 23; .* lower training.learning_rate"
    )
    with pytest.raises(DivergedError, match=said):
        trainer.require_finite([1.0, loss])


def test_settings_that_only_say_when_to_look_or_stop_do_not_count():
    settings = {"seed": 1, "training.epochs": 2, "a.max_minutes": 3.0, "b.validate_every": 1}
    assert settings_that_count(settings) == {"seed": 1, "training.epochs": 2}


@pytest.mark.usefixtures("in_terminal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_is_noted_and_a_second_one_would_end_the_process(number):
    with stop_signals() as received:
        assert not received
        os.kill(os.getpid(), number)
        assert received == [number]
        assert signal.getsignal(number) is signal.SIG_DFL
        received.clear()  # or it would be raised again


@pytest.mark.usefixtures("in_terminal")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_that_batch_systems_repeat_end_nothing_at_once(number):
    with stop_signals() as received:
        for _ in range(3):
            signal.raise_signal(number)
        assert received == [number] * 3
        received.clear()


def test_a_signal_that_is_ignored_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts a process
    try:
        with stop_signals() as received:
            signal.raise_signal(signal.SIGHUP)
            assert not received
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signal_handlers_are_put_back_even_after_an_error():
    before = [signal.getsignal(n) for n in STOPS]
    with pytest.raises(ValueError, match="anything"), stop_signals():
        raise ValueError("anything")
    assert [signal.getsignal(n) for n in STOPS] == before


@pytest.mark.usefixtures("in_terminal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_nobody_looked_for_is_raised_again_at_the_end(number):
    seen = []
    before = signal.signal(number, lambda n, _: seen.append(n))
    try:
        with stop_signals():
            signal.raise_signal(number)
            assert not seen
        assert seen == [number]
    finally:
        signal.signal(number, before)
