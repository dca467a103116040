"""From settings to scores: statistics of both sides, then the metrics that were asked for."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from fid.extraction import Ranks, choose_device, extract_statistics
from fid.features import BACKENDS, FID_HASH_PREFIX, Backend, BackendOptions
from fid.files import ScoreError
from fid.frechet import Route, bootstrap_interval, frechet_distance
from fid.images import ImageSet
from fid.inputs import Inputs, Settings, Source, resolve_inputs
from fid.metrics import default_subset_size, kernel_distance, precision_recall
from fid.paired import paired_metrics
from fid.statistics import FeatureStatistics, Provenance, load_statistics, save_statistics

NEED_FEATURES = {"kid", "prc", "bootstrap"}


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
        if keep_features and len(images) > self.backend.dims:
            parts.append("features")
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:32] + ".npz"


@dataclass(frozen=True)
class Outcome:
    """Scores by key (JSON) with what they were computed from; the sources are hashed on demand."""

    scores: dict[str, float]
    distance_name: str
    route: Route
    subset_size: int | None
    inputs: Inputs
    counts: tuple[int | None, int | None]  # predicted, reference; None: the file does not say
    backend: Backend
    device: torch.device


def score(settings: Settings, ranks: Ranks) -> Outcome:
    """Compute the metrics that the settings name; every rank gets the outcome.

    Raises:
        ScoreError: any mistake in the settings or the files.
    """
    inputs = ranks.on_first(
        lambda: resolve_inputs(
            settings.predicted_path,
            settings.gt_path,
            settings.mask_path,
            need_pairs="paired" in settings.metrics,
            recursive=settings.recursive,
        )
    )
    assert inputs.reference is not None
    _check_metrics(settings, inputs)
    scorer = Scorer(settings, ranks)
    backend = scorer.backend
    keep = bool(NEED_FEATURES.intersection(settings.metrics))
    predicted = scorer.statistics(inputs.predicted, keep)
    reference = scorer.reference(inputs.reference, keep)
    work = _Metrics(settings, inputs, backend, predicted, reference)
    scores, route, subset_size = ranks.on_first(work.compute)
    return Outcome(
        scores=scores,
        distance_name=backend.distance,
        route=route,
        subset_size=subset_size,
        inputs=inputs,
        counts=(predicted.count, reference.count),
        backend=backend,
        device=scorer.device,
    )


@dataclass(frozen=True)
class _Metrics:
    """What the metrics are computed from."""

    settings: Settings
    inputs: Inputs
    backend: Backend
    predicted: FeatureStatistics
    reference: FeatureStatistics

    def compute(self) -> tuple[dict[str, float], Route, int | None]:
        """Scores by key, the distance's route and the KID's subset size."""
        settings, inputs, key = self.settings, self.inputs, self.backend.distance_key
        distance, route = frechet_distance(self.predicted, self.reference, settings.legacy)
        scores, subset_size = {key: distance}, None
        if "kid" in settings.metrics:
            subset_size = self._kernel_distance(scores)
        if "prc" in settings.metrics:
            found = precision_recall(self.predicted.features(), self.reference.features())
            scores["precision"], scores["recall"] = found
        if "paired" in settings.metrics:
            scores |= paired_metrics(inputs.predicted, inputs.reference, inputs.masks)
        if "bootstrap" in settings.metrics:
            interval = bootstrap_interval(
                self.predicted,
                self.reference,
                inputs.paired,
                settings.bootstrap_samples,
                settings.seed,
            )
            scores[f"{key}_low"], scores[f"{key}_high"] = interval.low, interval.high
            scores[f"{key}_bootstrap_bias"] = interval.bias
        return scores, route, subset_size

    def _kernel_distance(self, scores: dict[str, float]) -> int:
        size = default_subset_size(self.predicted.count, self.reference.count)
        features = self.predicted.features(), self.reference.features()
        found = kernel_distance(*features, size, self.settings.seed)
        key = self.backend.kernel_key
        scores[f"{key}_mean"], scores[f"{key}_deviation"] = found.mean, found.deviation
        return size


def _check_metrics(settings: Settings, inputs: Inputs) -> None:
    """Refuse, before the long part, metrics that the inputs cannot give."""
    for source, fixed in ((inputs.predicted, set()), (inputs.reference, {"bootstrap"})):
        wanted = (NEED_FEATURES | {"paired"}) - fixed
        if isinstance(source, Path) and wanted.intersection(settings.metrics):
            name = next(name for name in settings.metrics if name in wanted)
            raise ScoreError(f"--metrics {name}: needs images, {source} holds statistics only")
    if "paired" in settings.metrics and len(inputs.predicted) != len(inputs.reference):
        raise ScoreError(
            f"--metrics paired: {inputs.predicted.path} has {len(inputs.predicted)} images, the "
            f"ground truth {inputs.reference.path} has {len(inputs.reference)}"
        )


def notes(outcome: Outcome) -> list[str]:
    """What a reader must know to compare the score with another."""
    found = []
    dims = outcome.backend.dims
    known = [count for count in outcome.counts if count is not None]
    if known and min(known) < dims:
        found.append(
            f"{min(known)} images are fewer than the {dims} feature dimensions: the distance is "
            "biased upward, compare it only with scores of as many images"
        )
    if outcome.backend.name == "inception":
        sha256 = outcome.backend.weights_sha256
        if not sha256.startswith(FID_HASH_PREFIX):
            found.append(
                f"not the public FID weights (sha256 begins {sha256[:8]}, theirs {FID_HASH_PREFIX})"
                ": compare only with scores of the same weights"
            )
    return found


def save_predicted_statistics(settings: Settings, ranks: Ranks, path: Path) -> None:
    """Write the statistics of the predicted images to an npz that pytorch-fid reads too."""
    inputs = ranks.on_first(
        lambda: resolve_inputs(
            settings.predicted_path, None, None, False, recursive=settings.recursive
        )
    )
    scorer = Scorer(settings, ranks)
    statistics = scorer.statistics(inputs.predicted, keep_features=False)
    ranks.on_first(lambda: save_statistics(path, statistics, scorer.provenance))
