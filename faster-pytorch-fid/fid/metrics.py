"""Metrics of two feature sets besides the Frechet distance, and the meaning of every number.

n images, d feature size; features are (n, d) float64 on any device.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fid.files import ScoreError

KERNEL_SUBSETS = 100
KERNEL_SUBSET_SIZE = 1000
NEIGHBOURS = 3  # of precision and recall
COVERAGE_NEIGHBOURS = 5  # as Naeem et al. advise
CHUNK_ROWS = 4096  # of a distance matrix at once
OF_DISTANCES, OF_SHARES, OF_OTHERS = 1e-3, 5e-3, 1e-5  # tolerances; a share moves by an image


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


def default_subset_size(count1: int, count2: int) -> int:
    """1000 as usual; with fewer images half of them, so that subsets differ."""
    smaller = min(count1, count2)
    return KERNEL_SUBSET_SIZE if smaller > KERNEL_SUBSET_SIZE else max(2, smaller // 2)


def kernel_distance(
    features1: Tensor, features2: Tensor, subset_size: int, seed: int
) -> tuple[float, float]:
    """KID (Binkowski et al. 2018): unbiased squared MMD with the kernel (x.y / d + 1)^3.

    Its mean and deviation over subsets, which are those of torch-fidelity for the same seed.
    """
    rng = np.random.RandomState(seed)
    estimates = []
    for _ in range(KERNEL_SUBSETS):
        pick1 = rng.choice(len(features1), subset_size, replace=False)
        pick2 = rng.choice(len(features2), subset_size, replace=False)
        estimates.append(float(squared_mmd(features1[pick1], features2[pick2])))
    return float(np.mean(estimates)), float(np.std(estimates))


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased estimate of MMD^2, (m, d), (m, d) -> scalar (Gretton et al. 2012, lemma 6)."""
    m = len(x)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    within = sum(k.sum() - k.trace() for k in (kernel(x, x), kernel(y, y)))
    return within / (m * (m - 1)) - 2 * kernel(x, y).mean()


def precision_recall(predicted: Tensor, reference: Tensor) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019), k = 3.

    Precision: share of predicted features inside some reference feature's ball, whose radius is the
    distance to its third neighbour; recall: the same with the roles exchanged. Raises `ScoreError`
    for fewer than four images in a set.
    """
    if min(len(predicted), len(reference)) <= NEIGHBOURS:
        raise ScoreError(f"--metrics prc: needs more than {NEIGHBOURS} images in each set")
    return _covered(predicted, reference), _covered(reference, predicted)


def _covered(points: Tensor, centres: Tensor) -> float:
    """Share of points inside at least one centre's ball, (n, d), (m, d)."""
    radii = neighbour_distances(centres, NEIGHBOURS)
    inside = [(torch.cdist(c, centres) <= radii).any(dim=1) for c in points.split(CHUNK_ROWS)]
    return float(torch.cat(inside).double().mean())


def neighbour_distances(points: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th nearest other one, (n, d) -> (n,)."""
    distances = (torch.cdist(chunk, points) for chunk in points.split(CHUNK_ROWS))
    return torch.cat([rows.kthvalue(k + 1).values for rows in distances])  # + 1: itself


def density_coverage(predicted: Tensor, reference: Tensor) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, equations 3 and 4), k = 5.

    Density: mean number of reference balls around a predicted feature, over k; coverage: share of
    reference balls with a predicted feature inside. Raises `ScoreError` for fewer than six
    reference images.
    """
    k = COVERAGE_NEIGHBOURS
    if len(reference) <= k:
        raise ScoreError(f"--metrics density: needs more than {k} images of ground truth")
    radii = neighbour_distances(reference, k)
    inside, reached = 0, torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    for chunk in predicted.split(CHUNK_ROWS):
        balls = torch.cdist(chunk, reference) < radii  # (rows, m)
        inside += int(balls.sum())
        reached |= balls.any(dim=0)
    return inside / (k * len(predicted)), float(reached.double().mean())


def discriminative_scores(
    predicted: Tensor, reference: Tensor, is_paired: bool
) -> tuple[float | None, float]:
    """P-IDS and U-IDS (Zhao et al. 2021, section 4): how often a linear SVM errs, 0 to 1.

    P-IDS: share of pairs whose prediction it scores as more real than the truth, None if the sets
    are not paired. U-IDS: share of all images that it misclassifies. Raises `ScoreError` if
    scikit-learn is not installed.
    """
    try:
        from sklearn.svm import LinearSVC
    except ImportError:
        install = "scikit-learn is missing (pip install scikit-learn)"
        raise ScoreError(f"--metrics ids: {install}") from None
    fake, real = (features.cpu().numpy() for features in (predicted, reference))
    features = np.concatenate([fake, real])
    is_real = np.repeat([False, True], [len(fake), len(real)])
    machine = LinearSVC(dual=False, random_state=0).fit(features, is_real)
    unpaired = 1 - float(machine.score(features, is_real))
    if not is_paired:
        return None, unpaired
    confused = machine.decision_function(fake) > machine.decision_function(real)
    return float(confused.mean()), unpaired


def nearness(predicted: Tensor, reference: Tensor, train: Tensor) -> tuple[float, float, float]:
    """Whether predictions memorise the training set: (n, d), (n, d) in pairs, (m, d).

    Mean distances of predictions and of truths to the nearest training feature, and the share of
    pairs, 0 to 1, whose prediction is nearer to it than its truth.
    """
    fake, real = (
        torch.cat([torch.cdist(c, train).amin(dim=1) for c in rows.split(CHUNK_ROWS)])
        for rows in (predicted, reference)
    )
    return float(fake.mean()), float(real.mean()), float((fake < real).double().mean())
