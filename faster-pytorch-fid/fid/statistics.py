"""Streaming mean and covariance of features, in float64, and their files.

n images, d feature size. While n <= d the centred features themselves are the smaller and more
exact description (n d <= d d numbers) and are kept; beyond, only the mean and the scatter matrix
are, so memory does not grow with n. Rows enter the scatter in blocks of d, so the batch size does
not change the arithmetic.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fid.files import BROKEN_ZIP, ScoreError, check_limit, of_the_machine, replacing

CLOSE = 1e-3  # relative; files may have 16-bit numbers
MOMENTS = ("mu", "sigma")  # of every file
Moments = tuple[int, Tensor, Tensor]  # n, mean (d,), scatter (d, d): sum of centred outer products


class FeatureStatistics:
    """Mean and covariance of rows of `dims` features, updated in a stream.

    keep_features: keep every row, for metrics other than FID.
    """

    def __init__(self, dims: int, keep_features: bool = False) -> None:
        self.dims = dims
        self.keep_features = keep_features
        self.count: int | None = 0  # None: read from a file that does not say
        self._rows: list[Tensor] = []  # rows not yet in the moments
        self._moments: Moments | None = None

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
        n = count or 2  # an unknown n is never merged with; 2 makes scatter equal covariance
        statistics._moments = (n, mean.double(), covariance.double() * (n - 1))
        return statistics

    def update(self, features: Tensor) -> None:
        """Add rows, (B, d) of any float type; whole blocks of d rows move into the moments."""
        assert self.count is not None, "statistics of an unknown number of images cannot grow"
        self._rows.append(features.double())
        self.count += len(features)
        pending = self.count - (self._moments[0] if self._moments else 0)
        if self.keep_features or pending <= self.dims:
            return
        rows, whole = torch.cat(self._rows), (pending - 1) // self.dims * self.dims
        self._moments = _with_rows(self._moments, rows[:whole], self.dims)
        self._rows = [rows[whole:].clone()]

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

    def _total(self) -> Moments:
        rows = torch.cat(self._rows) if self._rows else torch.empty(0)
        moments = _with_rows(self._moments, rows, self.dims)
        assert moments is not None, "no images were shown"
        return moments


def _with_rows(moments: Moments | None, rows: Tensor, block: int) -> Moments | None:
    """Moments updated with rows (n, d), in blocks."""
    for part in rows.split(block) if len(rows) else ():
        mean = part.mean(0)
        centred = part - mean
        moments = _merged(moments, (len(part), mean, centred.T @ centred))
    return moments


def _merged(first: Moments | None, second: Moments) -> Moments:
    """Combined moments of two disjoint parts (Chan, Golub and LeVeque 1979)."""
    if first is None:
        return second
    (n1, mean1, scatter1), (n2, mean2, scatter2) = first, second
    n = n1 + n2
    shift = mean2 - mean1
    scatter = scatter1 + scatter2 + torch.outer(shift, shift) * (n1 * n2 / n)
    return n, mean1 + shift * (n2 / n), scatter


def save_statistics(
    path: Path, statistics: FeatureStatistics, provenance: Mapping[str, str]
) -> None:
    """Write what pytorch-fid reads, `mu` and `sigma`, with n, provenance and features if kept."""
    arrays = {"mu": statistics.mean(), "sigma": statistics.covariance()}
    if (features := statistics.features()) is not None:
        arrays["features"] = features
    found = {name: array.cpu().numpy() for name, array in arrays.items()}
    with replacing(path) as file:
        np.savez(file, **found, n=statistics.count, **provenance)


def load_statistics(path: Path, dims: int, provenance: Mapping[str, str]) -> FeatureStatistics:
    """Read statistics that pytorch-fid or this scorer wrote.

    The file must have the feature size in use and, where it states its provenance, that one. Raises
    `ScoreError` for another one, and for what is no npz or has no finite `mu` and `sigma`.
    """
    arrays = _read_arrays(path, {*MOMENTS, "n", "features", *provenance})
    mean, covariance = arrays["mu"], arrays["sigma"]
    if mean.shape != (dims,) or covariance.shape != (dims, dims):
        raise ScoreError(
            f"{path}: mu is {mean.shape} and sigma {covariance.shape}, but the features in use "
            f"have {dims} dims"
        )
    moments = _checked_numbers(path, "mu or sigma", mean, covariance)
    for key, wanted in provenance.items():
        if key in arrays and str(arrays[key]) != str(wanted):
            raise ScoreError(f"{path}: made with {key} {arrays[key]}, but {wanted} is in use")
    if (features := arrays.get("features")) is not None:
        if features.ndim != 2 or features.shape[1] != dims or len(features) < 2:
            shape = features.shape
            raise ScoreError(f"{path}: features are {shape}, not (n, {dims}) with n from 2")
        (rows,) = _checked_numbers(path, "features", features)
        trace = moments[1].trace()
        size = (moments[0].square().sum() + trace).sqrt()  # root mean square of the features
        shift = (rows.mean(0) - moments[0]).norm()
        if shift > CLOSE * size or (rows.var(0).sum() - trace).abs() > CLOSE * size**2:
            raise ScoreError(f"{path}: its features have another mean or spread than mu and sigma")
        return FeatureStatistics.of(rows, keep_features=True)
    n = arrays.get("n", np.array(2))
    if n.shape != () or n.dtype.kind not in "iu" or n < 2:
        raise ScoreError(f"{path}: n is {str(n)[:40]}, expected one whole number from 2")
    return FeatureStatistics.from_moments(*moments, int(n) if "n" in arrays else None)


def has_array(path: Path, key: str) -> bool:
    """Whether a file of statistics has that array, such as the features of every image."""
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{key}.npy" in archive.namelist()
    except BROKEN_ZIP:
        return True  # reading it says what is wrong


def _read_arrays(path: Path, keys: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays of an npz with these keys, `MOMENTS` at least; others are not read."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [(m.filename.removesuffix(".npy"), m.file_size) for m in archive.infolist()]
        unpacked = sum(size for key, size in members if key in keys)
        check_limit("statistics_bytes", unpacked, f"{path}: unpacked")
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key, _ in members if key in keys}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("an array without npy header")
    except ScoreError:
        raise
    except Exception as error:  # foreign bytes raise almost any exception
        if isinstance(error, MemoryError):
            bytearray(unpacked)  # raises again, unless only the arrays' headers claim more
        elif line := of_the_machine(error, path):
            raise ScoreError(line) from None
        raise ScoreError(f"{path}: not a readable npz ({error})") from None
    if missing := [key for key in MOMENTS if key not in arrays]:
        found = ", ".join(key for key, _ in members) or "nothing"
        raise ScoreError(f"{path}: no {missing[0]!r} in it (it contains {found})")
    return arrays


def _checked_numbers(path: Path, names: str, *arrays: np.ndarray) -> list[Tensor]:
    """The arrays in float64, in this machine's byte order. Refuses all but real, finite numbers."""
    if not all(array.dtype.kind in "iuf" for array in arrays):
        raise ScoreError(f"{path}: {names} is not of real numbers")
    with np.errstate(over="ignore"):  # of wider floats
        found = [array.astype(np.float64, copy=False) for array in arrays]
    if not all(np.isfinite(array).all() for array in found):
        raise ScoreError(f"{path}: {names} contains values that are not finite")
    return list(map(torch.from_numpy, found))
