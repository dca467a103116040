"""Released networks: the fallback of a run without weights, and three lines of Python."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from config.errors import StopRequested, UserError
from utils.app.checkpoints import Checkpoints, find_checkpoint
from utils.data.datasets import InpaintingSet
from utils.inpainting.inpainter import Inpainter
from utils.inpainting.job import inpaint_set
from utils.inpainting.pretrained import (
    DECODING,
    as_loaded,
    or_pretrained,
    pretrained_config,
    pretrained_folder,
)
from utils.io.files import ROOT
from utils.weights.store import save_weights

TOKENIZER, TRANSFORMER = "vqgan.safetensors", "transformer.safetensors"
RELEASED = "models/pretrained/cats64"


@pytest.fixture(scope="module")
def released() -> Inpainter:
    return Inpainter.from_pretrained(RELEASED, device="cpu")


@pytest.fixture
def folder(weights, tmp_path) -> Path:
    """A folder with both networks and no decoding of their own."""
    place = tmp_path / "networks"
    place.mkdir()
    (place / TOKENIZER).write_bytes(weights.tokenizer_weights.read_bytes())
    (place / TRANSFORMER).write_bytes(weights.transformer_weights.read_bytes())
    return place


def photo(side: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture with a hole in its middle."""
    image = np.linspace(0, 255, side * side * 3).astype(np.uint8).reshape(side, side, 3)
    hole = np.zeros((side, side), bool)
    hole[side // 3 : side // 2, side // 3 : side // 2] = True
    return image, hole


def test_a_folder_is_found_as_users_write_it(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert pretrained_folder("~/networks") == folder


# A fill that the networks never saw


@pytest.mark.parametrize(
    ("conditioning", "fill", "is_noted"),
    [("pixels", "grey", True), ("pixels", "harmonic", False), ("none", "grey", False)],
)
def test_a_flat_fill_under_networks_that_see_known_pixels_gets_a_note(
    weights, changed, capsys, conditioning, fill, is_noted
):
    seeing = weights.transformer.model_copy(update={"conditioning": conditioning})
    config = changed(weights, {"decoding.hole_fill": fill})
    loaded = as_loaded(config, {"transformer": seeing})
    assert loaded.transformer.conditioning == conditioning
    assert ("decoding.hole_fill is grey; " in capsys.readouterr().err) == is_noted


def test_pixels_that_the_weights_were_not_trained_on_get_a_note(
    weights, changed, transformer, capsys
):
    notes = {"pixels": weights.data.normalisation}
    save_weights(weights.transformer_weights, transformer.state_dict(), transformer.config, notes)
    as_loaded(weights, {})
    assert capsys.readouterr().err == ""
    as_loaded(changed(weights, {"data.mean": [0.5, 0.5, 0.5]}), {})
    assert "; the config says data.mean [0.5, 0.5, 0.5] and data.std [" in capsys.readouterr().err


# A run without weights


def test_a_run_without_weights_takes_the_networks_that_its_config_names(
    weights, folder, changed, tmp_path, capsys
):
    config = changed(weights, {"run": tmp_path / "new", "pretrained": folder})
    found = or_pretrained(config)
    assert found.tokenizer_weights == folder / TOKENIZER
    assert found.transformer_weights == folder / TRANSFORMER
    assert f"new has no weights yet; using the released ones in {folder}" in capsys.readouterr().err


def test_the_note_about_them_comes_once(weights, folder, changed, tmp_path, capsys):
    config = changed(weights, {"run": tmp_path / "another", "pretrained": folder})
    assert or_pretrained(config) == or_pretrained(config)
    assert capsys.readouterr().err.count("has no weights yet") == 1


def test_the_manifest_names_the_networks_that_repaired(weights, folder, changed, job, tmp_path):
    config = or_pretrained(changed(weights, {"run": tmp_path / "third", "pretrained": folder}))
    inpaint_set(config, InpaintingSet(job), tmp_path / "out")
    stated = json.loads((tmp_path / "out" / "test_results" / "manifest.json").read_text())["config"]
    assert stated["tokenizer"]["weights"] == str(folder / TOKENIZER)
    assert stated["transformer"]["weights"] == str(folder / TRANSFORMER)


@pytest.mark.parametrize("network", ["tokenizer", "transformer"])
def test_a_run_with_one_network_of_its_own_keeps_it_and_gets_no_other(
    weights, folder, changed, network
):
    config = changed(weights, {"pretrained": folder})
    getattr(config, f"{network}_weights").unlink()
    assert or_pretrained(config) == config


def test_weights_that_are_named_and_missing_are_not_replaced(weights, folder, changed, tmp_path):
    values = {"run": tmp_path / "new", "pretrained": folder}
    config = changed(weights, {**values, "transformer.weights": tmp_path / "gone.safetensors"})
    assert or_pretrained(config) == config


def test_a_config_that_names_none_stays_as_it_is(weights, changed, tmp_path):
    config = changed(weights, {"run": tmp_path / "new"})
    assert or_pretrained(config) == config


# From Python


@pytest.mark.parametrize("side", [64, 100])
def test_a_picture_of_any_size_keeps_its_known_pixels(released, side):
    image, hole = photo(side)
    repaired = released(image, hole)
    assert repaired.shape == image.shape
    assert repaired.dtype == np.uint8
    assert (repaired[~hole] == image[~hole]).all()
    assert (repaired[hole] != 128).any()


def test_a_pil_image_with_a_pil_mask_gives_a_pil_image_of_the_same_pixels(released):
    image, hole = photo(64)
    mask = Image.fromarray(np.where(hole, 0, 255).astype(np.uint8))
    repaired = released(Image.fromarray(image), mask)
    assert isinstance(repaired, Image.Image)
    assert (np.asarray(repaired) == released(image, hole)).all()


def test_a_photograph_on_its_side_is_repaired_upright(released):
    image, hole = photo(64)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    buffer = io.BytesIO()
    Image.fromarray(np.rot90(image)).save(buffer, "PNG", exif=exif)
    repaired = released(Image.open(buffer), hole)
    assert (np.asarray(repaired) == released(image, hole)).all()


@pytest.mark.parametrize("side", [64, 100])
def test_a_picture_without_a_hole_stays_as_it_is(released, side):
    image, hole = photo(side)
    assert (released(image, np.zeros_like(hole)) == image).all()


def test_device_and_seed_may_be_of_the_types_of_pytorch_and_numpy():
    config = pretrained_config(ROOT / RELEASED, torch.device("cpu"), np.int64(3))
    assert (config.device, config.seed) == ("cpu", 3)


def test_a_mask_of_another_size_is_refused(released):
    image, hole = photo(64)
    with pytest.raises(UserError, match=r"mask: \(63, 64\), but the image is \(64, 64\)"):
        released(image, hole[1:])


def test_an_image_of_floats_is_refused(released):
    image, hole = photo(64)
    with pytest.raises(UserError, match=r"image: float64 \(64, 64, 3\); needed is uint8"):
        released(image / 255, hole)


def test_the_released_decoding_is_that_of_the_preset():
    own, preset = (
        yaml.safe_load((ROOT / path).read_text())["decoding"]
        for path in (f"{RELEASED}/{DECODING}", "config/cats64.yml")
    )
    assert own == preset


def test_the_web_demo_finds_the_released_networks_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (found,) = Checkpoints([]).checkpoints.values()
    assert (found.name, found.file) == ("cats64", ROOT / "config" / "cats64.yml")
    assert found == find_checkpoint(Path(RELEASED))


def test_a_folder_without_networks_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no vqgan\.safetensors and transformer\.safetensors"):
        pretrained_folder(tmp_path)


def test_a_name_of_the_hub_needs_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="somebody/cats: no such folder; .* huggingface_hub"):
        pretrained_folder("somebody/cats")


@pytest.fixture
def hub(monkeypatch, folder) -> ModuleType:
    """The library of the Hub, which has every name."""
    library = ModuleType("huggingface_hub")
    library.constants = SimpleNamespace(HF_HUB_CACHE=str(folder))
    library.snapshot_download = lambda name: str(folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    return library


def test_a_name_of_the_hub_is_fetched(hub, folder):
    asked = []
    hub.snapshot_download = lambda name: asked.append(name) or str(folder)
    assert pretrained_folder("somebody/cats") == folder
    assert asked == ["somebody/cats"]


@pytest.mark.parametrize("kind", [OSError, ValueError, ImportError, Exception])
def test_what_the_hub_or_a_proxy_before_it_refuses_is_one_line(hub, kind):
    def refuse(name: str) -> None:
        raise kind("404\nnot found")

    hub.snapshot_download = refuse
    with pytest.raises(UserError, match=r"somebody/dogs: no such folder, .* Hub \(404\)$"):
        pretrained_folder("somebody/dogs")


def test_a_signal_during_a_download_from_the_hub_stops_the_script(hub):
    def stop(name: str) -> None:
        raise StopRequested("ended by SIGTERM")

    hub.snapshot_download = stop
    with pytest.raises(StopRequested, match="ended by SIGTERM"):
        pretrained_folder("somebody/cats")


def test_the_container_is_set_up_by_the_makefile():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    targets = [line.split()[-1] for line in lines if line.startswith("RUN make")]
    makefile = (ROOT / "Makefile").read_text()
    assert targets == [".venv/.maskgit"]
    assert "$(ENV)/.maskgit:" in makefile
    assert lines[-1].startswith('ENTRYPOINT [".venv/bin/python"')
