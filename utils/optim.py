"""Learning rates, parameter groups and averaged weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

FINAL_SHARE = 0.01  # of the peak learning rate, at the end of a cosine


def learning_rate(peak: float, step: int, *, schedule: str, warmup: int, total: int) -> float:
    """Rate of optimiser step ``step`` (from 0) of ``total``: linear warm-up, then the schedule."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    falling = (1 + math.cos(math.pi * progress)) / 2
    return peak * (FINAL_SHARE + (1 - FINAL_SHARE) * falling)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group this rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Two AdamW groups: matrices decay; biases, norms, embeddings and positions do not."""
    embeddings = {
        id(p) for m in network.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    decayed, kept = [], []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim < 2 or id(parameter) in embeddings or name in ("pos_emb", "bias")
        (kept if plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def averaged(network: nn.Module, half_life: float, batch_size: int) -> AveragedModel:
    """A moving average of weights that forgets half of the past every ``half_life`` images.

    Early on it forgets faster, so that the random start is gone after a few steps. A half-life of 0
    makes it a copy of the weights. batch_size is images an optimiser step.
    """
    decay = 0.5 ** (batch_size / half_life) if half_life else 0.0

    def follow(averages: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
        now = min(decay, (1 + float(count)) / (10 + float(count)))
        torch._foreach_lerp_(averages, weights, 1 - now)

    return AveragedModel(network, multi_avg_fn=follow)
