"""Streaming mean and covariance of features, in float64, and their files.

n images, d feature size. While n <= d the centred features themselves are the smaller and more
exact description (n d <= d d numbers) and are kept; beyond, only the mean and the scatter matrix
are, so memory does not grow with n. Rows enter the scatter in blocks of d, so the batch size does
not change the arithmetic.
"""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fid.files import ScoreError, check_limit, replacing

Provenance = dict[str, str | int]
BROKEN_NPZ = (  # what NumPy and zipfile raise on broken or foreign bytes
    *(OSError, ValueError, EOFError, RuntimeError, NotImplementedError, OverflowError),
    *(MemoryError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)


class FeatureStatistics:
    """Mean and covariance of the feature rows it is shown.

    Args:
        dims: feature size d.
        keep_features: keep every row however many come (metrics other than the FID need them).
    """

    def __init__(self, dims: int, keep_features: bool = False) -> None:
        self.dims = dims
        self.keep_features = keep_features
        self.count: int | None = 0  # None: read from a file that does not say
        self._rows: list[Tensor] = []  # rows not yet in the moments
        self._pending = 0
        self._moments: tuple[int, Tensor, Tensor] | None = None  # n, mean (d,), scatter (d, d)

    @classmethod
    def of(cls, features: Tensor, keep_features: bool = False) -> FeatureStatistics:
        """Statistics of all features at once, (n, d)."""
        statistics = cls(features.shape[1], keep_features)
        statistics.update(features)
        return statistics

    @classmethod
    def from_moments(cls, mean: Tensor, covariance: Tensor, count: int | None) -> FeatureStatistics:
        """Statistics that are already reduced to mean (d,) and covariance (d, d)."""
        statistics = cls(len(mean))
        statistics.count = count
        # An unknown n cannot be merged with; 2 makes scatter equal covariance.
        n = count or 2
        statistics._moments = (n, mean.double(), covariance.double() * (n - 1))
        return statistics

    def update(self, features: Tensor) -> None:
        """Add rows, (B, d) of any float type."""
        assert self.count is not None, "statistics of an unknown number of images cannot grow"
        self._rows.append(features.double())
        self._pending += len(features)
        self.count += len(features)
        if not self.keep_features:
            self._reduce_blocks()

    def merge(self, other: FeatureStatistics) -> None:
        """Add another part's images after these (ranks, shards)."""
        assert self.count is not None
        assert other.count is not None
        if other._moments is not None:
            self._moments = _merged(self._moments, other._moments)
            self.count += other._moments[0]
        for rows in other._rows:
            self.update(rows)

    def features(self) -> Tensor | None:
        """All rows (n, d) in their order, or None once they are reduced."""
        if self._moments is not None or not self._rows:
            return None
        self._rows = [torch.cat(self._rows)]
        return self._rows[0]

    def to(self, device: torch.device) -> FeatureStatistics:
        """Move everything to a device; returns itself."""
        self._rows = [rows.to(device) for rows in self._rows]
        if self._moments is not None:
            n, mean, scatter = self._moments
            self._moments = n, mean.to(device), scatter.to(device)
        return self

    def mean(self) -> Tensor:
        """Mean of the features, (d,)."""
        features = self.features()
        return self._total()[1] if features is None else features.mean(0)

    def covariance(self) -> Tensor:
        """Unbiased covariance (divided by n - 1), (d, d)."""
        n, _, scatter = self._total()
        return scatter / (n - 1)

    def factor(self) -> Tensor | None:
        """Centred features / sqrt(n - 1), (n, d), whose Gram matrix is the covariance.

        None where rows are gone, or where n > d makes the covariance the smaller description.
        """
        features = self.features()
        if features is None or len(features) > self.dims:
            return None
        return (features - features.mean(0)) / (len(features) - 1) ** 0.5

    def _total(self) -> tuple[int, Tensor, Tensor]:
        moments = self._moments
        for block in torch.cat(self._rows).split(self.dims) if self._rows else ():
            moments = _merged(moments, _moments_of(block))
        assert moments is not None, "no images were shown"
        return moments

    def _reduce_blocks(self) -> None:
        """Move whole blocks of d rows into the moments once there are more than d rows."""
        if self._pending <= self.dims:
            return
        rows = torch.cat(self._rows)
        whole = (len(rows) - 1) // self.dims * self.dims
        for block in rows[:whole].split(self.dims):
            self._moments = _merged(self._moments, _moments_of(block))
        self._rows, self._pending = [rows[whole:].clone()], len(rows) - whole


def _moments_of(rows: Tensor) -> tuple[int, Tensor, Tensor]:
    """Count, mean and scatter (sum of outer products of centred rows) of (n, d)."""
    mean = rows.mean(0)
    centred = rows - mean
    return len(rows), mean, centred.T @ centred


def _merged(
    first: tuple[int, Tensor, Tensor] | None, second: tuple[int, Tensor, Tensor]
) -> tuple[int, Tensor, Tensor]:
    """Moments of two disjoint parts together (Chan, Golub and LeVeque 1979)."""
    if first is None:
        return second
    (n1, mean1, scatter1), (n2, mean2, scatter2) = first, second
    n = n1 + n2
    shift = mean2 - mean1
    scatter = scatter1 + scatter2 + torch.outer(shift, shift) * (n1 * n2 / n)
    return n, mean1 + shift * (n2 / n), scatter


def save_statistics(path: Path, statistics: FeatureStatistics, provenance: Provenance) -> None:
    """Write `mu` and `sigma` as pytorch-fid does, with n, provenance and (n <= d) the features.

    pytorch-fid reads such a file and ignores what it does not know. A broken write leaves no file.
    """
    arrays = {"mu": statistics.mean(), "sigma": statistics.covariance()}
    features = statistics.features()
    if features is not None:
        arrays["features"] = features
    extra = {} if statistics.count is None else {"n": np.array(statistics.count)}
    extra |= {name: np.array(value) for name, value in provenance.items()}
    with replacing(path) as file:
        np.savez(file, **{name: t.cpu().numpy() for name, t in arrays.items()}, **extra)


def load_statistics(path: Path, dims: int, provenance: Provenance) -> FeatureStatistics:
    """Read statistics that pytorch-fid or this scorer wrote.

    Args:
        dims: the feature size in use; the file must have it.
        provenance: what the features in use are; where the file says it too, both must agree.

    Raises:
        ScoreError: not an npz, no `mu` or `sigma`, not finite, other dims or other features.
    """
    arrays = _read_arrays(path)
    for key in ("mu", "sigma"):
        if key not in arrays:
            found = ", ".join(arrays) or "nothing"
            raise ScoreError(f"{path}: no {key!r} in it (it holds {found})")
    mean, covariance = arrays["mu"], arrays["sigma"]
    if mean.shape != (dims,) or covariance.shape != (dims, dims):
        raise ScoreError(
            f"{path}: mu is {mean.shape} and sigma {covariance.shape}, but the features in use "
            f"have {dims} dims"
        )
    if not all(_is_real(array) for array in (mean, covariance)):
        raise ScoreError(f"{path}: mu or sigma is not of real numbers")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ScoreError(f"{path}: mu or sigma holds values that are not finite")
    for key, wanted in provenance.items():
        if key in arrays and str(arrays[key]) != str(wanted):
            raise ScoreError(f"{path}: made with {key} {arrays[key]}, but {wanted} is in use")
    if "features" in arrays:
        return _from_features(path, arrays["features"], dims)
    count = _count(path, arrays["n"]) if "n" in arrays else None
    return FeatureStatistics.from_moments(
        torch.from_numpy(mean), torch.from_numpy(covariance), count
    )


def has_features(path: Path) -> bool:
    """Whether a file of statistics keeps the features of every image."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "features.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False  # reading it says what is wrong


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz, none of which may be a program or larger than the limit unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        check_limit("statistics_bytes", unpacked, f"{path}: unpacked")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except BROKEN_NPZ as error:
        raise ScoreError(f"{path}: not a readable npz ({error})") from None


def _from_features(path: Path, features: np.ndarray, dims: int) -> FeatureStatistics:
    """Statistics of kept features (n, d)."""
    if features.ndim != 2 or features.shape[1] != dims or len(features) < 2:
        raise ScoreError(f"{path}: features are {features.shape}, not (n, {dims}) with n from 2")
    if not _is_real(features) or not np.isfinite(features).all():
        raise ScoreError(f"{path}: features hold values that are no finite numbers")
    return FeatureStatistics.of(torch.from_numpy(features), keep_features=True)


def _count(path: Path, n: np.ndarray) -> int:
    """The number of images that a file states."""
    if n.shape != () or not np.issubdtype(n.dtype, np.integer) or n < 2:
        raise ScoreError(f"{path}: n is {str(n)[:40]}, expected one whole number from 2")
    return int(n)


def _is_real(array: np.ndarray) -> bool:
    return np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)
