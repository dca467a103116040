"""Metrics of two sets of features: Frechet and kernel distance, a classifier, neighbours.

n images, d feature size; features are (n, d) float64 on any device. The Frechet distance between
Gaussian fits of the features is computed in one of three ways:

|mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^1/2   (Dowson and Landau 1982; Heusel et al. 2017)

tr (S1 S2)^1/2 sums the square roots of the eigenvalues of S1 S2, which are real and >= 0:
  * nuclear (n1, n2 <= d): with S_i = F_i^T F_i, F_i = centred features / sqrt(n_i - 1), (n_i, d),
    those roots are the singular values of F1 F2^T, and their sum is its nuclear norm: an n1 x n2
    problem, exact for singular covariances, without eps.
  * eigen (otherwise): S1 S2 has the eigenvalues of the symmetric A S2 A^T for any A^T A = S1. A is
    F1 if n1 <= d, else S1^1/2 in the eigenbasis of S1, without its null space.
  * legacy: `scipy.linalg.sqrtm` of S1 S2, with eps on the diagonals if need be, as pytorch-fid.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Literal

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from fid.files import ScoreError
from fid.statistics import FeatureStatistics

NOT_FINITE = "a score is not finite: the features or statistics are too large"
LEGACY_EPS = 1e-6
KERNEL_SUBSETS = 100
KERNEL_SUBSET_SIZE = 1000
NEIGHBOURS = 3  # of precision and recall
COVERAGE_NEIGHBOURS = 5  # as Naeem et al. advise
SAME = 1e-6  # of the longest feature vector: nearer ones are equal
DISTANCES = 1 << 24  # at once: 128 MB, and a few times that while they are computed

Route = Literal["nuclear", "eigen", "legacy"]


def trace_sqrt_nuclear(factor1: Tensor, factor2: Tensor) -> Tensor:
    """tr (S1 S2)^1/2 from factors S_i = F_i^T F_i, (n1, d), (n2, d) -> scalar."""
    return torch.linalg.svdvals(_finite(factor1 @ factor2.T)).sum()


def trace_sqrt_eigen(factor1: Tensor, covariance2: Tensor) -> Tensor:
    """tr (S1 S2)^1/2 from S1 = A^T A and S2, (r, d), (d, d) -> scalar."""
    product = _finite(factor1 @ covariance2 @ factor1.T)
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2)
    return eigenvalues.clamp_min(0).sqrt().sum()


def _finite(matrix: Tensor) -> Tensor:
    """The matrix; raises `ScoreError` if it overflowed, of which no decomposition exists."""
    if not matrix.isfinite().all():
        raise ScoreError(NOT_FINITE)
    return matrix


def symmetric_factor(covariance: Tensor) -> Tensor:
    """A with A^T A = S: eigenvectors scaled by sqrt eigenvalues, without the null space, (r, d)."""
    eigenvalues, eigenvectors = torch.linalg.eigh(_finite(covariance))
    floor = eigenvalues[-1].clamp_min(0) * len(covariance) * torch.finfo(covariance.dtype).eps
    kept = eigenvalues > floor
    return eigenvalues[kept].sqrt()[:, None] * eigenvectors[:, kept].T


def trace_sqrt_legacy(covariance1: np.ndarray, covariance2: np.ndarray) -> float:
    """tr (S1 S2)^1/2 as in pytorch-fid; raises `ScoreError` for imaginary parts and overflow."""

    def sqrtm(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        product = _finite(torch.from_numpy(first.dot(second))).numpy()
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # newer SciPy has no `disp` argument
            return np.asarray(scipy.linalg.sqrtm(product))

    root = sqrtm(covariance1, covariance2)
    if not np.isfinite(root).all():
        offset = np.eye(len(covariance1)) * LEGACY_EPS
        root = sqrtm(covariance1 + offset, covariance2 + offset)
    if np.iscomplexobj(root):
        imaginary = np.diagonal(root).imag
        if not np.allclose(imaginary, 0, atol=1e-3):
            found = f"the matrix root has imaginary parts up to {np.abs(imaginary).max():.3g}"
            text = "where pytorch-fid fails too; score without --legacy"
            raise ScoreError(f"--legacy: {found}, {text}")
    return float(np.trace(root.real))


def frechet_distance(
    first: FeatureStatistics, second: FeatureStatistics, legacy: bool = False
) -> tuple[float, Route]:
    """Frechet distance of two sets of features, and the method used."""
    shift = first.mean() - second.mean()
    factor1, factor2 = first.factor(), second.factor()
    if not legacy and factor1 is not None and factor2 is not None:
        traces = factor1.square().sum() + factor2.square().sum()
        root, route = trace_sqrt_nuclear(factor1, factor2), "nuclear"
    elif not legacy and factor2 is not None:  # the side with features has fewer images
        return frechet_distance(second, first)
    else:
        covariance1, covariance2 = first.covariance(), second.covariance()
        traces = covariance1.trace() + covariance2.trace()
        if legacy:
            root = trace_sqrt_legacy(covariance1.cpu().numpy(), covariance2.cpu().numpy())
            route = "legacy"
        else:
            smaller = symmetric_factor(covariance1) if factor1 is None else factor1
            root, route = trace_sqrt_eigen(smaller, covariance2), "eigen"
    distance = float(shift.dot(shift) + traces - 2 * root)  # rounding may make it negative
    return (distance if legacy else max(distance, 0.0)), route


def default_subset_size(count1: int, count2: int) -> int:
    """1000 as usual; with fewer images half of them, so that subsets differ."""
    smaller = min(count1, count2)
    return KERNEL_SUBSET_SIZE if smaller > KERNEL_SUBSET_SIZE else max(2, smaller // 2)


def kernel_distance(
    first: Tensor, second: Tensor, subset_size: int, seed: int
) -> tuple[float, float]:
    """KID (Binkowski et al. 2018): unbiased squared MMD with the kernel (x.y / d + 1)^3.

    Mean and deviation over subsets, which are torch-fidelity's for the same seed.
    """
    rng = np.random.RandomState(seed)
    estimates = []
    for _ in range(KERNEL_SUBSETS):
        pick1 = rng.choice(len(first), subset_size, replace=False)
        pick2 = rng.choice(len(second), subset_size, replace=False)
        estimates.append(float(squared_mmd(first[pick1], second[pick2])))
    return float(np.mean(estimates)), float(np.std(estimates))


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased estimate of MMD^2, (m, d), (m, d) -> scalar (Gretton et al. 2012, lemma 6)."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    m = len(x)
    within = sum(k.sum() - k.trace() for k in (kernel(x, x), kernel(y, y)))
    return within / (m * (m - 1)) - 2 * kernel(x, y).mean()


def discriminative_scores(
    predicted: Tensor, reference: Tensor, is_paired: bool
) -> tuple[float | None, float]:
    """P-IDS and U-IDS (Zhao et al. 2021, section 4): how often a linear SVM errs, 0 to 1.

    P-IDS: share of pairs whose prediction it scores as more real than the truth, None if the sets
    are not paired. U-IDS: share of all images that it misclassifies. Needs scikit-learn.
    """
    fake, real = (features.cpu().numpy() for features in (predicted, reference))
    features = np.concatenate([fake, real])
    is_real = np.repeat([False, True], [len(fake), len(real)])
    machine = linear_svm()(dual=False, random_state=0).fit(features, is_real)
    unpaired = 1 - float(machine.score(features, is_real))
    if not is_paired:
        return None, unpaired
    confused = machine.decision_function(fake) > machine.decision_function(real)
    return float(confused.mean()), unpaired


def linear_svm() -> type:
    """scikit-learn's class; raises `ScoreError` if it is not installed."""
    try:
        from sklearn.svm import LinearSVC
    except ImportError:
        text = "--metrics ids: scikit-learn is missing (pip install scikit-learn)"
        raise ScoreError(text) from None
    return LinearSVC


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
    distance to its third neighbour; recall: the same with the roles exchanged.
    """
    check_counts(("prc",), len(predicted), len(reference))
    return _covered(predicted, reference), _covered(reference, predicted)


def _covered(points: Tensor, centres: Tensor) -> float:
    """Share of points inside at least one centre's ball, (n, d), (m, d)."""
    radii = _radii(centres, NEIGHBOURS)
    inside = [(rows <= radii).any(dim=1) for rows in _distances(points, centres)]
    return float(torch.cat(inside).double().mean())


def _radii(points: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th nearest one after itself, (n, d) -> (n,)."""
    return torch.cat([rows.kthvalue(k + 1).values for rows in _distances(points, points)])


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
    reference balls with a predicted feature inside.
    """
    check_counts(("density",), len(predicted), len(reference))
    radii = _radii(reference, COVERAGE_NEIGHBOURS)
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
    return tuple(float(found.double().mean()) for found in (fake, real, fake < real))
