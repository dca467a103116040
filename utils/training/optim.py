"""Parts of an optimiser step: gradients, learning rate, parameter groups, averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from config.schema import Config, TokenizerTraining, TrainingConfig
from models.cpu_kernels import LARGE
from models.parallel import parallel_map, workers

Part = TypeVar("Part")

FINAL_SHARE = 0.01  # of the peak learning rate, at the end of a cosine
PARTS, PART = 4, 8  # a batch is cut into a multiple of 4 parts of at most 8 images each
LARGE_PARTS = 2  # for a large network: each part reads all weights and writes their gradients


def may_share(config: Config, device: torch.device, world: int) -> bool:
    """Whether CPU threads share each batch, not each operation.

    With more threads than a batch has parts, those of a large network share its operations.
    """
    training = config.training
    is_plain = not training.compile and not training.checkpoint_activations
    gains = not is_large(config) or workers() <= LARGE_PARTS
    return device.type == "cpu" and world == 1 and is_plain and gains


def is_large(config: Config) -> bool:
    """Whether a CPU's time goes into matrix products, not into the overhead of each call."""
    return config.transformer.dim >= LARGE


def may_share_images(settings: TokenizerTraining, device: torch.device, world: int) -> bool:
    """The same in stage 1: without an adversary, whose weight depends on the whole batch."""
    is_plain = not settings.compile and not settings.adversarial_weight
    return device.type == "cpu" and world == 1 and is_plain


def add_gradients(
    losses_of: Callable[[Part], dict[str, Tensor]],
    parts: Sequence[Part],
    parameters: Iterable[nn.Parameter],
    device: torch.device,
) -> dict[str, Tensor]:
    """Add the gradient of the summed "loss" of a batch's parts to `.grad`; returns all sums.

    losses_of: scalars of a part, by name. CPU threads (models/parallel.py) compute the parts, whose
    gradients are summed in order, so a run is bitwise reproducible with any number of threads.
    """
    trained = [p for p in parameters if p.requires_grad]

    def gradient(part: Part) -> tuple[dict[str, Tensor], tuple[Tensor | None, ...]]:
        losses = losses_of(part)
        with torch.autocast(device.type, enabled=False):  # as PyTorch advises for backward
            gradients = torch.autograd.grad(losses["loss"], trained, allow_unused=True)
        return {name: value.detach() for name, value in losses.items()}, gradients

    sums: dict[str, Tensor] = {}
    for start in range(0, len(parts), workers()):  # no more gradients in memory than threads
        for losses, gradients in parallel_map(gradient, parts[start : start + workers()], device):
            sums = {name: sums.get(name, 0) + value for name, value in losses.items()}
            for parameter, found in zip(trained, gradients, strict=True):
                if found is not None:  # as `backward` would add it
                    parameter.grad = found if parameter.grad is None else parameter.grad.add_(found)
    return sums


def equal_parts(images: int, *, large: bool = False) -> list[slice]:
    """Rows of the parts of a batch, as equal as possible, so that threads wait little.

    Their number is a multiple of `PARTS`, of `LARGE_PARTS` for a large network, or the number of
    images; it does not depend on threads.
    """
    at_once = LARGE_PARTS if large else PARTS
    count = min(images, at_once * math.ceil(images / (at_once * PART)))
    bounds = [images * part // count for part in range(count + 1)]
    return [slice(*pair) for pair in pairwise(bounds)]


def learning_rate(
    settings: TrainingConfig | TokenizerTraining, step: int, total: int, time_share: float = 0.0
) -> float:
    """Rate of optimiser step ``step`` (from 0) of ``total``: linear warm-up, then the schedule.

    time_share (0..1) is the share of the time limit used up; the larger of it and the share of
    steps sets the position in the schedule.
    """
    peak, warmup = settings.learning_rate, settings.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.lr_schedule == "constant":
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


class EMA(nn.Module):
    """Exponential moving average (EMA) of a network's weights, in a copy that is never compiled.

    decay = 0.5 ** (batch_size / half_life), with ``half_life`` in images and ``batch_size`` images
    per step; lower in the first updates, which soon forgets the initialisation. Buffers are
    copied. With a half-life of 0 the copy shares the network's own weights and costs no memory.
    The update count stays on the CPU, so that an update never syncs with a GPU.
    """

    def __init__(self, network: nn.Module, half_life: float, batch_size: int) -> None:
        super().__init__()
        self.decay = 0.5 ** (batch_size / half_life) if half_life else 0.0
        tensors = [] if self.decay else [*network.parameters(), *network.buffers()]
        self.module = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
        self.register_buffer("n_averaged", torch.tensor(0))

    @torch.no_grad()
    def update_parameters(self, network: nn.Module) -> None:
        """Update the average after an optimiser step."""
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
        """Load a state; without a decay the network's own weights are kept instead."""
        if not self.decay:
            state = {**state, **self.module.state_dict(prefix="module.")}
        return super().load_state_dict(state, *args, **options)
