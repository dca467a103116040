"""Frechet distance between Gaussian fits of features, in float64, computed in one of three ways.

|mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^1/2   (Dowson and Landau 1982; Heusel et al. 2017)

tr (S1 S2)^1/2 sums the square roots of the eigenvalues of S1 S2, which are real and >= 0:
  * nuclear (n1, n2 <= d): with S_i = F_i^T F_i, F_i = centred features / sqrt(n_i - 1), (n_i, d),
    those roots are the singular values of F1 F2^T, and their sum is its nuclear norm: an n1 x n2
    problem, exact for singular covariances, without eps.
  * eigen (otherwise): S1 S2 has the eigenvalues of the symmetric A S2 A^T for any A^T A = S1. A is
    F1 if n1 <= d, else S1^1/2 in the eigenbasis of S1, without its null space.
  * legacy: `scipy.linalg.sqrtm` of S1 S2 or, if that is not finite, of (S1 + eps I)(S2 + eps I),
    as in pytorch-fid and the TensorFlow original, to reproduce published scores.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Literal, NamedTuple

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from fid.files import ScoreError
from fid.statistics import FeatureStatistics

LEGACY_EPS = 1e-6
COVERAGE = 0.95  # of the bootstrap interval
IMAGINARY_TOLERANCE = 1e-3

Route = Literal["nuclear", "eigen", "legacy"]


def trace_sqrt_nuclear(factor1: Tensor, factor2: Tensor) -> Tensor:
    """tr (S1 S2)^1/2 from factors S_i = F_i^T F_i, (n1, d), (n2, d) -> scalar."""
    return torch.linalg.svdvals(factor1 @ factor2.T).sum()


def trace_sqrt_eigen(factor1: Tensor, covariance2: Tensor) -> Tensor:
    """tr (S1 S2)^1/2 from S1 = A^T A and S2, (r, d), (d, d) -> scalar."""
    product = factor1 @ covariance2 @ factor1.T
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2)
    return eigenvalues.clamp_min(0).sqrt().sum()


def symmetric_factor(covariance: Tensor) -> Tensor:
    """A with A^T A = S: eigenvectors scaled by sqrt eigenvalues, without the null space, (r, d)."""
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    floor = eigenvalues[-1].clamp_min(0) * len(covariance) * torch.finfo(covariance.dtype).eps
    kept = eigenvalues > floor
    return eigenvalues[kept].sqrt()[:, None] * eigenvectors[:, kept].T


def trace_sqrt_legacy(covariance1: np.ndarray, covariance2: np.ndarray) -> float:
    """tr (S1 S2)^1/2 as pytorch-fid computes it, with any SciPy version.

    Raises `ScoreError` if the root has an imaginary part, as pytorch-fid does.
    """
    root = _sqrtm(covariance1.dot(covariance2))
    if not np.isfinite(root).all():
        offset = np.eye(len(covariance1)) * LEGACY_EPS
        root = _sqrtm((covariance1 + offset).dot(covariance2 + offset))
    if np.iscomplexobj(root):
        imaginary = np.diagonal(root).imag
        if not np.allclose(imaginary, 0, atol=IMAGINARY_TOLERANCE):
            raise ScoreError(
                f"--legacy: the matrix root has imaginary parts up to {np.abs(imaginary).max():.3g}"
                ", where pytorch-fid fails too; score without --legacy"
            )
        root = root.real
    return float(np.trace(root))


def _sqrtm(matrix: np.ndarray) -> np.ndarray:
    """SciPy's matrix square root without warnings; newer versions have no `disp` argument."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return np.asarray(scipy.linalg.sqrtm(matrix))


def frechet_distance(
    first: FeatureStatistics, second: FeatureStatistics, legacy: bool = False
) -> tuple[float, Route]:
    """Frechet distance of two sets of features, and the method used.

    Raises `ScoreError` only with `legacy`, see `trace_sqrt_legacy`.
    """
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
        else:
            smaller = symmetric_factor(covariance1) if factor1 is None else factor1
            root = trace_sqrt_eigen(smaller, covariance2)
        route = "legacy" if legacy else "eigen"
    distance = float(shift.dot(shift) + traces - 2 * root)
    # Rounding can give a tiny negative value; legacy keeps pytorch-fid's exact result.
    return (distance if legacy else max(distance, 0.0)), route


class Interval(NamedTuple):
    """Central 95 % of the bootstrap distances, shifted so that their mean equals the distance."""

    low: float
    high: float
    bias: float  # mean of the bootstrap distances minus the distance


def bootstrap_interval(
    predicted: FeatureStatistics,
    reference: FeatureStatistics,
    paired: bool,
    samples: int,
    seed: int,
) -> Interval:
    """Sampling uncertainty of the Frechet distance (percentile bootstrap).

    Images are resampled with replacement, as pairs if the sets are paired; a reference of bare
    statistics is kept fixed. Repeated images alone raise the distance, more so for small n; this
    bias is reported and subtracted from the interval.
    """
    rng = np.random.default_rng(seed)
    features1, features2 = predicted.features(), reference.features()
    assert features1 is not None
    distances = []
    for _ in range(samples):
        pick1 = rng.integers(len(features1), size=len(features1))
        sample2 = reference
        if features2 is not None:
            pick2 = pick1 if paired else rng.integers(len(features2), size=len(features2))
            sample2 = FeatureStatistics.of(features2[pick2])
        distances.append(frechet_distance(FeatureStatistics.of(features1[pick1]), sample2)[0])
    distance = frechet_distance(predicted, reference)[0]
    bias = float(np.mean(distances)) - distance
    low, high = np.quantile(distances, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2]) - bias
    return Interval(float(low), float(high), bias)
