"""Dropout (Srivastava et al. 2014) that does not hold up a training step on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

IN_ONE_DRAW = 8  # random numbers of 8 bits
LEVELS = 2**8


class Dropout(nn.Dropout):
    """In training, each number becomes 0 with probability p and the others grow by 1 / (1 - p).

    On a CPU, PyTorch draws its random numbers one after the other. Here a faster generator, begun
    with one number of PyTorch's, draws eight at once.
    """

    def forward(self, x: Tensor) -> Tensor:
        native = x.device.type != "cpu" or torch.compiler.is_compiling()
        if not self.training or self.p == 0 or native:
            return super().forward(x)
        kept = torch.ge(draw_margins(x.shape, self.p), 0, out=torch.empty_like(x))
        return x * kept.mul_(growth(self.p))


def growth(p: float) -> float:
    """What keeps the mean, 1 / (1 - p); where nothing is kept, nothing grows."""
    return 1 / (1 - p) if p < 1 else 1.0


def draw_margins(shape: torch.Size, p: float) -> Tensor:
    """int8 numbers that are negative with probability p, from 0 to 1.

    Each row, along the last dimension, takes p as one of the two next multiples of 1 / 256, at
    random and such that p holds on average.
    """
    if p > 0.5:  # where the difference below could overflow
        return draw_margins(shape, 1 - p).bitwise_not_()
    seed = int(torch.empty((), dtype=torch.int64).random_())
    draws = np.random.SFC64(seed).random_raw(-(-shape.numel() // IN_ONE_DRAW))
    bits = torch.from_numpy(draws.view(np.int8))[: shape.numel()].view(shape)
    lost = (p * LEVELS + torch.rand(*shape[:-1], 1)).floor_().sub_(LEVELS // 2).to(torch.int8)
    return torch.minimum(bits, lost).sub_(lost)
