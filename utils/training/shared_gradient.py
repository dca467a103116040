"""The gradient of a batch, shared among the threads of a CPU (models/parallel.py).

The batch is cut into parts of a fixed size, whose gradients are summed in order, so a run repeats
bit by bit with any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from config.schema import Config
from models.parallel import each_part, workers
from utils.tokens.batches import TokenBatch

PART = 8  # images; enough rows for products at full speed
LARGE = 512  # width from which on threads within an operation lose little, and gradients are large
Weight = Callable[[TokenBatch, TokenBatch], float | Tensor]  # of some rows in the mean of all


def may_share(config: Config, device: torch.device, world: int) -> bool:
    """Whether threads can share a batch: small networks without dropout, which draws in turn."""
    training, network = config.training, config.transformer
    is_plain = not training.compile and not training.checkpoint_activations
    is_small = network.dim < LARGE and network.dropout == 0
    return device.type == "cpu" and world == 1 and is_plain and is_small


def add_gradient(objective: nn.Module, batch: TokenBatch, weight: Weight, scale: float) -> Tensor:
    """Add ``scale`` times the gradient of the batch's mean loss to `.grad`; returns that loss."""
    parameters = [p for p in objective.parameters() if p.requires_grad]

    def gradient(part: TokenBatch) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        loss = objective(*part) * weight(part, batch)
        return loss.detach(), torch.autograd.grad(loss * scale, parameters, allow_unused=True)

    starts = range(0, len(batch.token_mask), PART)
    parts = [batch.rows(slice(start, start + PART)) for start in starts]
    total, device = torch.zeros(()), batch.token_mask.device
    for start in range(0, len(parts), workers()):  # no more gradients in memory than threads
        for loss, gradients in each_part(gradient, parts[start : start + workers()], device):
            total += loss
            _add(parameters, gradients)
    return total


def _add(parameters: list[nn.Parameter], gradients: tuple[Tensor | None, ...]) -> None:
    """Accumulate as `backward` would."""
    for parameter, found in zip(parameters, gradients, strict=True):
        if found is not None:
            parameter.grad = found if parameter.grad is None else parameter.grad.add_(found)
