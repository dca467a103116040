"""Metrics of two feature sets beside the Frechet distance: KID, precision and recall.

n images, d feature size; features are (n, d) float64 on any device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fid.files import ScoreError

KERNEL_SUBSETS = 100
KERNEL_SUBSET_SIZE = 1000
NEIGHBOURS = 3
CHUNK_ROWS = 4096  # of a distance matrix at once


@dataclass(frozen=True)
class KernelDistance:
    """Mean and deviation of the squared MMD over subsets of that size."""

    mean: float
    deviation: float
    subset_size: int


def default_subset_size(count1: int, count2: int) -> int:
    """1000 as is usual; of fewer images half, so that subsets differ and a deviation exists."""
    smaller = min(count1, count2)
    return KERNEL_SUBSET_SIZE if smaller > KERNEL_SUBSET_SIZE else max(2, smaller // 2)


def kernel_distance(
    features1: Tensor, features2: Tensor, subset_size: int, seed: int
) -> KernelDistance:
    """KID (Binkowski et al. 2018): unbiased squared MMD with the kernel (x.y / d + 1)^3.

    The subsets are those torch-fidelity draws from the same seed.
    """
    rng = np.random.RandomState(seed)
    estimates = []
    for _ in range(KERNEL_SUBSETS):
        pick1 = rng.choice(len(features1), subset_size, replace=False)
        pick2 = rng.choice(len(features2), subset_size, replace=False)
        estimates.append(float(squared_mmd(features1[pick1], features2[pick2])))
    return KernelDistance(float(np.mean(estimates)), float(np.std(estimates)), subset_size)


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased estimate of MMD^2, (m, d), (m, d) -> scalar (Gretton et al. 2012, lemma 6)."""
    m = len(x)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    within = sum(k.sum() - k.trace() for k in (kernel(x, x), kernel(y, y)))
    return within / (m * (m - 1)) - 2 * kernel(x, y).mean()


def precision_recall(predicted: Tensor, reference: Tensor) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019), k = 3.

    Precision: share of predicted features inside some reference feature's ball, whose radius is the
    distance to its third neighbour; recall: the same with the roles exchanged.

    Raises:
        ScoreError: fewer than four images in a set.
    """
    if min(len(predicted), len(reference)) <= NEIGHBOURS:
        raise ScoreError(f"--metrics prc: needs more than {NEIGHBOURS} images in each set")
    return _covered(predicted, reference), _covered(reference, predicted)


def _covered(points: Tensor, centres: Tensor) -> float:
    """Share of points inside at least one centre's ball, (n, d), (m, d)."""
    radii = torch.cat(
        [
            torch.cdist(chunk, centres).kthvalue(NEIGHBOURS + 1).values  # + 1: itself
            for chunk in centres.split(CHUNK_ROWS)
        ]
    )
    inside = [
        (torch.cdist(chunk, centres) <= radii).any(dim=1) for chunk in points.split(CHUNK_ROWS)
    ]
    return float(torch.cat(inside).double().mean())
