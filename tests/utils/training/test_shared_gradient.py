"""A batch shared among threads gives the gradient of the whole batch, whoever computes it."""

from __future__ import annotations

import pytest
import torch

from config.schema import Config, MaskingConfig
from models import parallel
from utils.tokens.batches import TokenBatch
from utils.training import shared_gradient
from utils.training.shared_gradient import add_gradient, may_share
from utils.training.transformer_step import Objective, TransformerTrainer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def batch(generator) -> TokenBatch:
    """Seven images of 16 tokens; one of them hides none."""
    token_ids = torch.randint(16, (7, 16), generator=generator)
    token_mask = torch.rand(7, 16, generator=generator) < 0.4
    token_mask[3] = False
    return TokenBatch(token_ids, token_ids, token_mask)


def weight_of(loss_on: str):
    class Settings:
        masking = MaskingConfig(loss_on=loss_on)

    trainer = TransformerTrainer.__new__(TransformerTrainer)
    trainer.config = Settings
    return trainer._weight


@pytest.mark.parametrize("loss_on", ["all", "hidden"])
def test_the_parts_gradients_sum_up_to_that_of_the_batch(transformer, batch, monkeypatch, loss_on):
    objective = Objective(transformer, MaskingConfig(loss_on=loss_on))
    whole = objective(*batch)
    (whole / 3).backward()
    wanted = [p.grad for p in transformer.parameters()]
    monkeypatch.setattr(shared_gradient, "PART", 2)
    found = []
    for count in (1, 2, 3):
        for module in (parallel, shared_gradient):
            monkeypatch.setattr(module, "workers", lambda count=count: count)
        transformer.zero_grad()
        loss = add_gradient(objective, batch, weight_of(loss_on), 1 / 3)
        found.append([loss, *(p.grad for p in transformer.parameters())])
    torch.testing.assert_close(found[0], [whole.detach(), *wanted])
    for other in found[1:]:
        assert all(a.equal(b) for a, b in zip(found[0], other, strict=True))


def test_gradients_of_several_batches_add_up(transformer, batch):
    objective = Objective(transformer, MaskingConfig(loss_on="all"))
    add_gradient(objective, batch, weight_of("all"), 1.0)
    once = [p.grad.clone() for p in transformer.parameters()]
    add_gradient(objective, batch, weight_of("all"), 1.0)
    torch.testing.assert_close([p.grad for p in transformer.parameters()], [2 * g for g in once])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transformer.dropout", 0.1),
        ("transformer.dim", 512),
        ("training.compile", True),
        ("training.checkpoint_activations", True),
    ],
)
def test_what_draws_in_turn_or_is_large_is_not_shared(config: Config, changed, key, value):
    assert may_share(config, CPU, 1)
    assert not may_share(changed(config, {key: value}), CPU, 1)
    assert not may_share(config, CUDA, 1)
    assert not may_share(config, CPU, 2)
