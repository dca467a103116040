"""Dropout (Srivastava et al. 2014) that does not hold up a training step on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BITS = 16  # of a random number
LEVELS = 2**BITS
IN_ONE_DRAW = 64 // BITS


class Dropout(nn.Dropout):
    """In training, each number becomes 0 with probability p and the others grow by 1 / (1 - p).

    On a CPU, PyTorch draws its random numbers one after the other. Here four come out of one draw,
    so that p counts in steps of 2^-16.
    """

    def forward(self, x: Tensor) -> Tensor:
        lost = round(self.p * LEVELS)  # so many of all levels
        native = x.device.type != "cpu" or torch.compiler.is_compiling()
        if not self.training or native or not 0 < lost < LEVELS:
            return super().forward(x)
        bits = _random_bits(x.numel()).view(x.shape)
        kept = torch.ge(bits, lost - LEVELS // 2, out=torch.empty_like(x))
        return x * kept.mul_(LEVELS / (LEVELS - lost))


def _random_bits(count: int) -> Tensor:
    """Uniform int16 from PyTorch's generator, (count,)."""
    draws = torch.empty(-(-count // IN_ONE_DRAW), dtype=torch.int64)
    return draws.random_(-(2**63), None).view(torch.int16)[:count]
