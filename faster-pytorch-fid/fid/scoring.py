"""From settings to scores: statistics of both sides, then the metrics that were asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from fid.crops import HoleCrops, hole_boxes
from fid.extraction import Ranks
from fid.features import FID_HASH_PREFIX, Backend
from fid.files import ScoreError
from fid.frechet import Route, bootstrap_interval, frechet_distance
from fid.inputs import PAIRED, Inputs, Settings, Source, in_one_size, open_source, resolve_inputs
from fid.metrics import (
    default_subset_size,
    density_coverage,
    discriminative_scores,
    kernel_distance,
    nearness,
    precision_recall,
)
from fid.paired import paired_metrics
from fid.scorer import Scorer
from fid.statistics import (
    FeatureStatistics,
    has_features,
    save_statistics,
)

NEED_FEATURES = {"kid", "prc", "density", "ids", "bootstrap"}


@dataclass(frozen=True)
class Outcome:
    """Scores by key (JSON) with what they were computed from; the sources are hashed on demand."""

    scores: dict[str, float]
    distance_name: str
    route: Route
    subset_size: int | None
    inputs: Inputs
    train: Source | None
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
            need_pairs=bool(PAIRED.intersection(settings.metrics) or settings.train_path),
            recursive=settings.recursive,
        )
    )
    assert inputs.reference is not None
    _check_metrics(settings, inputs)
    inputs = in_one_size(inputs, settings.resize)
    train = ranks.on_first(lambda: _train_source(settings))
    scorer = Scorer(settings, ranks)
    backend = scorer.backend
    keep = bool(NEED_FEATURES.intersection(settings.metrics) or train)
    predicted = scorer.statistics(inputs.predicted, keep)
    reference = scorer.reference(inputs.reference, keep)
    extra = {}
    if "hole" in settings.metrics:
        extra[f"hole_{backend.distance_key}"] = _hole_distance(scorer, inputs)
    if train is not None:
        known = scorer.reference(train, keep_features=True)
        found = nearness(predicted.features(), reference.features(), known.features())
        extra["nearest_train"], extra["nearest_train_of_truth"] = found.predicted, found.reference
        extra["nearer_to_train_than_truth"] = found.nearer
    work = _Metrics(settings, inputs, backend, predicted, reference)
    scores, route, subset_size = ranks.on_first(work.compute)
    scores |= extra
    return Outcome(
        scores=scores,
        distance_name=backend.distance,
        route=route,
        subset_size=subset_size,
        inputs=inputs,
        train=train,
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
        if "density" in settings.metrics:
            found = density_coverage(self.predicted.features(), self.reference.features())
            scores["density"], scores["coverage"] = found
        if "ids" in settings.metrics:
            self._discriminative_scores(scores)
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

    def _discriminative_scores(self, scores: dict[str, float]) -> None:
        features = self.predicted.features(), self.reference.features()
        is_paired = len(features[0]) == len(features[1])
        suffix = self.backend.kernel_key.removeprefix("kid").removeprefix("kernel_distance")
        paired, scores[f"u_ids{suffix}"] = discriminative_scores(*features, is_paired)
        if paired is not None:
            scores[f"p_ids{suffix}"] = paired

    def _kernel_distance(self, scores: dict[str, float]) -> int:
        size = default_subset_size(self.predicted.count, self.reference.count)
        features = self.predicted.features(), self.reference.features()
        found = kernel_distance(*features, size, self.settings.seed)
        key = self.backend.kernel_key
        scores[f"{key}_mean"], scores[f"{key}_deviation"] = found.mean, found.deviation
        return size


def _train_source(settings: Settings) -> Source | None:
    """The training images, in the size of the others."""
    if settings.train_path is None:
        return None
    source = open_source(Path(settings.train_path), None, settings.recursive)
    return in_one_size(Inputs(source, None, None, paired=False), settings.resize).predicted


def _hole_distance(scorer: Scorer, inputs: Inputs) -> float:
    """Frechet distance of the surroundings of holes; every rank takes part."""
    boxes = scorer.ranks.on_first(lambda: hole_boxes(inputs.masks))
    if len(boxes) < 2:
        raise ScoreError(f"--metrics hole: {len(boxes)} of the masks have a hole; needed are 2")
    sides = (HoleCrops(images, boxes) for images in (inputs.predicted, inputs.reference))
    return frechet_distance(*(scorer.statistics(side, keep_features=False) for side in sides))[0]


def _check_metrics(settings: Settings, inputs: Inputs) -> None:
    """Refuse, before the long part, metrics that the inputs cannot give."""
    for source, fixed in ((inputs.predicted, set()), (inputs.reference, {"bootstrap"})):
        wanted = (NEED_FEATURES | {"paired", "hole"}) - fixed
        if isinstance(source, Path) and has_features(source):
            wanted -= NEED_FEATURES
        if isinstance(source, Path) and wanted.intersection(settings.metrics):
            name = next(name for name in settings.metrics if name in wanted)
            raise ScoreError(f"--metrics {name}: needs images, {source} holds statistics only")
    if "hole" in settings.metrics and inputs.masks is None:
        raise ScoreError("--metrics hole: needs masks; give --mask-path")
    in_pairs = "paired" in settings.metrics or "hole" in settings.metrics or settings.train_path
    if in_pairs and len(inputs.predicted) != len(inputs.reference):
        raise ScoreError(
            f"pairs are needed: {inputs.predicted.path} has {len(inputs.predicted)} images, the "
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
    if any(key.endswith("_mean") and value < 0 for key, value in outcome.scores.items()):
        found.append("the kernel distance is estimated without bias, so near 0 it may be negative")
    files = [
        side
        for side in (outcome.inputs.predicted, outcome.inputs.reference)
        if isinstance(side, Path)
    ]
    if files and any(key.startswith("p_ids") for key in outcome.scores):
        found.append(f"P-IDS takes the rows of {files[0]} for those of the other side, in order")
    if outcome.backend.name == "inception":
        sha256 = outcome.backend.weights_sha256
        if not sha256.startswith(FID_HASH_PREFIX):
            found.append(
                f"not the public FID weights (sha256 begins {sha256[:8]}, theirs {FID_HASH_PREFIX})"
                ": compare only with scores of the same weights"
            )
    return found


def save_predicted_statistics(
    settings: Settings, ranks: Ranks, path: Path, keep_features: bool
) -> None:
    """Write the statistics of the predicted images to an npz that pytorch-fid reads too."""
    inputs = ranks.on_first(
        lambda: resolve_inputs(
            settings.predicted_path, None, None, False, recursive=settings.recursive
        )
    )
    inputs = in_one_size(inputs, settings.resize)
    scorer = Scorer(settings, ranks)
    statistics = scorer.statistics(inputs.predicted, keep_features)
    ranks.on_first(lambda: save_statistics(path, statistics, scorer.provenance))
