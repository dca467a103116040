"""Learning rates, parameter groups, averaged weights and shared gradients, from closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from config.schema import Config, MaskingConfig, TrainingConfig, TransformerConfig
from models import parallel
from models.cpu_kernels import draw_margins
from models.transformer import BidirectionalTransformer
from utils.training import optim
from utils.training.optim import (
    EMA,
    equal_parts,
    learning_rate,
    may_share,
    parameter_groups,
    set_learning_rate,
)
from utils.training.token_batches import TokenBatch
from utils.training.transformer_step import Objective, TransformerTrainer


def rate_by(lr_schedule: str, warmup: int = 4, total: int = 12) -> Callable[..., float]:
    """The rate of a step, with a peak of 2."""
    settings = {"learning_rate": 2.0, "warmup_steps": warmup, "lr_schedule": lr_schedule}
    return partial(learning_rate, TrainingConfig.model_construct(**settings), total=total)


CONSTANT, COSINE = rate_by("constant"), rate_by("cosine")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("rate", [CONSTANT, COSINE])
def test_warm_up_rises_in_equal_parts_and_its_last_step_has_the_peak(rate):
    assert [rate(step) for step in range(4)] == pytest.approx([0.5, 1.0, 1.5, 2.0])


def test_constant_stays_at_the_peak():
    assert {CONSTANT(step) for step in (3, 4, 11, 100)} == {2.0}


def test_cosine_falls_from_the_peak_through_the_middle_to_a_hundredth():
    # 8 steps after the warm-up: (1 + cos(pi k / 8)) / 2 between 0.02 and 2
    assert COSINE(4) == pytest.approx(2.0)
    assert COSINE(6) == pytest.approx(0.02 + 1.98 * (1 + math.sqrt(0.5)) / 2)
    assert COSINE(8) == pytest.approx(1.01)
    assert COSINE(12) == pytest.approx(0.02)


def test_cosine_rests_at_a_hundredth_after_its_last_step():
    assert COSINE(50) == pytest.approx(0.02)


def test_without_warm_up_the_first_step_has_the_peak():
    assert rate_by("constant", warmup=0)(0) == rate_by("cosine", warmup=0)(0) == 2.0


def test_a_warm_up_longer_than_the_run_never_divides_by_zero():
    rate = rate_by("cosine", total=4)
    assert rate(3) == 2.0
    assert rate(4) == pytest.approx(2.0)


def test_a_time_limit_moves_the_schedule_on_but_never_back():
    # step 6 of 12 after a warm-up of 4 is a quarter of the cosine; half of the time is no more
    assert COSINE(6, time_share=0.5) == COSINE(6)
    assert COSINE(6, time_share=8 / 12) == pytest.approx(COSINE(8))
    assert COSINE(5, time_share=1.0) == pytest.approx(0.02)


def test_the_warm_up_is_not_cut_short_by_a_time_limit():
    assert COSINE(1, time_share=1.0) == COSINE(1) == 1.0


def test_a_rate_goes_to_every_group():
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": [weight]} for weight in weights], lr=1.0)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_only_matrices_of_the_transformer_decay(transformer):
    names = {id(parameter): name for name, parameter in transformer.named_parameters()}
    decayed, kept = (
        {names[id(parameter)] for parameter in group["params"]}
        for group in parameter_groups(transformer, 0.1)
    )
    matrices = ("Attention.qkv", "Attention.proj", "MLP.0", "MLP.2")
    expected = {f"blocks.{block}.{name}.weight" for block in (0, 1) for name in matrices}
    assert decayed == expected | {"Token_Prediction.0.weight"}
    assert {"tok_emb.weight", "pos_emb", "bias", "LN.weight", "blocks.0.MLP.0.bias"} <= kept


def test_every_weight_that_trains_is_in_one_group_and_no_frozen_one(tokenizer):
    tokenizer.requires_grad_(True).codebook.requires_grad_(False)
    groups = parameter_groups(tokenizer, 0.1)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    wanted = {id(p) for p in tokenizer.parameters()} - {id(tokenizer.codebook.embedding.weight)}
    assert len(found) == len(set(found))
    assert set(found) == wanted
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def scalar(value: float) -> nn.Module:
    network = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(network.weight, value)
    return network


def test_after_a_half_life_of_images_half_of_the_average_is_new():
    network = scalar(0.0)
    average = EMA(network, half_life=40, batch_size=10)
    for _ in range(60):  # long enough for the early, faster forgetting to be over
        average.update_parameters(network)
    nn.init.ones_(network.weight)
    for _ in range(4):  # steps of 10 images
        average.update_parameters(network)
    assert average.module.weight.item() == pytest.approx(0.5)


@pytest.mark.parametrize("half_life", [5.0, 25.0, 1e6])
def test_the_average_starts_as_a_copy_and_then_follows_its_recurrence(half_life):
    # after n updates the decay is (1 + n) / (10 + n), until it would exceed the half-life's
    network = scalar(3.0)
    average = EMA(network, half_life, batch_size=10)
    average.update_parameters(network)
    expected = 3.0
    for count, value in enumerate((5.0, -1.0, 2.0, 8.0), start=1):
        nn.init.constant_(network.weight, value)
        average.update_parameters(network)
        decay = min(0.5 ** (10 / half_life), (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(expected)


def test_a_half_life_of_0_keeps_exactly_the_last_weights():
    network = nn.Linear(50, 50)
    average = EMA(network, half_life=0.0, batch_size=10)
    for _ in range(3):
        nn.init.normal_(network.weight, std=1e3)
        average.update_parameters(network)
        assert torch.equal(average.module.weight, network.weight)


def test_a_half_life_of_0_costs_no_memory_and_keeps_another_mode():
    network = nn.BatchNorm1d(3)
    average = EMA(network, half_life=0.0, batch_size=10)
    tensors = ([*m.parameters(), *m.buffers()] for m in (network, average.module))
    for own, other in zip(*tensors, strict=True):
        assert own.data_ptr() == other.data_ptr()
    average.module.eval()
    assert network.training


def test_the_count_of_updates_stays_on_the_cpu_and_buffers_are_copied():
    network = nn.BatchNorm1d(3)
    average = EMA(network, 10.0, 1)
    network.running_mean.fill_(2.0)
    average.update_parameters(network)
    assert average.n_averaged.device.type == "cpu"
    assert int(average.n_averaged) == 1
    assert torch.equal(average.module.running_mean, network.running_mean)


def test_an_average_goes_on_where_its_state_was_taken():
    networks = [scalar(0.0), scalar(0.0)]
    first, second = (EMA(network, 40, batch_size=10) for network in networks)
    for value in (1.0, 2.0, 4.0):
        nn.init.constant_(networks[0].weight, value)
        first.update_parameters(networks[0])
    second.load_state_dict(first.state_dict())
    for average in (first, second):
        average.update_parameters(networks[0])
    assert torch.equal(first.module.weight, second.module.weight)


def test_the_average_is_a_network_of_its_own(transformer):
    average = EMA(transformer, 10.0, 1)
    own = {p.data_ptr() for p in transformer.parameters()}
    assert not own & {p.data_ptr() for p in average.parameters()}


def test_an_average_without_a_decay_keeps_the_weights_of_its_network_whatever_state_it_is_given():
    network, other = nn.Linear(2, 1), EMA(nn.Linear(2, 1), 1.0, 1)
    shared, before = EMA(network, 0.0, 1), network.weight.clone()
    shared.load_state_dict(other.state_dict())
    assert torch.equal(network.weight, before)
    assert shared.module.weight.data_ptr() == network.weight.data_ptr()
    kept = EMA(network, 1.0, 1)
    kept.load_state_dict(other.state_dict())
    assert torch.equal(kept.module.weight, other.module.weight)


# Gradients that threads share


@pytest.fixture
def batch(generator) -> TokenBatch:
    """Seven images of 16 tokens; one of them hides none."""
    token_ids = torch.randint(16, (7, 16), generator=generator)
    token_mask = torch.rand(7, 16, generator=generator) < 0.4
    token_mask[3] = False
    return TokenBatch(token_ids, token_ids, token_mask)


def add_shared(
    objective: Objective, batch: TokenBatch, in_group: int, key: tuple[int, ...] = (0,)
) -> torch.Tensor:
    """The trainer's shared gradient of a batch, without a trainer's networks."""

    class Settings:
        masking, transformer = objective.masking, objective.transformer.config

    trainer = TransformerTrainer.__new__(TransformerTrainer)
    trainer.config, trainer.objective = Settings, objective
    trainer.device, trainer.dtype = CPU, torch.float32
    return trainer._add_shared(batch, in_group, key)


def shared_by_threads(
    objective: Objective, batch: TokenBatch, monkeypatch
) -> list[list[torch.Tensor]]:
    """Loss and gradients of parts of two images, computed by 1, 2 and 3 threads."""
    monkeypatch.setattr(optim, "PART", 2)
    found = []
    for count in (1, 2, 3):
        for module in (parallel, optim):
            monkeypatch.setattr(module, "workers", lambda count=count: count)
        objective.zero_grad()
        loss = add_shared(objective, batch, in_group=3)
        found.append([loss, *(p.grad for p in objective.parameters())])
    return found


@pytest.mark.parametrize("loss_on", ["all", "hidden"])
def test_the_parts_gradients_sum_up_to_that_of_the_batch(transformer, batch, monkeypatch, loss_on):
    objective = Objective(transformer, MaskingConfig(loss_on=loss_on))
    whole = objective(*batch)
    (whole / 3).backward()
    wanted = [p.grad for p in transformer.parameters()]
    first, *others = shared_by_threads(objective, batch, monkeypatch)
    torch.testing.assert_close(first, [whole.detach(), *wanted])
    for other in others:
        assert all(a.equal(b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("attention", ["plain", "fused"])
def test_dropout_of_shared_parts_does_not_depend_on_threads(batch, monkeypatch, attention):
    settings = {"num_tokens": 16, "codebook_size": 16, "dim": 16, "num_heads": 2, "mlp_dim": 32}
    transformer = BidirectionalTransformer(
        TransformerConfig(**settings, num_layers=2, dropout=0.5, attention=attention)
    )
    objective = Objective(transformer, MaskingConfig()).train()
    first, *others = shared_by_threads(objective, batch, monkeypatch)
    for other in others:
        assert all(a.equal(b) for a, b in zip(first, other, strict=True))
    without_dropout = shared_by_threads(objective.eval(), batch, monkeypatch)[0]
    assert not first[0].equal(without_dropout[0])


def test_parts_and_batches_drop_differently(transformer, batch):
    drawn = []

    class Drawing(Objective):
        def forward(self, *_):
            drawn.append(draw_margins(torch.Size([64]), 0.5))
            return self.transformer.bias.square().sum()

    objective = Drawing(transformer, MaskingConfig())
    for place in (0, 1):
        add_shared(objective, batch, in_group=1, key=(place,))
    assert len(drawn) == 8
    assert not any(a.equal(b) for a, b in itertools.combinations(drawn, 2))


def test_gradients_of_several_batches_add_up(transformer, batch):
    objective = Objective(transformer, MaskingConfig(loss_on="all"))
    add_shared(objective, batch, in_group=1)
    once = [p.grad.clone() for p in transformer.parameters()]
    add_shared(objective, batch, in_group=1)
    torch.testing.assert_close([p.grad for p in transformer.parameters()], [2 * g for g in once])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.compile", True),
        ("training.checkpoint_activations", True),
    ],
)
def test_compiled_or_recomputed_networks_do_not_share(config: Config, changed, key, value):
    assert may_share(config, CPU, 1)
    assert not may_share(changed(config, {key: value}), CPU, 1)
    assert not may_share(config, CUDA, 1)
    assert not may_share(config, CPU, 2)


@pytest.mark.parametrize(("threads", "shared"), [(1, True), (2, True), (3, False)])
def test_a_large_network_shares_while_every_thread_gets_a_part(
    config: Config, changed, monkeypatch, threads, shared
):
    monkeypatch.setattr(optim, "workers", lambda: threads)
    assert may_share(changed(config, {"transformer.dim": 512}), CPU, 1) == shared
    assert may_share(config, CPU, 1)


@pytest.mark.parametrize(
    ("images", "large", "sizes"),
    [
        (1, False, [1]),
        (3, False, [1, 1, 1]),
        (10, False, [2, 3, 2, 3]),
        (32, False, [8] * 4),
        (33, False, [4] * 7 + [5]),
        (1, True, [1]),
        (10, True, [5, 5]),
        (17, True, [4, 4, 4, 5]),
    ],
)
def test_parts_of_a_batch_are_of_almost_equal_size_and_a_multiple_of_four_or_two(
    images, large, sizes
):
    parts = equal_parts(images, large=large)
    assert [part.stop - part.start for part in parts] == sizes
    assert [i for part in parts for i in range(images)[part]] == list(range(images))
