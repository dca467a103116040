"""From settings to scores: statistics of both sides, then the numbers that were asked for."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fid import METRICS, Settings
from fid.extraction import Scorer
from fid.features import FID_HASH_PREFIX, Backend
from fid.files import ScoreError
from fid.frechet import Route, bootstrap_interval, frechet_distance
from fid.inputs import Inputs, resolve_inputs
from fid.metrics import (
    KERNEL_SUBSET_SIZE,
    default_subset_size,
    density_coverage,
    discriminative_scores,
    kernel_distance,
    kind_of,
    nearness,
    precision_recall,
)
from fid.paired import HoleCrops, hole_boxes, paired_metrics
from fid.process import Ranks
from fid.statistics import FeatureStatistics, has_features, save_statistics

NEED_FEATURES = {"kid", "prc", "density", "ids", "bootstrap"}


@dataclass(frozen=True)
class Outcome:
    """Scores by key (JSON) with what they were computed from; the sources are hashed on demand."""

    scores: dict[str, float]
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
    inputs = ranks.on_first(lambda: resolve_inputs(settings))
    metrics = ranks.on_first(lambda: _checked_metrics(settings, inputs))
    scorer = Scorer(settings, ranks)
    keep = bool(NEED_FEATURES.intersection(metrics) or inputs.train)
    predicted = scorer.statistics(inputs.predicted, keep)
    reference = scorer.reference(inputs.reference, keep)
    train = scorer.reference(inputs.train, keep_features=True) if inputs.train else None
    hole = _hole_distance(scorer, inputs) if "hole" in metrics else {}
    work = _Comparison(settings, inputs, scorer.backend, predicted, reference, train)
    scores, route = ranks.on_first(lambda: work.scores(metrics, hole))
    counts = predicted.count, reference.count
    subset_size = default_subset_size(*counts) if "kid" in metrics else None
    return Outcome(scores, route, subset_size, inputs, counts, scorer.backend, scorer.device)


def _checked_metrics(settings: Settings, inputs: Inputs) -> tuple[str, ...]:
    """The metrics to compute; refuse, before the long part, those that the inputs cannot give."""
    metrics, predicted, reference = settings.metrics, inputs.predicted, inputs.reference
    if inputs.masks is None and set(metrics) == set(METRICS):
        print("note: hole is left out: it needs masks (--mask-path)", file=sys.stderr)
        metrics = tuple(name for name in metrics if name != "hole")
    for source, fixed in ((predicted, set()), (reference, {"bootstrap"})):
        wanted = (NEED_FEATURES | {"paired", "hole"}) - fixed
        if isinstance(source, Path) and has_features(source):
            wanted -= NEED_FEATURES
        if isinstance(source, Path) and wanted.intersection(metrics):
            name = next(name for name in metrics if name in wanted)
            raise ScoreError(f"--metrics {name}: needs images, {source} holds statistics only")
    if "hole" in metrics and inputs.masks is None:
        raise ScoreError("--metrics hole: needs masks; give --mask-path")
    if {"paired", "hole"}.intersection(metrics) or inputs.train:
        for name, others in (("ground truth", reference), ("masks", inputs.masks)):
            if others is not None and len(others) != len(predicted):
                raise ScoreError(
                    f"pairs are needed: {predicted.path} has {len(predicted)} images, the "
                    f"{name} {others.path} has {len(others)}"
                )
    return metrics


def _hole_distance(scorer: Scorer, inputs: Inputs) -> dict[str, float]:
    """Frechet distance of the surroundings of holes; every rank takes part."""
    boxes = scorer.ranks.on_first(lambda: hole_boxes(inputs.masks))
    if len(boxes) < 2:
        raise ScoreError(f"--metrics hole: {len(boxes)} of the masks have a hole; needed are 2")
    sides = (HoleCrops(images, boxes) for images in (inputs.predicted, inputs.reference))
    found = frechet_distance(*(scorer.statistics(side, keep_features=False) for side in sides))[0]
    return {f"hole_{scorer.backend.distance_key}": found}


@dataclass(frozen=True)
class _Comparison:
    """Both sides, and the numbers that compare them, by key."""

    settings: Settings
    inputs: Inputs
    backend: Backend
    predicted: FeatureStatistics
    reference: FeatureStatistics
    train: FeatureStatistics | None

    def scores(
        self, metrics: tuple[str, ...], hole: dict[str, float]
    ) -> tuple[dict[str, float], Route]:
        """All numbers of these metrics, in the order of a table, and the distance's route."""
        settings, inputs = self.settings, self.inputs
        distance, route = frechet_distance(self.predicted, self.reference, settings.legacy)
        scores = {self.backend.distance_key: distance}
        parts = {
            "bootstrap": self._interval,
            "hole": lambda: hole,
            "kid": self._kernel_distance,
            "prc": lambda: self._named(precision_recall, "precision", "recall"),
            "density": lambda: self._named(density_coverage, "density", "coverage"),
            "ids": self._discriminative_scores,
            "paired": lambda: paired_metrics(inputs.predicted, inputs.reference, inputs.masks),
        }
        for name, part in parts.items():
            if name in metrics:
                scores |= part()
        return scores | (self._nearness() if self.train else {}), route

    @property
    def _features(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.predicted.features(), self.reference.features()

    def _named(self, metric, *names: str) -> dict[str, float]:
        return dict(zip(names, metric(*self._features), strict=True))

    def _interval(self) -> dict[str, float]:
        settings, key = self.settings, self.backend.distance_key
        sides, is_paired = (self.predicted, self.reference), self.inputs.paired
        found = bootstrap_interval(*sides, is_paired, settings.bootstrap_samples, settings.seed)
        values = {"low": found.low, "high": found.high, "bootstrap_bias": found.bias}
        return {f"{key}_{name}": value for name, value in values.items()}

    def _kernel_distance(self) -> dict[str, float]:
        size = default_subset_size(self.predicted.count, self.reference.count)
        found = kernel_distance(*self._features, size, self.settings.seed)
        key = self.backend.kernel_key
        return {f"{key}_mean": found.mean, f"{key}_deviation": found.deviation}

    def _discriminative_scores(self) -> dict[str, float]:
        features = self._features
        suffix = self.backend.kernel_key.removeprefix("kid").removeprefix("kernel_distance")
        paired, unpaired = discriminative_scores(*features, len(features[0]) == len(features[1]))
        found = {} if paired is None else {f"p_ids{suffix}": paired}
        return found | {f"u_ids{suffix}": unpaired}

    def _nearness(self) -> dict[str, float]:
        found = nearness(*self._features, self.train.features())
        return {
            "nearest_train": found.predicted,
            "nearest_train_of_truth": found.reference,
            "nearer_to_train_than_truth": found.nearer,
        }


def notes(outcome: Outcome) -> list[str]:
    """What a reader must know to compare the scores with others."""
    found, inputs, dims = [], outcome.inputs, outcome.backend.dims
    has_ids = any(key.startswith("u_ids") for key in outcome.scores)
    known = [count for count in outcome.counts if count is not None]
    if known and min(known) < dims:
        found.append(
            f"{min(known)} images are fewer than the {dims} feature dimensions: the distance is "
            "biased upward, compare it only with scores of as many images"
        )
    if known and has_ids and sum(known) < 2 * dims:  # Cover 1965
        found.append(
            f"a plane parts nearly any {sum(known)} images by {dims} features, so P-IDS and U-IDS "
            "are low whatever the images are"
        )
    if any(key.endswith("_mean") and value < 0 for key, value in outcome.scores.items()):
        found.append(
            "the kernel distance may be negative near 0: it is unbiased for independent sets, and "
            "repairs that resemble their own truths lower it"
        )
    if outcome.subset_size not in (None, KERNEL_SUBSET_SIZE):
        found.append(f"the kernel distance is of subsets of {outcome.subset_size} images")
    files = [side for side in (inputs.predicted, inputs.reference) if isinstance(side, Path)]
    if files and any(key.startswith("p_ids") for key in outcome.scores):
        found.append(f"P-IDS takes the rows of {files[0]} for those of the other side, in order")
    sha256 = outcome.backend.weights_sha256
    if outcome.backend.name == "inception" and not sha256.startswith(FID_HASH_PREFIX):
        found.append(
            f"not the public FID weights (sha256 begins {sha256[:8]}, theirs {FID_HASH_PREFIX})"
            ": compare only with scores of the same weights"
        )
    return found


def table(outcome: Outcome) -> list[str]:
    """Lines with each number, its better direction and its meaning; the distance has its name."""
    key, name = outcome.backend.distance_key, outcome.backend.distance
    if len(outcome.scores) == 1:
        return [f"{name}: {outcome.scores[key]:.4f}"]
    names = {found: f"{name if found == key else found}:" for found in outcome.scores}
    width = max(map(len, names.values()))
    lines = [f"{'score':<{width}}  {'value':>12}  better  meaning"]
    for found, value in outcome.scores.items():
        kind = kind_of(found)
        line = f"{names[found]:<{width}}  {value:>12.6g}  {kind.better:<6}  {kind.meaning}"
        lines.append(line.rstrip())
    return lines


def save_predicted_statistics(
    settings: Settings, ranks: Ranks, path: Path, keep_features: bool
) -> None:
    """Write the statistics of the predicted images to an npz that pytorch-fid reads too."""
    alone = replace(settings, mask_path=None)
    inputs = ranks.on_first(lambda: resolve_inputs(alone, need_reference=False))
    scorer = Scorer(settings, ranks)
    statistics = scorer.statistics(inputs.predicted, keep_features)
    ranks.on_first(lambda: save_statistics(path, statistics, scorer.provenance))
