"""DINOv2 comes through torch.hub: a stand-in network, and the line when there is no network."""

import http.client
import urllib.error

import pytest
import torch
from fid.features import BackendOptions, dinov2
from fid.files import ScoreError
from torch import nn

OPTIONS = BackendOptions(None, None, None)


def test_dinov2_is_asked_of_torch_hub_and_fed_imagenet_normalised_images(monkeypatch):
    asked = []

    def load(*names, trust_repo):
        asked.append(names)
        return nn.Identity()

    monkeypatch.setattr(torch.hub, "load", load)
    backend = dinov2(OPTIONS)
    grey = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    inputs = backend.prepare(grey)
    assert asked == [("facebookresearch/dinov2", "dinov2_vitl14")]
    assert inputs.shape == (1, 3, 224, 224)
    # (1 - mean) / std of the red channel
    assert float(inputs[0, 0, 100, 100]) == pytest.approx((1 - 0.485) / 0.229)
    assert backend.distance == "DINOv2 Frechet distance"
    assert backend.key("fid") == "frechet_distance_dinov2"


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("no route"),
        RuntimeError("It looks like there is no route to the internet"),  # of torch.hub
        http.client.InvalidURL("no route: '//x'"),  # of a proxy
    ],
    ids=lambda error: type(error).__name__,
)
def test_dinov2_without_a_network_is_one_line(monkeypatch, error):
    def load(*_, trust_repo):
        raise error

    monkeypatch.setattr(torch.hub, "load", load)
    with pytest.raises(ScoreError, match=r"dinov2: torch.hub cannot fetch .*no route"):
        dinov2(OPTIONS)
