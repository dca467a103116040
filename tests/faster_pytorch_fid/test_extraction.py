"""Shards of a set: what each rank reads, and that together they are the set."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from fid.extraction import extract_statistics, in_threads
from fid.features import Backend
from fid.inputs import open_images
from fid.process import Ranks
from fid_test_images import draw_images, write_folder
from torch import distributed, nn


class FirstValues(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 0, :4]  # (B, 4)


@pytest.fixture
def backend() -> Backend:
    """Features are the first four red values."""
    return Backend(
        name="red",
        distance="Red Frechet distance",
        dims=4,
        network=FirstValues(),
        prepare=lambda pixels: pixels.float(),
        resize="none",
        weights_sha256="",
    )


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shards_in_rank_order_are_the_whole_set_even_with_idle_ranks(tmp_path, backend, world):
    pixels = draw_images(5, seed=2)
    images = open_images(write_folder(tmp_path / "a", pixels))
    parts = [
        extract_statistics(
            backend,
            images,
            Ranks(rank, world).shard(5),
            torch.device("cpu"),
            batch_size=2,
            workers=0,
            keep_features=True,
        )
        for rank in range(world)
    ]
    whole = parts[0]
    for part in parts[1:]:
        whole.merge(part)
    expected = torch.stack([torch.tensor(p)[0, :4, 0] for p in pixels]).double()
    assert torch.equal(whole.features(), expected)


def test_no_feature_depends_on_the_number_of_threads_and_their_errors_come_through():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(29, 3, 8, 8)
    threads = set()

    @torch.inference_mode()
    def features_of(part: torch.Tensor) -> torch.Tensor:
        threads.add(torch.get_num_threads())
        return network(part)

    one, two, three = (
        torch.cat(list(in_threads(features_of, images.split(8), count))) for count in (1, 2, 3)
    )
    torch.testing.assert_close(one, network(images))
    assert one.equal(two)
    assert one.equal(three)
    assert threads == {1}
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda part: 1 / 0, images.split(8), 2))


def test_ranks_wait_a_day_for_one_that_works_alone(monkeypatch):
    asked = {}
    told = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    for name, value in {**told, "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    store = SimpleNamespace(set_timeout=lambda patience: asked.update(exchanges=patience))
    found = lambda *_, **how: iter([(store, 1, 2)])  # noqa: E731
    monkeypatch.setattr(distributed, "rendezvous", found)
    monkeypatch.setattr(distributed, "init_process_group", lambda _, **how: asked.update(how))
    assert Ranks.start() == Ranks(rank=1, world_size=2, local_rank=1)
    assert asked["timeout"] == asked["exchanges"] == timedelta(days=1)
