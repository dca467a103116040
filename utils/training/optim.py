"""Learning rates, parameter groups and averaged weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

FINAL_SHARE = 0.01  # of the peak learning rate, at the end of a cosine


def learning_rate(
    peak: float,
    step: int,
    *,
    schedule: str,
    warmup: int,
    total: int,
    time_share: float = 0.0,
) -> float:
    """Rate of optimiser step ``step`` (from 0) of ``total``: linear warm-up, then the schedule.

    time_share (0..1) is how much of a time limit is used up; the schedule stands where the larger
    of it and the share of steps says.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    reached = max(step, time_share * total)
    progress = min(1.0, (reached - warmup) / max(1, total - warmup))
    falling = (1 + math.cos(math.pi * progress)) / 2
    return peak * (FINAL_SHARE + (1 - FINAL_SHARE) * falling)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
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


class Averaged(nn.Module):
    """A moving average of a network's weights, in a copy of it that is never compiled.

    Every update moves each average by 1 - decay towards its weight; early on by more, so that the
    random start is gone after a few steps. Buffers are copied. With a decay of 0 the copy shares
    the network's own weights, whatever state it is given, and costs no memory. The count of
    updates stays on the CPU, so that an update never waits for a GPU.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        tensors = [] if decay else [*network.parameters(), *network.buffers()]
        self.module = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
        self.decay = decay
        self.register_buffer("n_averaged", torch.tensor(0))

    @torch.no_grad()
    def update_parameters(self, network: nn.Module) -> None:
        """Follow the weights after an optimiser step."""
        done = int(self.n_averaged)
        self.n_averaged += 1
        if not self.decay:
            return
        averages, weights = ([p.detach() for p in m.parameters()] for m in (self.module, network))
        keep = min(self.decay, (1 + done) / (10 + done)) if done else 0.0
        if keep:
            torch._foreach_lerp_(averages, weights, 1 - keep)
        else:
            torch._foreach_copy_(averages, weights)
        for own, other in zip(self.module.buffers(), network.buffers(), strict=True):
            own.copy_(other)

    def load_state_dict(self, state: dict[str, Any], *args: Any, **options: Any) -> Any:
        """Take over a state; without a decay its weights give way to the network's own."""
        if not self.decay:
            state = {**state, **self.module.state_dict(prefix="module.")}
        return super().load_state_dict(state, *args, **options)


def averaged(network: nn.Module, half_life: float, batch_size: int) -> Averaged:
    """An average that forgets half of the past every ``half_life`` images; 0 keeps none.

    batch_size is images an optimiser step.
    """
    return Averaged(network, 0.5 ** (batch_size / half_life) if half_life else 0.0)
