"""Stamps name what a picture was made with, and survive in every format."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch
from PIL import Image

from config.errors import MachineError
from utils.inpainting.manifest import changed_settings
from utils.inpainting.outputs import (
    input_digest,
    read_stamp,
    save_stamped_png,
    settings_digest,
    settings_of,
)
from utils.io.pictures import encode_animation

STAMP = "0123456789abcdef" * 4


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)


def test_a_png_keeps_its_stamp_and_its_pixels(tmp_path):
    from utils.io.images import load_rgb

    save_stamped_png(tmp_path / "a.png", image(), STAMP)
    assert read_stamp(tmp_path / "a.png") == STAMP
    assert (np.asarray(load_rgb(tmp_path / "a.png")) == image()).all()


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_an_animation_keeps_its_stamp(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(encode_animation([image(1), image(2)], kind, STAMP))
    assert read_stamp(path) == STAMP


def test_a_file_without_a_stamp_has_none(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert read_stamp(tmp_path / "broken.png") is None
    assert read_stamp(tmp_path / "missing.png") is None


@pytest.mark.parametrize("where", ["cut", "flipped"])
def test_a_png_that_is_damaged_behind_its_stamp_has_none(tmp_path, where):
    path = tmp_path / "a.png"
    save_stamped_png(path, image(), STAMP)
    content = bytearray(path.read_bytes())
    pixels = content.index(b"IDAT") + 20
    if where == "cut":
        del content[pixels:]
    else:
        content[pixels] ^= 1
    path.write_bytes(content)
    assert read_stamp(path) is None


def test_a_lower_level_of_compression_makes_another_file_of_the_same_pixels(tmp_path):
    pixels = np.arange(3 * 64 * 64).reshape(64, 64, 3).astype(np.uint8)
    save_stamped_png(tmp_path / "a.png", pixels, STAMP)
    save_stamped_png(tmp_path / "b.png", pixels, STAMP, level=1)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first != second
    assert (np.asarray(Image.open(tmp_path / "b.png")) == pixels).all()


@pytest.mark.parametrize(("pixels", "stamp"), [(24, STAMP), (17, None)])
def test_three_images_of_the_limit_have_a_stamp_and_what_claims_to_be_huge_has_none(
    tmp_path, monkeypatch, pixels, stamp
):
    save_stamped_png(tmp_path / "a.png", image(), STAMP)  # of 8 x 9
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    monkeypatch.setenv("INPUT_LIMITS", f"pixels={pixels}")
    assert read_stamp(tmp_path / "a.png") == stamp


def test_the_input_is_known_pixels_and_the_hole_and_nothing_in_it():
    hole = np.zeros((8, 9), bool)
    hole[2:4, 3:6] = True
    spoilt = np.where(hole[..., None], np.uint8(1), image())
    assert input_digest(spoilt, hole) == input_digest(image(), hole)
    other = image().copy()
    other[0, 0, 0] ^= 1
    assert input_digest(other, hole) != input_digest(image(), hole)
    assert input_digest(image(), ~hole) != input_digest(image(), hole)
    flat = image().reshape(9, 8, 3)
    assert input_digest(flat, hole.reshape(9, 8)) != input_digest(image(), hole)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("decoding.total_iter", 7),
        ("decoding.composite", "hard"),
        ("masking.mask_schedule", "linear"),
        ("data.mean", (0.5, 0.5, 0.5)),
    ],
)
def test_settings_that_change_pixels_change_the_digest(weights, changed, key, value):
    before, now = (settings_of(c, torch.float32) for c in (weights, changed(weights, {key: value})))
    assert settings_digest(before) != settings_digest(now)
    assert changed_settings(before, now)[0].startswith(key)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("decoding.batch_size", 3),
        ("decoding.step_pictures", False),
        ("decoding.samples", 4),
        ("device", "auto"),
        ("training.epochs", 9),
    ],
)
def test_settings_that_change_no_pixel_do_not(weights, changed, key, value):
    assert settings_of(weights, torch.float32) == settings_of(
        changed(weights, {key: value}), torch.float32
    )


@pytest.mark.parametrize(
    ("part", "key", "value"), [("transformer", "num_heads", 2), ("tokenizer", "norm", "position")]
)
def test_what_no_shape_tells_changes_the_digest_of_weights_that_are_not_ours(
    weights, changed, tmp_path, part, key, value
):
    (tmp_path / "lab.pt").write_bytes(b"weights")
    theirs = changed(weights, {f"{part}.weights": tmp_path / "lab.pt"})
    for config, is_told in ((weights, False), (theirs, True)):
        before, now = (
            settings_of(c, torch.float32)
            for c in (config, changed(config, {f"{part}.{key}": value}))
        )
        assert (settings_digest(before) != settings_digest(now)) == is_told
        assert bool(changed_settings(before, now)) == is_told


def test_differences_name_dotted_keys_and_both_values():
    before = {
        "seed": 0,
        "decoding": {"rule": "listing", "sweet_spot": None},
        "tokenizer_sha256": "a",
    }
    now = {"seed": 0, "decoding": {"rule": "maskgit", "sweet_spot": None}, "tokenizer_sha256": "b"}
    told = ["decoding.rule listing, now maskgit", "other tokenizer_sha256"]
    assert changed_settings(before, now) == told
    assert changed_settings(now, now) == []


def test_a_result_that_a_failing_disk_hides_is_not_taken_for_missing(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    save_stamped_png(tmp_path / "a.png", image(), STAMP)
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MachineError, match=r"a.png: cannot be read: Input/output error; it stays"):
        read_stamp(tmp_path / "a.png")
