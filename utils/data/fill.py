"""What fills a hole before encoding, since it leaks into the tokens around it.

Images are (H, W, 3) uint8, holes (H, W) bool, True = hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy import sparse
from scipy.linalg import solveh_banded

from utils.io.images import HOLE_COLOUR

Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]  # float image, hole -> values (n, 3)

SIZES_KEPT = 4  # image sizes whose operators stay in memory


def grey(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """(128, 128, 128), as in the lab's masked images."""
    return np.full((hole.sum(), 3), float(HOLE_COLOUR))


def mean(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The mean colour of the known pixels."""
    return np.broadcast_to(image[~hole].mean(0), (hole.sum(), 3))


def harmonic(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The smoothest membrane through the border: Laplace's equation inside the hole."""
    return _solve(_laplacian(*hole.shape), image, hole)


def biharmonic(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The smoothest plate: the bilaplacian vanishes, so slopes go on into the hole."""
    return _solve(_bilaplacian(*hole.shape), image, hole)


HOLE_FILLS: dict[str, Fill] = {
    "grey": grey,
    "mean": mean,
    "harmonic": harmonic,
    "biharmonic": biharmonic,
}


def fill_hole(image: np.ndarray, hole: np.ndarray, fill: str) -> np.ndarray:
    """Return a copy of the image with its hole filled; a hole without any border becomes grey."""
    filled = image.copy()
    if hole.any():
        values = HOLE_FILLS["grey" if hole.all() else fill](image.astype(float), hole)
        filled[hole] = values.round().clip(0, 255)
    return filled


@lru_cache(SIZES_KEPT)
def _laplacian(height: int, width: int) -> sparse.csr_matrix:
    """Sum of differences to the neighbours inside the image, over pixels in row-major order."""
    along = [
        sparse.diags([np.r_[1, np.full(n - 2, 2), 1], -np.ones(n - 1), -np.ones(n - 1)], [0, 1, -1])
        for n in (height, width)
    ]
    return sparse.csr_matrix(sparse.kronsum(along[1], along[0]))


@lru_cache(SIZES_KEPT)
def _bilaplacian(height: int, width: int) -> sparse.csr_matrix:
    laplacian = _laplacian(height, width)
    return sparse.csr_matrix(laplacian @ laplacian)


def _solve(operator: sparse.csr_matrix, image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Values in the hole for which the operator vanishes there, the known pixels held fixed.

    The operator is symmetric, and positive definite once a pixel is known. In row-major order its
    entries lie within few rows of the diagonal, so a banded Cholesky factor is four times as fast
    as a general sparse one.
    """
    inside = np.flatnonzero(hole)
    rows = operator[inside]
    right = -(rows @ np.where(hole[..., None], 0, image).reshape(-1, 3))
    upper = sparse.triu(rows[:, inside]).tocoo()
    above = upper.col - upper.row
    width = above.max()
    band = np.zeros((width + 1, len(inside)))  # LAPACK's form: a diagonal a row
    band[width - above, upper.col] = upper.data
    return solveh_banded(band, right, overwrite_ab=True, overwrite_b=True, check_finite=False)
