"""What becomes of colour profiles and of depths that Pillow cuts."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from fid.pixels import PROFILE, describes_srgb, profile_of, to_srgb
from PIL import Image, ImageCms, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

from utils.io import messages
from utils.io.images import load_rgb

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exchanged() -> bytes:
    """sRGB with its red and green primaries exchanged, under another name."""
    profile = bytearray(SRGB)
    places = {bytes(profile[i : i + 4]): i for i in range(132, 132 + 12 * profile[131], 12)}
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "ours".encode("utf-16-be"))


def picture(profile: bytes | None) -> Image.Image:
    image = Image.new("RGB", (2, 2), (200, 30, 60))
    image.info = {PROFILE: profile} if profile else {}
    return image


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch):
    monkeypatch.setattr(messages, "_told", set())


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_a_profile_of_rgb_goes_along_and_pixels_stay(tmp_path, capsys, mode):
    image = Image.new("RGB", (2, 2), (204, 51, 102)).convert(mode)  # which Pillow's palette has
    image.save(tmp_path / "a.png", icc_profile=exchanged())
    read = load_rgb(tmp_path / "a.png")
    assert profile_of(read) == exchanged()
    assert read.getpixel((0, 0)) == (204, 51, 102)
    assert capsys.readouterr().err == ""


def test_a_profile_of_grey_is_left_out_with_a_note(tmp_path, capsys):
    profile = bytes(16) + b"GRAY" + bytes(112)
    Image.new("L", (2, 2), 7).save(tmp_path / "a.png", icc_profile=profile)
    assert profile_of(load_rgb(tmp_path / "a.png")) is None
    assert "a.png declares a colour space other than sRGB" in capsys.readouterr().err


def test_a_profile_that_no_result_may_hold_is_left_out_with_a_note(tmp_path, capsys):
    large = exchanged() + bytes(3 * 2**20)
    picture(None).save(tmp_path / "a.png", icc_profile=large)
    assert profile_of(load_rgb(tmp_path / "a.png")) is None
    assert "a.png declares a colour space other than sRGB" in capsys.readouterr().err


def test_a_profile_that_is_a_number_is_left_out_with_a_note(tmp_path, capsys):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[TiffImagePlugin.ICCPROFILE], tags.tagtype[TiffImagePlugin.ICCPROFILE] = 5, 4
    picture(None).save(tmp_path / "a.tif", tiffinfo=tags)
    assert profile_of(load_rgb(tmp_path / "a.tif")) is None
    assert "a.tif declares a colour space other than sRGB" in capsys.readouterr().err


def test_srgb_is_known_by_its_description():
    profiles = (None, SRGB, exchanged(), b"broken" * 9)
    found = [describes_srgb(profile_of(picture(profile))) for profile in profiles]
    assert found == [True, True, False, True]  # the last is no profile of RGB


def test_colours_of_a_profile_become_those_of_srgb():
    red, green, blue = to_srgb(picture(exchanged())).getpixel((0, 0))
    assert (red, green) == pytest.approx((30, 200), abs=2), "the primaries are exchanged"
    assert blue == pytest.approx(60, abs=2)
    plain = picture(None)
    assert to_srgb(plain) is plain


def test_a_broken_profile_of_rgb_leaves_the_pixels_as_they_are():
    image = picture(bytes(16) + b"RGB " + bytes(200))
    assert to_srgb(image) is image


@pytest.mark.parametrize("maximum", [255, 1023, 65535])
def test_colour_of_more_than_8_bits_has_the_note_of_grey(tmp_path, capsys, maximum):
    size = 1 if maximum == 255 else 2
    content = np.full((2, 2, 3), maximum, f">u{size}").tobytes()
    (tmp_path / "a.ppm").write_bytes(b"P6 2 2 %d\n" % maximum + content)
    assert load_rgb(tmp_path / "a.ppm").getpixel((0, 0)) == (255, 255, 255)
    assert ("has 16 bits per channel" in capsys.readouterr().err) == (maximum > 255)


PRIMARIES = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)  # of Display P3


def stating(name: bytes, *values: int) -> bytes:
    """A PNG with a chunk of such numbers."""
    note, buffer = PngInfo(), io.BytesIO()
    note.add(name, struct.pack(f">{len(values)}I", *values))
    Image.new("RGB", (2, 2)).save(buffer, "PNG", pnginfo=note)
    return buffer.getvalue()


def of_camera(space: str, orientation: int = 1) -> bytes:
    """A JPEG whose EXIF names its colours as cameras do."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x112], exif[0x8769] = orientation, {0xA001: 65535, 0xA005: {1: space}}
    Image.new("RGB", (2, 2)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def large(profile: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "JPEG", icc_profile=profile + bytes(2 << 20))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "is_told"),
    [
        (stating(b"cHRM", *PRIMARIES), True),
        (stating(b"cHRM", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000), False),
        (stating(b"gAMA", 45455), False),
        (of_camera("R03"), True),
        (of_camera("R03", orientation=6), True),
        (of_camera("R98"), False),
        (large(exchanged()), True),
    ],
)
def test_colours_that_a_result_cannot_keep_are_told_of(content, is_told, capsys):
    assert load_rgb(io.BytesIO(content), "a").info == {}
    assert ("a declares a colour space other than sRGB" in capsys.readouterr().err) == is_told
