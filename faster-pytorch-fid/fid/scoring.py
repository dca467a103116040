"""From settings to scores: feature statistics of both sets, then the requested metrics."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from fid import METRICS, Settings
from fid.extraction import Ranks, choose_device, extract_statistics
from fid.features import BACKENDS, Backend, BackendOptions
from fid.files import ScoreError, note, user_path
from fid.frechet import Route, bootstrap_interval, frechet_distance
from fid.images import ImageSet
from fid.inputs import Inputs, Source, open_predicted, resolve_inputs
from fid.metrics import (
    default_subset_size,
    density_coverage,
    discriminative_scores,
    kernel_distance,
    nearness,
    precision_recall,
)
from fid.paired import HoleCrops, paired_metrics, with_hole
from fid.statistics import FeatureStatistics, has_features, load_statistics, save_statistics

NEED_FEATURES = {"kid", "prc", "density", "ids", "bootstrap"}
NEED_PAIRS = {"paired", "hole", "train"}  # of images; the last is asked for by --train-path


@dataclass(frozen=True)
class Outcome:
    """Scores by key (JSON) and their inputs; the inputs are hashed on demand."""

    scores: dict[str, float]
    route: Route
    subset_size: int | None
    inputs: Inputs
    counts: tuple[int | None, int | None]  # predicted, reference; None: the file does not say
    backend: Backend
    device: torch.device


def score(settings: Settings, ranks: Ranks) -> Outcome:
    """Compute the requested metrics; every rank gets the outcome.

    Raises `ScoreError` for any mistake in the settings or the files.
    """
    inputs = ranks.on_first(lambda: resolve_inputs(settings))
    metrics = ranks.on_first(lambda: _checked_metrics(settings, inputs))
    scorer = Scorer(settings, ranks)
    keep = bool((NEED_FEATURES | {"train"}).intersection(metrics))
    predicted = scorer.statistics(inputs.predicted, keep)
    reference = scorer.reference(inputs.reference, keep)
    train = scorer.reference(inputs.train, keep_features=True) if inputs.train else None
    hole = scorer.hole_distance(inputs) if "hole" in metrics else None
    sides, legacy, key = (predicted, reference), settings.legacy, scorer.backend.key
    distance, route = ranks.on_first(lambda: frechet_distance(*sides, legacy))
    further = _further_numbers(settings, inputs, key, sides, train, hole)
    wanted = [numbers for name, numbers in further.items() if name in metrics]
    found = ranks.on_first(lambda: [pair for numbers in wanted for pair in numbers()])
    scores = {key("fid"): distance} | {name: value for name, value in found if value is not None}
    counts = predicted.count, reference.count
    subset_size = default_subset_size(*counts) if "kid" in metrics else None
    return Outcome(scores, route, subset_size, inputs, counts, scorer.backend, scorer.device)


def _checked_metrics(settings: Settings, inputs: Inputs) -> tuple[str, ...]:
    """The metrics to compute; refuses early those that the inputs do not allow."""
    metrics, predicted, reference = settings.metrics, inputs.predicted, inputs.reference
    if inputs.masks is None and set(metrics) == set(METRICS):
        note("hole is left out: it needs masks (--mask-path)")
        metrics = tuple(name for name in metrics if name != "hole")
    metrics += ("train",) if inputs.train else ()
    for source, need_images, need_features in (
        (predicted, NEED_PAIRS, NEED_FEATURES),
        (reference, NEED_PAIRS, NEED_FEATURES - {"bootstrap"}),
        (inputs.train, set(), {"train"}),
    ):
        if isinstance(source, Path):
            lacking = need_images if has_features(source) else need_images | need_features
            if name := next((name for name in metrics if name in lacking), None):
                flag = "--train-path" if name == "train" else f"--metrics {name}"
                raise ScoreError(f"{flag}: needs images, {source} holds statistics only")
    if "hole" in metrics and inputs.masks is None:
        raise ScoreError("--metrics hole: needs masks; give --mask-path")
    if NEED_PAIRS.intersection(metrics):
        for name, others in (("ground truth", reference), ("masks", inputs.masks)):
            if others is not None and len(others) != len(predicted):
                raise ScoreError(
                    f"pairs are needed: {predicted.path} has {len(predicted)} images, the "
                    f"{name} {others.path} has {len(others)}"
                )
    return metrics


def _further_numbers(
    settings: Settings,
    inputs: Inputs,
    key: Callable[[str], str],
    sides: tuple[FeatureStatistics, FeatureStatistics],
    train: FeatureStatistics | None,
    hole: float | None,
) -> dict[str, Callable[[], Iterable[tuple[str, float | None]]]]:
    """A function for the numbers of each metric, in table order; a None value is left out."""
    features, count1, count2 = [side.features() for side in sides], sides[0].count, sides[1].count
    samples, seed, fid, kid = settings.bootstrap_samples, settings.seed, key("fid"), key("kid")
    named = partial(zip, strict=True)
    return {
        "bootstrap": lambda: named(
            (f"{fid}_low", f"{fid}_high", f"{fid}_bootstrap_bias"),
            bootstrap_interval(*sides, inputs.paired, samples, seed),
        ),
        "hole": lambda: [(f"hole_{fid}", hole)],
        "kid": lambda: named(
            (f"{kid}_mean", f"{kid}_deviation"),
            kernel_distance(*features, default_subset_size(count1, count2), seed),
        ),
        "prc": lambda: named(("precision", "recall"), precision_recall(*features)),
        "density": lambda: named(("density", "coverage"), density_coverage(*features)),
        "ids": lambda: named(
            (key("p_ids"), key("u_ids")),
            discriminative_scores(*features, is_paired=count1 == count2),
        ),
        "paired": lambda: paired_metrics(inputs.predicted, inputs.reference, inputs.masks).items(),
        "train": lambda: named(
            ("nearest_train", "nearest_train_of_truth", "nearer_to_train_than_truth"),
            nearness(*features, train.features()),
        ),
    }


def save_predicted_statistics(
    settings: Settings, ranks: Ranks, path: Path, keep_features: bool
) -> None:
    """Write the statistics of the predicted images to an npz that pytorch-fid reads too."""
    predicted, _ = ranks.on_first(lambda: open_predicted(settings))
    scorer = Scorer(settings, ranks)
    statistics = scorer.statistics(predicted, keep_features)
    ranks.on_first(lambda: save_statistics(path, statistics, scorer.backend.provenance))


def default_cache_dir() -> Path | None:
    """The user's cache folder (XDG_CACHE_HOME moves it); None for a user without a home."""
    try:
        return Path(user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "faster-pytorch-fid")
    except ScoreError:
        note("reference statistics are not cached: no home folder")
        return None


class Scorer:
    """Computes feature statistics of image sets with one network, distributed over all ranks."""

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

    def statistics(self, source: Source, keep_features: bool) -> FeatureStatistics:
        """Statistics of all images (every rank reads its shard), or those of an npz."""
        if isinstance(source, Path):
            return self._load(source).to(self.device)
        total, *parts = self.ranks.together(lambda: self._part(source, keep_features))
        for part in parts:
            total.merge(part)
        return total.to(self.device)

    def reference(self, source: Source, keep_features: bool) -> FeatureStatistics:
        """Statistics of the reference, from the cache if its images were scored before."""
        folder = self.settings.cache_dir
        if folder is None or isinstance(source, Path):
            return self.statistics(source, keep_features)
        path = self.ranks.on_first(lambda: folder / self._cache_name(source, keep_features))
        found = self.ranks.on_first(lambda: self._load_cached(path))
        if found is None:
            found = self.statistics(source, keep_features)
            self.ranks.on_first(lambda: self._save_cached(path, found))
        return found.to(self.device)

    def hole_distance(self, inputs: Inputs) -> float:
        """Frechet distance of crops around holes."""
        numbers = self.ranks.on_first(lambda: with_hole(inputs.masks))
        if len(numbers) < 2:
            found = f"{len(numbers)} of the masks have a hole; needed are 2"
            raise ScoreError(f"--metrics hole: {found}")
        both = inputs.predicted, inputs.reference
        crops = (HoleCrops(images, inputs.masks, numbers) for images in both)
        return frechet_distance(*(self.statistics(c, keep_features=False) for c in crops))[0]

    def _part(self, images: ImageSet, keep_features: bool) -> FeatureStatistics:
        """Statistics of this rank's images."""
        settings, indices = self.settings, self.ranks.shard(len(images))
        size, workers = settings.batch_size, settings.workers
        part = extract_statistics(
            self.backend, images, indices, self.device, size, workers, keep_features
        )
        return part.to(torch.device("cpu")) if self.ranks.world > 1 else part

    def _load(self, path: Path) -> FeatureStatistics:
        return load_statistics(path, self.backend.dims, self.backend.provenance)

    def _load_cached(self, path: Path) -> FeatureStatistics | None:
        try:
            return self._load(path) if path.is_file() else None
        except (ScoreError, OSError):  # damaged, or in a home of somebody else's: made again
            return None

    def _save_cached(self, path: Path, statistics: FeatureStatistics) -> None:
        try:
            save_statistics(path, statistics, self.backend.provenance)
        except ScoreError as error:  # a score does not fail for want of a cache
            note(f"reference statistics are not cached: {error}")

    def _cache_name(self, images: ImageSet, keep_features: bool) -> str:
        """Content hash of images and network; marked if it includes features that FID drops."""
        backend, resize = self.backend, self.settings.resize
        parts = [images.sha256(), str(backend.dims), *backend.provenance.values()]
        parts += [repr(tuple(resize))] if resize else []
        if keep_features and len(images) > backend.dims:
            parts.append("features")
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:32] + ".npz"
