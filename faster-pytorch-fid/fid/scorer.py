"""A feature network on a device that turns images into statistics."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch

from fid.extraction import Ranks, choose_device, extract_statistics
from fid.features import BACKENDS, Backend, BackendOptions
from fid.files import ScoreError
from fid.images import ImageSet
from fid.inputs import Settings, Source
from fid.statistics import FeatureStatistics, Provenance, load_statistics, save_statistics


class Scorer:
    """A feature network on a device that turns sources into statistics, over all ranks."""

    def __init__(self, settings: Settings, ranks: Ranks) -> None:
        self.settings = settings
        self.ranks = ranks
        self.device = ranks.together(lambda: choose_device(settings.device, ranks))[ranks.rank]
        self.backend: Backend
        ranks.on_first(self._build)  # rank 0 goes first: it may have to download the weights
        ranks.together(self._build if ranks.rank > 0 else lambda: None)

    def _build(self) -> None:
        settings = self.settings
        options = BackendOptions(settings.dims, settings.weights, settings.weights_dir)
        self.backend = BACKENDS[settings.features](options)

    @property
    def provenance(self) -> Provenance:
        """What a file of statistics says about the features in it."""
        return {
            "backend": self.backend.name,
            "weights_sha256": self.backend.weights_sha256,
            "resize": self.backend.resize,
        }

    def statistics(self, source: Source, keep_features: bool) -> FeatureStatistics:
        """Statistics of all images (every rank reads its shard), or those of an npz."""
        if isinstance(source, Path):
            return self._load(source)
        parts = self.ranks.together(lambda: self._part(source, keep_features))
        total = parts[0]
        for part in parts[1:]:
            total.merge(part)
        return total.to(self.device)

    def reference(self, source: Source, keep_features: bool) -> FeatureStatistics:
        """Statistics of the reference, read from the cache where its images were seen before."""
        folder = self.settings.cache_dir
        if folder is None or isinstance(source, Path):
            return self.statistics(source, keep_features)
        path = self.ranks.on_first(lambda: folder / self._cache_name(source, keep_features))
        cached = self.ranks.on_first(lambda: self._load_cached(path))
        if cached is not None:
            return cached.to(self.device)
        statistics = self.statistics(source, keep_features)
        self.ranks.on_first(lambda: self._save_cached(path, statistics))
        return statistics

    def _save_cached(self, path: Path, statistics: FeatureStatistics) -> None:
        try:
            save_statistics(path, statistics, self.provenance)
        except ScoreError as error:  # a score does not fail for want of a cache
            print(f"note: reference statistics are not cached: {error}", file=sys.stderr)

    def _part(self, images: ImageSet, keep_features: bool) -> FeatureStatistics:
        settings, indices = self.settings, self.ranks.shard(len(images))
        part = extract_statistics(
            self.backend,
            images,
            indices,
            self.device,
            settings.batch_size,
            settings.workers,
            keep_features,
        )
        return part.to(torch.device("cpu")) if self.ranks.world > 1 else part

    def _load(self, path: Path) -> FeatureStatistics:
        loaded = load_statistics(path, self.backend.dims, self.provenance)
        return loaded.to(self.device)

    def _load_cached(self, path: Path) -> FeatureStatistics | None:
        if not path.is_file():
            return None
        try:
            return load_statistics(path, self.backend.dims, self.provenance)
        except ScoreError:  # a damaged entry is only made again
            return None

    def _cache_name(self, images: ImageSet, keep_features: bool) -> str:
        """Content hash of images and network; sets of features that the FID drops say so."""
        parts = [images.sha256(), str(self.backend.dims), *map(str, self.provenance.values())]
        parts += [repr(tuple(self.settings.resize))] if self.settings.resize else []
        if keep_features and len(images) > self.backend.dims:
            parts.append("features")
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:32] + ".npz"
