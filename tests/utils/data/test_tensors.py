"""Images as tensors: pixels as networks take them and back, and folders in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from config.errors import UserError
from utils.data.augment import load_images
from utils.data.datasets import normalise, to_uint8
from utils.io.images import encode_png

MEAN, STD = (0.4868, 0.4341, 0.3844), (0.2620, 0.2527, 0.2543)


def picture(value: int, height: int = 4, width: int = 4) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def put(folder: Path, pictures: dict[str, np.ndarray]) -> None:
    for name, pixels in pictures.items():
        (folder / name).write_bytes(encode_png(pixels))


def test_normalising_subtracts_the_mean_and_divides_by_the_deviation():
    images = np.zeros((1, 2, 2, 3), np.uint8)
    images[0, 0, 1] = (255, 51, 0)
    out = normalise(images, (0.5, 0.2, 0.1), (0.5, 0.4, 0.1))
    assert out.shape == (1, 3, 2, 2)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out[0, :, 0, 1], torch.tensor([1.0, 0.0, -1.0]))


def test_both_layouts_and_both_kinds_of_array_give_the_same():
    images = torch.randint(256, (2, 8, 6, 3), dtype=torch.uint8)
    expected = normalise(images, MEAN, STD)
    assert torch.equal(normalise(images.permute(0, 3, 1, 2), MEAN, STD), expected)
    assert torch.equal(normalise(images.numpy(), MEAN, STD), expected)


def test_every_pixel_value_survives_normalising_and_back():
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(to_uint8(normalise(images, MEAN, STD), MEAN, STD), images)


def test_values_out_of_range_are_cut_and_others_rounded_to_the_nearest():
    values = torch.tensor([-0.1, 1.4 / 255, 1.6 / 255, 1.1]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    out = to_uint8(values, (0, 0, 0), (1, 1, 1))
    assert out.shape == (1, 2, 2, 3)
    assert out[..., 0].flatten().tolist() == [0, 1, 2, 255]


def test_a_folder_holds_its_images_in_natural_order_as_bytes(tmp_path):
    put(tmp_path, {f"image_{i}.png": picture(i, 2, 2) for i in (10, 2, 1)})
    images = load_images(tmp_path, 2)
    assert images.shape == (3, 3, 2, 2)
    assert images.dtype == torch.uint8
    assert [int(image[0, 0, 0]) for image in images] == [1, 2, 10]


def test_an_image_of_another_size_says_what_to_do(tmp_path):
    (tmp_path := tmp_path / "my cats").mkdir()
    put(tmp_path, {"0.png": picture(0), "1.png": picture(0, 3, 5)})
    with pytest.raises(UserError) as caught:
        load_images(tmp_path, 4)
    assert str(caught.value) == (
        f"{tmp_path / '1.png'}: 5 x 3 pixels, not 4 x 4; resize the set with:"
        f" prepare_data.py images '{tmp_path}' --image-size 4 --out DIR"
    )


def test_a_colour_profile_that_training_does_not_apply_is_told_of(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("utils.io.messages._told", set())
    profile = b"." * 16 + b"RGB " + b"." * 200
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", icc_profile=profile)
    load_images(tmp_path, 4)
    assert "a.png has a colour profile; it is left out" in capsys.readouterr().err
