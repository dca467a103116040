"""Dropout (Srivastava et al. 2014) that does not hold up a training step on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

LEVELS = 2**15  # p counts in steps of 1 / LEVELS
IN_ONE_DRAW = 4  # random numbers of 16 bits


class Dropout(nn.Dropout):
    """In training, each number becomes 0 with probability p and the others grow by 1 / (1 - p).

    On a CPU, PyTorch draws its random numbers one after the other. Here a faster generator, begun
    with one number of PyTorch's, draws four at once.
    """

    def forward(self, x: Tensor) -> Tensor:
        native = x.device.type != "cpu" or torch.compiler.is_compiling()
        if not self.training or self.p == 0 or native:
            return super().forward(x)
        margins = torch.empty(x.shape, dtype=torch.int16)
        growth = draw_margins(margins, self.p)
        kept = torch.ge(margins, 0, out=torch.empty_like(x))
        return x * kept.mul_(growth)


def draw_margins(margins: Tensor, p: float) -> float:
    """Fill an int16 tensor with numbers that are negative with probability p, and give 1 / (1 - p).

    Both with p rounded to a whole number of levels; where nothing is kept, nothing grows.
    """
    lost = round(p * LEVELS)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    draws = np.random.SFC64(seed).random_raw(-(-margins.numel() // IN_ONE_DRAW))
    bits = torch.from_numpy(draws.view(np.int16))[: margins.numel()]
    # 15 bits of 16, so that the difference does not overflow
    torch.sub(bits.bitwise_right_shift_(1).view(margins.shape), lost - LEVELS // 2, out=margins)
    return LEVELS / (LEVELS - lost or LEVELS)
