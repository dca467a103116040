"""KID, precision, recall, paired errors and the interval, against independent implementations."""

import numpy as np
import pytest
import skimage.metrics
import torch
from fid.files import ScoreError
from fid.inputs import open_images
from fid.metrics import (
    default_subset_size,
    density_coverage,
    discriminative_scores,
    frechet_distance,
    kernel_distance,
    nearness,
    precision_recall,
    squared_mmd,
)
from fid.paired import paired_metrics, psnr, read_hole, ssim
from fid.scoring import bootstrap_interval, kind_of
from fid.statistics import FeatureStatistics
from fid_test_images import draw_images, write_folder
from sklearn.svm import LinearSVC
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric


def normal(count: int, seed: int, shift: float = 0.0, dims: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dims, generator=generator, dtype=torch.float64) + shift


def test_kid_equals_torch_fidelitys_on_the_same_subsets():
    first, second = normal(40, 1), normal(50, 2, 0.3)
    theirs = kid_features_to_metric(
        first, second, kid_subset_size=20, kid_subsets=100, rng_seed=7, verbose=False
    )
    mean, deviation = kernel_distance(first, second, subset_size=20, seed=7)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    assert deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-6)


def test_squared_mmd_of_two_pairs_is_worked_by_hand():
    # d = 1, kernel (xy + 1)^3. x = (0, 1), y = (1, 1): k(x1,x2) = 1, k(y1,y2) = 8,
    # cross: k(0,1) = 1 twice, k(1,1) = 8 twice, mean 4.5: 1 + 8 - 2 * 4.5 = 0
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [1.0]])
    assert float(squared_mmd(x, y)) == pytest.approx(0, abs=1e-6)
    # y = (2, 2): 1 + 125 - 2 * (1 + 27) / 2 = 98
    assert float(squared_mmd(x, torch.tensor([[2.0], [2.0]]))) == pytest.approx(98)


def test_subsets_of_few_images_differ_from_one_another():
    assert default_subset_size(747, 800) == 373
    assert default_subset_size(5000, 2000) == 1000
    assert default_subset_size(2, 3) == 2


def test_precision_and_recall_equal_torch_fidelitys():
    predicted, reference = normal(60, 1, 0.5), 1.3 * normal(70, 2)
    theirs = prc_features_to_metric(
        predicted,
        reference,
        prc_neighborhood=3,
        prc_batch_size=100,
        save_cpu_ram=False,
        verbose=False,
    )
    precision, recall = precision_recall(predicted, reference)
    assert 0 < precision < 1
    assert precision == pytest.approx(theirs["precision"], abs=1e-6)
    assert recall == pytest.approx(theirs["recall"], abs=1e-6)


def test_memory_is_bounded_by_the_number_of_distances_and_changes_no_score(monkeypatch):
    def scores() -> tuple[float, ...]:
        sets = normal(70, 1, 0.5), normal(70, 2)
        return *precision_recall(*sets), *density_coverage(*sets), *nearness(*sets, normal(30, 3))

    whole, sizes, cdist = scores(), [], torch.cdist
    monkeypatch.setattr("fid.metrics.DISTANCES", 200)
    monkeypatch.setattr(torch, "cdist", lambda *sets: sizes.append(cdist(*sets)) or sizes[-1])
    assert scores() == whole
    assert 70 < max(rows.numel() for rows in sizes) <= 200


def test_collapsed_predictions_are_precise_but_do_not_cover():
    # All predictions sit at the middle of a line of reference points.
    reference = torch.arange(9, dtype=torch.float64)[:, None]
    predicted = torch.full((6, 1), 4.1, dtype=torch.float64)
    assert precision_recall(predicted, reference) == (1.0, 0.0)
    with pytest.raises(ScoreError, match="more than 3 images"):
        precision_recall(predicted[:3], reference)


def statistics(features: torch.Tensor) -> FeatureStatistics:
    return FeatureStatistics.of(features, keep_features=True)


@pytest.mark.parametrize("dims", [4, 64])
def test_the_interval_holds_the_distance_and_repeats_with_its_seed(dims):
    sets = statistics(normal(30, 1, 0.2, dims)), statistics(normal(30, 2, 0, dims))
    found = bootstrap_interval(*sets, paired=False, samples=40, seed=3)
    assert found.low < frechet_distance(*sets)[0] < found.high
    assert found.bias > 0  # repeated images alone raise the distance
    assert bootstrap_interval(*sets, paired=False, samples=40, seed=3) == found
    assert bootstrap_interval(*sets, paired=False, samples=40, seed=4) != found


def test_pairs_are_drawn_together():
    # Predictions that equal the truth up to a shift: every paired sample has the same distance.
    truth = normal(20, 1)
    sets = statistics(truth + 2), statistics(truth)
    paired = bootstrap_interval(*sets, paired=True, samples=10, seed=0)
    # 8 dims moved by 2, equal covariances: 8 x 4 each time
    assert (paired.low, paired.high, paired.bias) == pytest.approx((32, 32, 0), abs=1e-6)
    free = bootstrap_interval(*sets, paired=False, samples=10, seed=0)
    assert free.high - free.low > 1


def test_the_interval_is_that_of_numpys_draws():
    first, second = normal(30, 1, dims=3).numpy(), normal(30, 2, 0.5, dims=3).numpy()

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
        root = np.sqrt(np.linalg.eigvals(s1 @ s2).real).sum()
        return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * root

    rng = np.random.default_rng(5)
    draws = [
        distance(first[rng.integers(30, size=30)], second[rng.integers(30, size=30)])
        for _ in range(20)
    ]
    bias = np.mean(draws) - distance(first, second)
    sets = statistics(torch.from_numpy(first)), statistics(torch.from_numpy(second))
    found = bootstrap_interval(*sets, paired=False, samples=20, seed=5)
    assert found.bias == pytest.approx(bias)
    expected = np.percentile(draws, [2.5, 97.5]) - bias
    assert (found.low, found.high) == pytest.approx(tuple(expected))


def test_ssim_and_psnr_equal_scikit_images():
    first, second = (draw_images(1, seed, side=20)[0] for seed in (1, 2))
    expected = skimage.metrics.structural_similarity(
        first,
        second,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=2,
    )
    assert ssim(first, second) == pytest.approx(expected, rel=1e-6)
    expected = skimage.metrics.peak_signal_noise_ratio(first, second, data_range=255)
    assert psnr(first.astype(int) - second) == pytest.approx(expected)
    assert psnr(first.astype(int) - first) == 100


def test_no_image_has_a_higher_psnr_than_an_identical_one():
    error = np.zeros((1000, 1000))
    error[0, 0] = 1
    assert psnr(error) == psnr(error * 0) == 100


def test_hole_errors_count_only_hidden_pixels(tmp_path):
    truth = [np.full((12, 12, 3), 100, np.uint8)] * 2
    mask = np.full((12, 12), 255, np.uint8)
    mask[:2] = 0  # 24 hidden pixels
    repaired = truth[0].copy()
    repaired[:2] = 110
    repaired[5] = 0  # an error outside the hole
    folders = [
        open_images(write_folder(tmp_path / name, images))
        for name, images in (
            ("p", [repaired, repaired]),
            ("t", truth),
            ("m", [mask, np.full_like(mask, 255)]),  # the second pair has no hole
        )
    ]
    found = paired_metrics(*folders)
    assert found["hole_mae"] == pytest.approx(10)
    assert found["hole_psnr"] == pytest.approx(10 * np.log10(255**2 / 10**2))
    assert "hole_mae" not in paired_metrics(folders[0], folders[1], None)


def test_masks_of_two_dark_values_are_refused_with_a_threshold_too(tmp_path):
    masks = open_images(write_folder(tmp_path / "m", [np.uint8([[0, 2], [2, 2]])] * 2))
    masks.threshold = 128
    with pytest.raises(ScoreError, match="values 0 to 2, all below 128; known is 255"):
        read_hole(masks, 0)


def test_pairs_must_match_in_size(tmp_path):
    small, large = (
        open_images(write_folder(tmp_path / str(side), draw_images(2, 0, side)))
        for side in (16, 20)
    )
    with pytest.raises(ScoreError, match=r"image_000.png is 16 x 16, .*image_000.png 20 x 20"):
        paired_metrics(small, large, None)
    masks = open_images(write_folder(tmp_path / "m", [np.zeros((20, 20), np.uint8)] * 2))
    with pytest.raises(ScoreError, match=r"16/image_000.png is 16 x 16, .*m/image_000.png 20"):
        paired_metrics(small, small, masks)


def test_every_number_of_all_metrics_has_a_kind():
    kinds = {
        "fid": ("lower", 1e-3),
        "frechet_distance_inception_64_low": ("", 1e-3),
        "hole_fid": ("lower", 1e-3),
        "kid_mean": ("lower", 1e-5),
        "kernel_distance_dinov2_deviation": ("", 1e-5),
        "recall": ("higher", 5e-3),
        "u_ids_dinov2": ("higher", 5e-3),
        "hole_mae": ("lower", 1e-5),
        "nearest_train": ("", 1e-5),
        "nearer_to_train_than_truth": ("", 5e-3),
    }
    assert {key: (kind_of(key).better, kind_of(key).tolerance) for key in kinds} == kinds


# Density and coverage


def test_density_and_coverage_are_worked_by_hand():
    reference = torch.arange(7.0, dtype=torch.float64)[:, None]
    # radii 5, 4, 3, 3, 3, 4, 5 (fifth nearest other point); -3 lies in the balls of 0 alone (3 < 5)
    # and of 1 not (4 is not < 4)
    density, coverage = density_coverage(torch.tensor([[-3.0]]).double(), reference)
    assert density == pytest.approx(1 / 5)
    assert coverage == pytest.approx(1 / 7)
    # 3 lies in all 7 balls
    density, coverage = density_coverage(torch.tensor([[3.0]]).double(), reference)
    assert density == pytest.approx(7 / 5)
    assert coverage == 1.0


def test_equal_sets_are_covered_and_far_ones_are_not():
    points = normal(100, 0)
    density, coverage = density_coverage(points, points)
    assert coverage == 1.0
    assert density == pytest.approx(1.0, abs=0.3)
    assert density_coverage(points + 1000, points) == (0.0, 0.0)


def test_equal_features_are_at_distance_0_although_products_round():
    points = normal(100, 0, dims=512)
    # each ball holds its own point and the four nearer than its radius: 5 of k = 5
    assert density_coverage(points, points) == (1.0, 1.0)
    assert nearness(points[:50], points[50:], points) == (0.0, 0.0, 0.0)


def test_coverage_needs_more_images_than_neighbours():
    with pytest.raises(ScoreError, match="needs more than 5 images of ground truth"):
        density_coverage(normal(9, 0), normal(5, 1))


# P-IDS and U-IDS


def test_discriminative_scores_are_those_of_scikit_learns_machine():
    fake, real = normal(60, 1), normal(60, 2, shift=0.4)
    features, labels = np.concatenate([fake, real]), np.repeat([0, 1], 60)
    machine = LinearSVC(dual=False).fit(features, labels)
    errs = (machine.predict(features) != labels).mean()
    score = features @ machine.coef_[0]
    paired, unpaired = discriminative_scores(fake, real, is_paired=True)
    assert unpaired == pytest.approx(errs)
    assert paired == pytest.approx((score[:60] > score[60:]).mean())
    assert 0 < paired < 0.5


def test_sets_that_a_plane_parts_score_nothing():
    fake, real = normal(50, 1), normal(40, 2, shift=100)
    assert discriminative_scores(fake, real, is_paired=False) == (None, 0.0)


# Nearness to the training set


def test_a_copy_of_a_training_image_is_nearer_than_its_truth():
    train = torch.tensor([[0.0, 0.0], [10.0, 0.0]]).double()
    copied, own = torch.tensor([[0.0, 0.0]]).double(), torch.tensor([[3.0, 4.0]]).double()
    predicted, reference = torch.cat([copied, copied, own]), torch.cat([own, own, copied])
    assert nearness(predicted, reference, train) == pytest.approx((5 / 3, 10 / 3, 2 / 3))


# Known answers of others


@pytest.mark.parametrize(
    ("seed", "shape", "expected"),
    [
        (1, (4, 4), 4.7538376),
        (2023, (64, 16), 2.5895579),
    ],
)
def test_the_distance_is_torch_fidelitys_of_its_own_recipe(seed, shape, expected):
    random = np.random.RandomState(seed)
    both = []
    for _ in range(2):
        statistics = FeatureStatistics(shape[1])
        statistics.update(torch.from_numpy(random.randn(*shape)))
        both.append(statistics)
    assert frechet_distance(*both)[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.long  # in few dimensions the tests above take the same root
def test_a_shift_by_one_in_2048_dimensions_is_2048_exactly():
    zeros, eye = torch.zeros(2048), torch.eye(2048)
    both = (FeatureStatistics.from_moments(mean, eye, None) for mean in (zeros, zeros + 1))
    assert frechet_distance(*both)[0] == pytest.approx(2048, abs=1e-6)


def test_predictions_inside_a_wide_truth_are_precise_and_recall_little():
    wide, narrow = normal(500, 1) * 3, normal(500, 2)
    precision, recall = precision_recall(narrow, wide)
    assert precision > 0.8
    assert recall < 0.3
