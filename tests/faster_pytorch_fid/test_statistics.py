"""Streaming statistics: exact merges, independence of batches, files that pytorch-fid shares."""

import errno
import io
import os

import fid.statistics
import numpy as np
import pytest
import torch
from fid.files import ScoreError
from fid.statistics import FeatureStatistics, has_array, load_statistics, save_statistics


def gather(features: torch.Tensor, batch: int, keep: bool = False) -> FeatureStatistics:
    statistics = FeatureStatistics(features.shape[1], keep)
    for rows in features.split(batch):
        statistics.update(rows)
    return statistics


def features(count: int, dims: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return 1000 + torch.randn(count, dims, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("count", [2, 6, 7, 12, 50])
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_mean_and_covariance_are_numpys(count, batch):
    rows = features(count)
    statistics = gather(rows, batch)
    assert statistics.count == count
    np.testing.assert_allclose(statistics.mean(), rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(
        statistics.covariance(), np.cov(rows.numpy(), rowvar=False), rtol=1e-9, atol=1e-9
    )


def test_batch_size_changes_no_bit():
    rows = features(50)
    one, many = gather(rows, 1), gather(rows, 17)
    assert torch.equal(one.mean(), many.mean())
    assert torch.equal(one.covariance(), many.covariance())


@pytest.mark.parametrize("sizes", [(3, 3), (3, 20), (20, 3), (20, 30), (5, 2, 40)])
def test_merged_parts_equal_the_whole(sizes):
    parts = features(sum(sizes)).split(list(sizes))
    merged = gather(parts[0], 4)
    for part in parts[1:]:
        merged.merge(gather(part, 4))
    whole = gather(torch.cat(parts), 4)
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.mean(), whole.mean(), rtol=1e-13)
    np.testing.assert_allclose(merged.covariance(), whole.covariance(), rtol=1e-9, atol=1e-9)


def test_merging_kept_features_keeps_their_order():
    rows = features(9)
    merged = gather(rows[:4], 2, keep=True)
    merged.merge(gather(rows[4:], 2, keep=True))
    assert torch.equal(merged.features(), rows)


def test_memory_is_bounded_by_the_dims_however_many_images_come():
    statistics = FeatureStatistics(4)
    for rows in features(1000, 4).split(10):
        statistics.update(rows)
        assert sum(len(kept) for kept in statistics._rows) <= 4
    assert statistics.features() is None
    assert statistics.factor() is None


def test_factor_squares_to_the_covariance():
    statistics = gather(features(5), 2)
    factor = statistics.factor()
    np.testing.assert_allclose(factor.T @ factor, statistics.covariance(), atol=1e-9)


@pytest.mark.parametrize("count", [5, 40])
def test_statistics_survive_a_file_and_pytorch_fid_reads_them(tmp_path, count):
    from pytorch_fid.fid_score import compute_statistics_of_path

    path, rows = tmp_path / "stats.npz", features(count)
    save_statistics(path, gather(rows, 8), {"backend": "x"})
    mean, covariance = compute_statistics_of_path(str(path), None, 1, 6, "cpu")
    np.testing.assert_allclose(mean, rows.mean(0))
    np.testing.assert_allclose(covariance, np.cov(rows.numpy(), rowvar=False), atol=1e-9)
    loaded = load_statistics(path, 6, {"backend": "x"})
    assert loaded.count == count
    assert (loaded.features() is None) == (count > 6)
    np.testing.assert_allclose(loaded.covariance(), covariance, atol=1e-9)
    assert [p.name for p in tmp_path.iterdir()] == ["stats.npz"]


def test_a_file_of_pytorch_fid_is_read(tmp_path):
    np.savez_compressed(tmp_path / "theirs.npz", mu=np.arange(3.0), sigma=np.eye(3))
    loaded = load_statistics(tmp_path / "theirs.npz", 3, {"backend": "x"})
    assert loaded.count is None
    assert loaded.mean().tolist() == [0, 1, 2]
    assert torch.equal(loaded.covariance(), torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("kind", [">f8", "f2", "longdouble", "u2"])
def test_numbers_may_be_stored_in_any_width_and_byte_order(tmp_path, kind):
    rows = np.array([[1, 2, 3], [5, 6, 9]], kind)
    sigma = [[8, 8, 12], [8, 8, 12], [12, 12, 18]]  # outer((4, 4, 6)) / 2
    moments = {"mu": rows.mean(0).astype(kind), "sigma": np.array(sigma, kind)}
    np.savez(tmp_path / "moments.npz", **moments)
    np.savez(tmp_path / "features.npz", **moments, features=rows)
    loaded = load_statistics(tmp_path / "moments.npz", 3, {})
    assert loaded.mean().tolist() == [3, 4, 6]
    assert loaded.covariance().tolist() == sigma
    assert load_statistics(tmp_path / "features.npz", 3, {}).features().tolist() == rows.tolist()


ROWS = 2.5**0.5 * np.concatenate([np.eye(3), -np.eye(3)])  # of mean 0, covariance I


def test_features_that_have_the_files_moments_are_read(tmp_path):
    np.savez(tmp_path / "good.npz", mu=np.zeros(3), sigma=np.eye(3), features=ROWS)
    assert load_statistics(tmp_path / "good.npz", 3, {}).features().tolist() == ROWS.tolist()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "no 'sigma' in it .it contains mu."),
        ({"mean": np.zeros(3)}, "no 'mu' in it .it contains mean."),
        ({"mu": np.zeros(4), "sigma": np.eye(4)}, "features in use have 3 dims"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), np.nan)}, "not finite"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "backend": np.array("y")}, "made with backend y"),
        ({"mu": np.array([None]), "sigma": np.eye(3)}, "not a readable npz"),
        ({"mu": np.array(["a", "b", "c"]), "sigma": np.eye(3)}, "not of real numbers"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "features": np.zeros((2, 5))}, "features are"),
        ({"mu": np.ones(3), "sigma": np.eye(3), "features": ROWS}, "another mean or spread"),
        ({"mu": np.zeros(3), "sigma": 2 * np.eye(3), "features": ROWS}, "another mean or spread"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused_in_one_line(tmp_path, arrays, message):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ScoreError, match=message) as caught:
        load_statistics(path, 3, {"backend": "x"})
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_what_statistics_are_made_of_is_read_and_counted(tmp_path, monkeypatch):
    path, moments = tmp_path / "more.npz", {"mu": np.zeros(3), "sigma": np.eye(3)}
    np.savez(path, **moments, pool=np.zeros(9999), names=np.array([None]), backend=np.array("x"))
    monkeypatch.setenv("INPUT_LIMITS", "statistics_bytes=2000")
    assert load_statistics(path, 3, {"backend": "x"}).count is None
    np.savez(path, **moments, features=np.zeros((9999, 3)))
    with pytest.raises(ScoreError, match="bytes; allowed are 2,000"):
        load_statistics(path, 3, {"backend": "x"})


def test_an_npz_that_needs_another_zip_reader_is_refused(tmp_path):
    path = tmp_path / "new.npz"
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 99  # the version that reading it takes
    path.write_bytes(data)
    assert has_array(path, "features")  # so that reading it says what is wrong
    with pytest.raises(ScoreError, match="not a readable npz .*version 9.9"):
        load_statistics(path, 3, {})


def test_a_truncated_npz_is_refused(tmp_path):
    path = tmp_path / "cut.npz"
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ScoreError, match="not a readable npz"):
        load_statistics(path, 3, {})


def test_memory_that_runs_out_says_nothing_about_an_npz(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    np.savez(tmp_path / "good.npz", mu=np.zeros(3), sigma=np.eye(3))
    monkeypatch.setattr(np, "load", fail)
    monkeypatch.setattr(fid.statistics, "bytearray", fail, raising=False)
    with pytest.raises(MemoryError):
        load_statistics(tmp_path / "good.npz", 3, {})


class Unreadable(io.BytesIO):
    """A file on a disk that does not answer."""

    def read(self, _size: int = -1) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


READERS = {  # zipfile hides a disk error behind one about the file
    "zipfile.io.open": lambda *_, **__: Unreadable(bytes(100)),
    "numpy.load": lambda *_, **__: Unreadable().read(),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_disk_that_fails_says_nothing_about_an_npz(tmp_path, monkeypatch, reader):
    path = tmp_path / "good.npz"
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
    monkeypatch.setattr(reader, READERS[reader])
    with pytest.raises(ScoreError) as caught:
        load_statistics(path, 3, {})
    assert str(caught.value) == f"{path}: Input/output error"


def test_an_npz_whose_header_claims_more_than_there_is_is_to_blame(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    np.savez(tmp_path / "bad.npz", mu=np.zeros(3), sigma=np.eye(3))
    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(ScoreError, match="not a readable npz"):
        load_statistics(tmp_path / "bad.npz", 3, {})
