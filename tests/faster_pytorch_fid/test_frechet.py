"""The distance: closed forms, the routes against each other and against SciPy's matrix root."""

import numpy as np
import pytest
import scipy.linalg
import torch
from fid.files import ScoreError
from fid.metrics import (
    frechet_distance,
    symmetric_factor,
    trace_sqrt_eigen,
    trace_sqrt_legacy,
    trace_sqrt_nuclear,
)
from fid.statistics import FeatureStatistics
from pytorch_fid.fid_score import calculate_frechet_distance


def moments(mean, covariance) -> FeatureStatistics:
    mean, covariance = torch.as_tensor(mean), torch.as_tensor(covariance)
    return FeatureStatistics.from_moments(mean, covariance, count=None)


def statistics(features: torch.Tensor, keep: bool = False) -> FeatureStatistics:
    found = FeatureStatistics(features.shape[1], keep_features=keep)
    found.update(features)
    return found


def sample(count: int, dims: int, seed: int) -> torch.Tensor:
    """Correlated, shifted features."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dims, dims, generator=generator, dtype=torch.float64) / dims**0.5
    noise = torch.randn(count, dims, generator=generator, dtype=torch.float64)
    return noise @ mix + 0.1 * seed


def test_frechet_distance_of_shifted_scaled_gaussians_has_its_closed_form():
    # N(0, I) against N(3, 4I) in 4 dimensions: 9*4 + 4*(1-2)^2 = 40
    first = moments(torch.zeros(4), torch.eye(4))
    second = moments(torch.full((4,), 3.0), 4 * torch.eye(4))
    for legacy in (False, True):
        assert frechet_distance(first, second, legacy)[0] == pytest.approx(40)


def test_frechet_distance_of_diagonal_gaussians_adds_up_over_the_axes():
    # per axis (m1 - m2)^2 + (s1 - s2)^2 with deviations 1, 2, 3 and 2, 2, 0 (singular)
    first = moments(torch.tensor([0.0, 1.0, 0.0]), torch.diag(torch.tensor([1.0, 4.0, 9.0])))
    second = moments(torch.zeros(3), torch.diag(torch.tensor([4.0, 4.0, 0.0])))
    assert frechet_distance(first, second)[0] == pytest.approx(1 + 1 + 0 + 9, abs=1e-9)


def test_frechet_distance_of_rank_one_sets_has_its_closed_form():
    # Two points each: S1 = 2 e1 e1^T, S2 = 8 u u^T with u at 60 degrees to e1, so that
    # tr sqrt(S1 S2) = sqrt(2 * 8) * cos(60 deg) = 2, and both means are 0: 2 + 8 - 2 * 2 = 6
    first = torch.tensor([[1.0, 0, 0], [-1, 0, 0]])
    second = 2 * torch.tensor([[0.5, 0.75**0.5, 0], [-0.5, -(0.75**0.5), 0]])
    distance, route = frechet_distance(statistics(first), statistics(second))
    assert route == "nuclear"
    assert distance == pytest.approx(6, rel=1e-6)  # the inputs are float32


def test_a_set_has_no_distance_from_itself():
    features = sample(10, 24, 0)
    assert frechet_distance(statistics(features), statistics(features))[0] < 1e-9


@pytest.mark.parametrize(
    ("n1", "n2", "route"),
    [(9, 12, "nuclear"), (9, 60, "eigen"), (60, 9, "eigen"), (60, 70, "eigen")],
)
def test_every_route_agrees_with_the_symmetric_root_of_the_covariances(n1, n2, route):
    first, second = sample(n1, 24, 1), sample(n2, 24, 2)
    distance, taken = frechet_distance(statistics(first), statistics(second))
    s1, s2 = np.cov(first.numpy(), rowvar=False), np.cov(second.numpy(), rowvar=False)
    values, vectors = scipy.linalg.eigh(s1)
    root1 = vectors * np.sqrt(values.clip(0)) @ vectors.T
    trace = np.sqrt(scipy.linalg.eigvalsh(root1 @ s2 @ root1).clip(0)).sum()
    shift = (first.mean(0) - second.mean(0)).numpy()
    expected = shift @ shift + np.trace(s1) + np.trace(s2) - 2 * trace
    assert taken == route
    assert distance == pytest.approx(expected, rel=1e-6)


def test_nuclear_and_eigen_routes_agree_on_singular_covariances():
    features = [statistics(sample(n, 40, n)) for n in (15, 20)]
    f1, f2 = (s.factor() for s in features)
    s1, s2 = (s.covariance() for s in features)
    nuclear = trace_sqrt_nuclear(f1, f2)
    assert float(trace_sqrt_eigen(f1, s2)) == pytest.approx(float(nuclear), rel=1e-6)
    assert float(trace_sqrt_eigen(symmetric_factor(s1), s2)) == pytest.approx(
        float(nuclear), rel=1e-6
    )


def test_full_rank_trace_equals_scipys_matrix_root():
    s1, s2 = (statistics(sample(80, 24, seed)).covariance() for seed in (1, 2))
    expected = np.trace(scipy.linalg.sqrtm((s1 @ s2).numpy())).real
    assert float(trace_sqrt_eigen(symmetric_factor(s1), s2)) == pytest.approx(expected, rel=1e-9)
    assert trace_sqrt_legacy(s1.numpy(), s2.numpy()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [12, 60])
def test_legacy_route_repeats_pytorch_fid_on_singular_and_full_rank_sets(count):
    sets = [statistics(sample(count, 24, seed)) for seed in (1, 2)]
    arrays = [a.numpy() for s in sets for a in (s.mean(), s.covariance())]
    distance, route = frechet_distance(*sets, legacy=True)
    assert route == "legacy"
    assert distance == pytest.approx(calculate_frechet_distance(*arrays), abs=1e-6)


def test_legacy_route_adds_eps_where_the_root_is_not_finite(monkeypatch):
    calls = []

    def failing_once(matrix):
        calls.append(matrix)
        return matrix * np.nan if len(calls) == 1 else scipy_root(matrix)

    scipy_root = scipy.linalg.sqrtm
    monkeypatch.setattr("scipy.linalg.sqrtm", failing_once)
    # (0 + eps)(0 + eps) has the root eps on both diagonal places
    assert trace_sqrt_legacy(np.zeros((2, 2)), np.zeros((2, 2))) == pytest.approx(2e-6)
    assert len(calls) == 2


def test_legacy_route_reports_imaginary_roots_in_one_line():
    # [[0, 1], [-1, 0]] has the eigenvalues +-i, its root's diagonal is real; negative ones are not
    with pytest.raises(ScoreError, match="imaginary parts up to 2") as caught:
        trace_sqrt_legacy(np.diag([1.0, 1.0]), np.diag([-4.0, 1.0]))
    assert str(caught.value).endswith(", where pytorch-fid fails too; score without --legacy")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("count", [3, 9])
def test_products_that_overflow_are_one_line(count, legacy):
    sets = [statistics(1e200 * sample(count, 4, seed)) for seed in (1, 2)]
    with pytest.raises(ScoreError, match="a score is not finite"):
        frechet_distance(*sets, legacy)


@pytest.mark.parametrize("largest", [1.0, 1e-6, 1e6])
def test_eigenvalues_within_rounding_of_the_largest_are_the_null_space(largest):
    # rounding: largest x 4 dims x 2^-52
    floor = largest * 4 * 2.0**-52
    kept = [2 * floor, largest / 1000, largest]
    factor = symmetric_factor(torch.diag(torch.tensor([floor / 2, *kept], dtype=torch.float64)))
    assert (factor @ factor.T).diagonal().tolist() == pytest.approx(kept, rel=1e-12)


def test_a_covariance_of_zeros_has_no_factor_rows():
    assert symmetric_factor(torch.zeros(3, 3, dtype=torch.float64)).shape == (0, 3)


def test_distance_is_symmetric_and_shifts_by_the_squared_mean():
    first, second = sample(50, 8, 1), sample(60, 8, 2)
    second = second - second.mean(0) + first.mean(0)
    there, _ = frechet_distance(statistics(first), statistics(second))
    back, _ = frechet_distance(statistics(second), statistics(first))
    moved, _ = frechet_distance(statistics(first), statistics(second + 2))
    assert there == pytest.approx(back, rel=1e-9)
    assert moved - there == pytest.approx(8 * 4, rel=1e-9)


def test_rounding_below_zero_is_cut_off_except_where_old_scores_are_reproduced(monkeypatch):
    both = moments(torch.zeros(2), torch.eye(2)), moments(torch.zeros(2), torch.eye(2))
    monkeypatch.setattr("fid.metrics.trace_sqrt_eigen", lambda *_: torch.tensor(2.25))
    monkeypatch.setattr("fid.metrics.trace_sqrt_legacy", lambda *_: 2.25)
    assert frechet_distance(*both) == (0.0, "eigen")  # 2 + 2 - 2 x 2.25 = -0.5
    assert frechet_distance(*both, legacy=True) == (-0.5, "legacy")
