"""Metrics of the distances between features and their nearest neighbours.

n, m images, d feature size; features are (n, d) float64 on any device.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fid.files import ScoreError

NEIGHBOURS = 3  # of precision and recall
COVERAGE_NEIGHBOURS = 5  # as Naeem et al. advise
SAME = 1e-6  # of the longest feature vector: nearer ones are equal
DISTANCES = 1 << 24  # at once: 128 MB, and a few times that while they are computed


def check_counts(metrics: tuple[str, ...], predicted: int, reference: int) -> None:
    """Raise `ScoreError` if sets of so many images are too small for kid, prc or density."""
    if "kid" in metrics and min(predicted, reference) < 2:
        raise ScoreError("--metrics kid: needs at least two images in each set")
    if "prc" in metrics and min(predicted, reference) <= NEIGHBOURS:
        raise ScoreError(f"--metrics prc: needs more than {NEIGHBOURS} images in each set")
    if "density" in metrics and reference <= (k := COVERAGE_NEIGHBOURS):
        raise ScoreError(f"--metrics density: needs more than {k} images of ground truth")


def precision_recall(predicted: Tensor, reference: Tensor) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019), k = 3.

    Precision: share of predicted features inside some reference feature's ball, whose radius is the
    distance to its third neighbour; recall: the same with the roles exchanged. Raises `ScoreError`
    for fewer than four images in a set.
    """
    check_counts(("prc",), len(predicted), len(reference))
    return _covered(predicted, reference), _covered(reference, predicted)


def _covered(points: Tensor, centres: Tensor) -> float:
    """Share of points inside at least one centre's ball, (n, d), (m, d)."""
    radii = neighbour_distances(centres, NEIGHBOURS)
    inside = [(rows <= radii).any(dim=1) for rows in _distances(points, centres)]
    return float(torch.cat(inside).double().mean())


def neighbour_distances(points: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th nearest other one, (n, d) -> (n,)."""
    found = [rows.kthvalue(k + 1).values for rows in _distances(points, points)]  # + 1: itself
    return torch.cat(found)


def _distances(points: Tensor, others: Tensor) -> Iterator[Tensor]:
    """Distances of a few points at a time to all others, (n, d), (m, d) -> (rows, m) float32.

    Those within the rounding of products are 0, and the last bits, in which two computations of the
    same distance differ, are cut: otherwise rounding would decide which of equal ones is nearer.
    """
    same = SAME * others.norm(dim=1).max()
    for chunk in points.split(max(1, DISTANCES // len(others))):
        distances = torch.cdist(chunk, others)
        yield distances.masked_fill_(distances < same, 0).float()


def density_coverage(predicted: Tensor, reference: Tensor) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, equations 3 and 4), k = 5.

    Density: mean number of reference balls around a predicted feature, over k; coverage: share of
    reference balls with a predicted feature inside. Raises `ScoreError` for fewer than six balls.
    """
    check_counts(("density",), len(predicted), len(reference))
    radii = neighbour_distances(reference, COVERAGE_NEIGHBOURS)
    inside, reached = 0, torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    for rows in _distances(predicted, reference):
        balls = rows < radii
        inside += int(balls.sum())
        reached |= balls.any(dim=0)
    return inside / (COVERAGE_NEIGHBOURS * len(predicted)), float(reached.double().mean())


def nearness(predicted: Tensor, reference: Tensor, train: Tensor) -> tuple[float, float, float]:
    """Whether predictions memorise the training set: (n, d), (n, d) in pairs, (m, d).

    Mean distances of predictions and of truths to the nearest training feature, and the share of
    pairs, 0 to 1, whose prediction is nearer to it than its truth.
    """
    fake, real = (
        torch.cat([rows.amin(dim=1) for rows in _distances(points, train)])
        for points in (predicted, reference)
    )
    means = (found.double().mean() for found in (fake, real, fake < real))
    return tuple(map(float, means))
