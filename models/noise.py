"""Random numbers of decoding, which belong to the image.

They are a function of (seed, sample, image, step, position). The counter is hashed with
SplitMix64's finaliser (Steele, Lea, Flood 2014) in integer arithmetic, so the bits are the same on
every device, for any batch size, order or number of processes.

Shapes: B batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

CONFIDENCE_STREAM, TOKEN_STREAM, ORDER_STREAM = 0, 1, 2
STREAMS = 256  # independent streams of random numbers in one step
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # odd increment, as a signed 64-bit number
_FACTOR_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_FACTOR_2 = 0x94D049BB133111EB - (1 << 64)


def uniform(
    seed: int, image_ids: Tensor, step: int, stream: int, count: int, samples: int | Tensor = 0
) -> Tensor:
    """Uniform numbers in the open interval (0, 1): (B,) int64 image ids -> (B, count) float64.

    stream, below `STREAMS`, separates the uses within a step; count: the number of positions.
    samples: index of each image's repair, (B,) int64 or one for all, from 0.
    """
    assert image_ids.dtype == torch.int64, f"image ids are int64, not {image_ids.dtype}"
    assert 0 <= stream < STREAMS, f"stream {stream} is none of {STREAMS}"
    samples = torch.as_tensor(samples, device=image_ids.device).expand_as(image_ids)
    state = torch.zeros_like(image_ids[:, None])
    for part in (seed, image_ids[:, None], step, stream + STREAMS * samples[:, None]):
        state = _mix(state + _GOLDEN + part)
    counter = torch.arange(count, device=image_ids.device)
    bits = _mix(_mix(state + counter * _GOLDEN))
    return (_shift(bits, 12).double() + 0.5) * 2.0**-52


def gumbel(
    seed: int, image_ids: Tensor, step: int, stream: int, count: int, samples: int | Tensor = 0
) -> Tensor:
    """Standard Gumbel noise, -log(-log(u)): (B,) image ids -> (B, count) float64."""
    return -(-uniform(seed, image_ids, step, stream, count, samples).log()).log()


def _mix(x: Tensor) -> Tensor:
    """Bijective scrambling of int64, wrapping on overflow."""
    x = (x ^ _shift(x, 30)) * _FACTOR_1
    x = (x ^ _shift(x, 27)) * _FACTOR_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift right; PyTorch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
