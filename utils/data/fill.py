"""Fill holes before encoding, since hole pixels leak into the surrounding tokens, and join the
decoded image with the known pixels afterwards.

Images are (H, W, 3) uint8, holes (H, W) bool, True = hidden. The composites `hard` and `feather`
change nothing outside the hole: known pixels stay as they are, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import get_args

import numpy as np
from scipy import sparse
from scipy.linalg import solveh_banded
from scipy.ndimage import distance_transform_edt, zoom
from scipy.sparse.linalg import cg

from config.decoding import CompositeName, HoleFillName
from utils.io.images import HOLE_COLOUR

Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]  # float image, hole -> values (n, 3)
Composite = Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]

LARGEST_BAND = 2**25  # entries of a banded factor, 256 MB
REFINEMENTS = 30  # conjugate gradient steps at each size
SIZES_KEPT = 4  # image sizes whose operators are cached
SMALL = 2**16  # pixels; smaller pictures are not cropped to the hole, which would save little


def grey(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """(128, 128, 128), as in the lab's masked images."""
    return np.full((hole.sum(), 3), float(HOLE_COLOUR))


def mean(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The mean colour of the known pixels."""
    return np.broadcast_to(image[~hole].mean(0), (hole.sum(), 3))


def harmonic(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Solve Laplace's equation in the hole: the smoothest membrane through its border.

    A large hole is solved at half the resolution and then refined (cascadic multigrid, Bornemann
    and Deuflhard 1996), since the direct solution needs memory cubic in the hole's width.
    """
    matrix, right = _equations(_laplacian(hole), image, hole)
    if hole.sum() * hole.shape[1] <= LARGEST_BAND:
        return _solve(matrix, right)
    columns = zip(right.T, _from_half_size(image, hole).T, strict=True)
    return np.stack([cg(matrix, b, x, maxiter=REFINEMENTS)[0] for b, x in columns], axis=1)


def biharmonic(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Solve the biharmonic equation: the smoothest plate, which continues slopes into the hole."""
    return _solve(*_equations(_bilaplacian(*hole.shape)[np.flatnonzero(hole)], image, hole))


# each name of the config with the function above that is called so
HOLE_FILLS: dict[str, Fill] = {name: globals()[name] for name in get_args(HoleFillName)}


def fill_hole(image: np.ndarray, hole: np.ndarray, fill: str) -> np.ndarray:
    """Return a copy of the image with its hole filled; a hole that covers everything is grey."""
    filled = image.copy()
    if hole.any():
        values = HOLE_FILLS["grey" if hole.all() else fill](image.astype(float), hole)
        filled[hole] = values.round().clip(0, 255)
    return filled


def _laplacian(where: np.ndarray) -> sparse.csr_matrix:
    """Rows of the pixel grid's graph Laplacian for the pixels of a mask (H, W), (n, HW).

    Pixels are in row-major order. A photo's other rows, of known pixels, would fill the memory.
    """
    (height, width), inside = where.shape, np.flatnonzero(where)
    row, column = np.divmod(inside, width)
    neighbours = [row > 0, column > 0, column < width - 1, row < height - 1]  # within the image
    columns = inside[:, None] + [-width, -1, 0, 1, width]
    values = np.full(columns.shape, -1.0)
    values[:, 2] = sum(neighbours)
    is_there = np.stack([*neighbours[:2], np.ones_like(row, bool), *neighbours[2:]], axis=1)
    starts = np.r_[0, is_there.sum(1).cumsum()]
    return sparse.csr_matrix((values[is_there], columns[is_there], starts), (len(row), where.size))


@lru_cache(SIZES_KEPT)
def _bilaplacian(height: int, width: int) -> sparse.csr_matrix:
    laplacian = _laplacian(np.ones((height, width), bool))
    return sparse.csr_matrix(laplacian @ laplacian)


def _equations(
    rows: sparse.csr_matrix, image: np.ndarray, hole: np.ndarray
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Linear system for a zero of an operator in the hole, known pixels fixed: (n, n), (n, 3).

    rows: of the operator, for the hole's pixels, (n, HW).
    """
    right = -(rows @ np.where(hole[..., None], 0, image).reshape(-1, 3))
    return rows[:, np.flatnonzero(hole)], right


def _solve(matrix: sparse.csr_matrix, right: np.ndarray) -> np.ndarray:
    """Solve for the hole's values, (n, 3).

    The matrix is symmetric, and positive definite if any pixel is known. In row-major order it has
    a small bandwidth, so a banded Cholesky factor is four times as fast as a general sparse one.
    """
    upper = sparse.triu(matrix).tocoo()
    above = upper.col - upper.row
    width = above.max()
    band = np.zeros((width + 1, len(right)))  # LAPACK's layout: one diagonal per row
    band[width - above, upper.col] = upper.data
    return solveh_banded(band, right, overwrite_ab=True, overwrite_b=True, check_finite=False)


def _from_half_size(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """`harmonic` at half resolution, sampled at the hole's pixels, (n, 3)."""
    sides = [(0, size % 2) for size in hole.shape]
    hidden = np.pad(hole, sides, mode="edge")[..., None]
    image = np.pad(image, [*sides, (0, 0)], mode="edge")
    quarters = [(slice(i, None, 2), slice(j, None, 2)) for i in (0, 1) for j in (0, 1)]
    known = sum(~hidden[quarter] for quarter in quarters)  # count in each 2 x 2 block
    small = sum(np.where(hidden[quarter], 0, image[quarter]) for quarter in quarters)
    small /= np.maximum(known, 1)
    gone = known[..., 0] == 0
    if gone.any():  # thin parts are gone themselves
        small[gone] = harmonic(small, gone)
    large = zoom(small, (2, 2, 1), order=1, mode="nearest", grid_mode=True)
    return large[: hole.shape[0], : hole.shape[1]][hole]


def none(decoded: np.ndarray, image: np.ndarray, hole: np.ndarray, width: float) -> np.ndarray:
    """The decoded image, unchanged."""
    return decoded


def hard(decoded: np.ndarray, image: np.ndarray, hole: np.ndarray, width: float) -> np.ndarray:
    """Known pixels pasted over the decoded image."""
    return np.where(hole[..., None], decoded, image)


def feather(decoded: np.ndarray, image: np.ndarray, hole: np.ndarray, width: float) -> np.ndarray:
    """Known pixels pasted over, and the hole corrected so that no seam shows at its border.

    The decoder's error around the hole is extended into it as a membrane (Pérez et al. 2003,
    section 2), in full at the first pixel and faded out with a cosine over ``width`` pixels.
    """
    if hole.all() or not hole.any():
        return hard(decoded, image, hole, width)
    box = _around(hole) if hole.size > SMALL else np.s_[:, :]
    error = image[box].astype(float) - decoded[box]
    depth = distance_transform_edt(hole[box])[hole[box]]  # pixels from the nearest known one
    fade = (1 + np.cos(np.pi * np.minimum((depth - 1) / width, 1))) / 2
    correction = fade[:, None] * harmonic(error, hole[box])
    blended = image.copy()
    blended[hole] = (decoded[hole] + correction).round().clip(0, 255)
    return blended


def _around(hole: np.ndarray) -> tuple[slice, slice]:
    """The bounding box of a hole, one pixel wider on all sides."""
    rows, columns = (np.flatnonzero(hole.any(axis)) for axis in (1, 0))
    first = max(rows[0] - 1, 0), max(columns[0] - 1, 0)
    return slice(first[0], rows[-1] + 2), slice(first[1], columns[-1] + 2)


COMPOSITES: dict[str, Composite] = {name: globals()[name] for name in get_args(CompositeName)}


def composite(
    decoded: np.ndarray, image: np.ndarray, hole: np.ndarray, kind: str, width: float
) -> np.ndarray:
    """Join a decoded image with the known pixels of the given one, (H, W, 3) uint8."""
    return COMPOSITES[kind](decoded, image, hole, width)
