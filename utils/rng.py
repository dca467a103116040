"""Keyed random numbers: a draw depends only on its key, e.g. (seed, epoch, batch)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def generator_for(*key: int) -> torch.Generator:
    """A CPU generator seeded by a key, e.g. (seed, epoch, batch)."""
    seed = 0
    for part in key:
        seed = (seed * 1_000_003 + part + 1) % (2**63 - 1)
    return torch.Generator().manual_seed(seed)


def shuffled_batches(
    count: int, batch_size: int, generator: torch.Generator, skip: int = 0
) -> Iterator[Tensor]:
    """Indices of each batch of an epoch, the last one shorter, without the first ``skip``."""
    order = torch.randperm(count, generator=generator)
    yield from order.split(batch_size)[skip:]
