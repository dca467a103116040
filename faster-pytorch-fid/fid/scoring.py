"""From settings to scores: the requested metrics of both sets, and what each number means."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fid.extraction import Scorer, size_of
from fid.features import Backend
from fid.files import ScoreError, note
from fid.images import ImageSet
from fid.inputs import METRICS, Inputs, Settings, open_predicted, resolve_inputs
from fid.metrics import (
    NOT_FINITE,
    Route,
    check_counts,
    default_subset_size,
    density_coverage,
    discriminative_scores,
    frechet_distance,
    kernel_distance,
    linear_svm,
    nearness,
    precision_recall,
)
from fid.paired import check_window, paired_metrics
from fid.process import Ranks
from fid.statistics import FeatureStatistics, has_array, save_statistics

NEED_FEATURES = {"kid", "prc", "density", "ids", "bootstrap"}
NEED_PAIRS = {"paired", "hole", "train"}  # of images; the last is asked for by --train-path
INTERVAL = 0.95  # share of the bootstrap distances in their interval
OF_DISTANCES, OF_SHARES, OF_OTHERS = 1e-3, 5e-3, 1e-5  # tolerances; a share moves by an image


@dataclass(frozen=True)
class Outcome:
    """Scores by key (JSON) and their inputs; the inputs are hashed on demand."""

    scores: dict[str, float]
    route: Route
    subset_size: int | None
    inputs: Inputs
    counts: tuple[int | None, int | None]  # predicted, distinct truths; None: unknown
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
    scores = {key("fid"): distance} | ranks.on_first(
        lambda: _further_scores(settings, metrics, inputs, key, sides, train, hole)
    )
    if not all(map(math.isfinite, scores.values())):
        raise ScoreError(NOT_FINITE)
    truths = inputs.truths
    counts = predicted.count, reference.count if truths is None else len(truths)
    subset_size = default_subset_size(*counts) if "kid" in metrics else None
    return Outcome(scores, route, subset_size, inputs, counts, scorer.backend, scorer.device)


def _checked_metrics(settings: Settings, inputs: Inputs) -> tuple[str, ...]:
    """The metrics to compute; refuses those that the inputs do not allow before the features."""
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
            lacking = need_images if has_array(source, "features") else need_images | need_features
            if name := next((name for name in metrics if name in lacking), None):
                flag = "--train-path" if name == "train" else f"--metrics {name}"
                raise ScoreError(f"{flag}: needs images, {source} contains statistics only")
    if "hole" in metrics and inputs.masks is None:
        raise ScoreError("--metrics hole: needs masks; give --mask-path")
    if NEED_PAIRS.intersection(metrics):
        for name, others in (("ground truth", reference), ("masks", inputs.masks)):
            if others is not None and len(others) != len(predicted):
                raise ScoreError(
                    f"pairs are needed: {predicted.path} has {len(predicted)} images, the "
                    f"{name} {others.path} has {len(others)}"
                )
    if "ids" in metrics:
        linear_svm()
    if "paired" in metrics:
        check_window(predicted.pixels(0))
    if inputs.truths is not None and isinstance(predicted, ImageSet):
        check_counts(metrics, len(predicted), len(inputs.truths))
    return metrics


def _further_scores(
    settings: Settings,
    metrics: tuple[str, ...],
    inputs: Inputs,
    key: Callable[[str], str],
    sides: tuple[FeatureStatistics, FeatureStatistics],
    train: FeatureStatistics | None,
    hole: float | None,
) -> dict[str, float]:
    """The scores besides the distance of whole images, in table order."""
    predicted, reference = features = [side.features() for side in sides]
    truths = inputs.truths
    if truths is not None and reference is not None:  # a copy would be its nearest neighbour
        reference = reference[truths]
    fid, kid, seed = key("fid"), key("kid"), settings.seed
    scores: dict[str, float] = {}
    if "bootstrap" in metrics:
        interval = bootstrap_interval(*sides, inputs.paired, settings.bootstrap_samples, seed)
        scores |= {f"{fid}_low": interval.low, f"{fid}_high": interval.high}
        scores[f"{fid}_bootstrap_bias"] = interval.bias
    if hole is not None:
        scores[f"hole_{fid}"] = hole
    if "kid" in metrics:
        size = default_subset_size(len(predicted), len(reference))
        mean, deviation = kernel_distance(predicted, reference, size, seed)
        scores |= {f"{kid}_mean": mean, f"{kid}_deviation": deviation}
    if "prc" in metrics:
        scores["precision"], scores["recall"] = precision_recall(predicted, reference)
    if "density" in metrics:
        scores["density"], scores["coverage"] = density_coverage(predicted, reference)
    if "ids" in metrics:
        paired, unpaired = discriminative_scores(*features, len(features[0]) == len(features[1]))
        if paired is not None:
            scores[key("p_ids")] = paired
        scores[key("u_ids")] = unpaired
    if "paired" in metrics:
        scores |= paired_metrics(inputs.predicted, inputs.reference, inputs.masks)
    if train is not None:
        names = "nearest_train", "nearest_train_of_truth", "nearer_to_train_than_truth"
        scores |= zip(names, nearness(*features, train.features()), strict=True)
    return scores


def save_predicted_statistics(
    settings: Settings, ranks: Ranks, path: Path, keep_features: bool
) -> None:
    """Write the statistics of the predicted images to an npz that pytorch-fid reads too."""
    predicted, _ = ranks.on_first(lambda: open_predicted(settings))
    if isinstance(predicted, Path):  # its own provenance would be replaced by this network's
        raise ScoreError(f"{predicted}: --save-stats reads images, this file has statistics")
    scorer = Scorer(settings, ranks)
    statistics = scorer.statistics(predicted, keep_features)
    own = scorer.backend.provenance
    ranks.on_first(lambda: save_statistics(path, statistics, own | {"size": size_of(predicted)}))


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
    low, high = np.quantile(distances, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2]) - bias
    return Interval(float(low), float(high), bias)


class Kind(NamedTuple):
    """A kind of number: the better direction, its meaning, and its tolerance between machines."""

    key: str  # a regular expression
    better: str
    meaning: str
    tolerance: float  # absolute, on top of a ten-thousandth of the number


KINDS = (  # the first that fits; what each tells and does not: docs/scorer.md
    Kind(r".*_low", "", "start of its 95 % interval over other images", OF_DISTANCES),
    Kind(r".*_high", "", "end of that interval", OF_DISTANCES),
    Kind(r".*_bootstrap_bias", "", "what redrawing adds; taken out of it", OF_DISTANCES),
    Kind(r"hole_(fid|frechet.*)", "lower", "around the largest hole of each image", OF_DISTANCES),
    Kind(r"fid|frechet.*", "lower", "whole images", OF_DISTANCES),
    Kind(r"k.*_mean", "lower", "mean of 100 subsets; may be negative near 0", OF_OTHERS),
    Kind(r"k.*_deviation", "", "deviation of these subsets", OF_OTHERS),
    Kind(r"precision", "higher", "share of images like true ones, 0 to 1", OF_SHARES),
    Kind(r"recall", "higher", "share of true images like these, 0 to 1", OF_SHARES),
    Kind(r"density", "higher", "precision by counts; near 1 for equal sets", OF_SHARES),
    Kind(r"coverage", "higher", "share of true images with one nearby, 0 to 1", OF_SHARES),
    Kind(r"p_ids.*", "higher", "share of pairs that a linear SVM confuses; at best 0.5", OF_SHARES),
    Kind(r"u_ids.*", "higher", "share that it takes for the other kind; at best 0.5", OF_SHARES),
    Kind(r"psnr", "higher", "dB, whole images", OF_OTHERS),
    Kind(r"ssim", "higher", "whole images, 1 where equal", OF_OTHERS),
    Kind(r"hole_mae", "lower", "mean error in the hole, of 255", OF_OTHERS),
    Kind(r"hole_psnr", "higher", "dB, in the hole", OF_OTHERS),
    Kind(r"nearest_train", "", "feature distance to the nearest training image", OF_OTHERS),
    Kind(r"nearest_train_of_truth", "", "the same of the true images", OF_OTHERS),
    Kind(r"nearer.*", "", "share nearer than their truths; near 1: copies", OF_SHARES),
    Kind(r".*", "", "", OF_OTHERS),
)


def kind_of(key: str) -> Kind:
    """What the number of that key is."""
    return next(kind for kind in KINDS if re.fullmatch(kind.key, key))
