"""What an image file may be, what it becomes, and what is said about one that cannot be read."""

from __future__ import annotations

import errno
import io
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from config.errors import StopRequested, UserError
from utils.cli import ended_by_signals
from utils.data.pairs import list_images
from utils.io.images import encode_png, load_mask, load_rgb, save_png


def rgb_pixel(path: Path) -> tuple[int, int, int]:
    image = load_rgb(path)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (100, 0), (255, 255, 255)),  # wholly transparent: white paper
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 255), (1, 2, 3)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),  # a fifth black over white
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 257 * 77, (77, 77, 77)),
        ("I;16", 257 * 77 + 128, (77, 77, 77)),  # rounded to the nearest, not cut
        ("I;16", 257 * 77 + 129, (78, 78, 78)),
    ],
)
def test_every_png_mode_becomes_rgb(tmp_path, mode, colour, expected):
    Image.new(mode, (4, 4), colour).save(tmp_path / "a.png")
    assert rgb_pixel(tmp_path / "a.png") == expected


def test_a_palette_image_shows_its_colours_and_its_transparent_entry_as_white(tmp_path):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=1)
    assert np.asarray(load_rgb(tmp_path / "a.png")).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 0, 0, 255)).save(tmp_path / "a.tif")
    assert rgb_pixel(tmp_path / "a.tif") == (0, 0, 0)


def test_exif_orientation_turns_the_image_upright(tmp_path):
    image = Image.new("RGB", (2, 1), "red")
    image.putpixel((1, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate clockwise to view
    image.save(tmp_path / "a.png", exif=exif)
    assert np.asarray(load_rgb(tmp_path / "a.png")).tolist() == [[[255, 0, 0]], [[0, 0, 255]]]


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert rgb_pixel(tmp_path / "a.gif") == (255, 0, 0)


def test_an_open_file_is_read_and_named_as_told():
    with pytest.raises(UserError, match=r"cats\.zip/1\.jpg: cannot be read as an image"):
        load_rgb(io.BytesIO(b"no image"), "cats.zip/1.jpg")


def broken_files(folder: Path) -> dict[str, Path]:
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    whole = encode_png(noise)
    (folder / "text.png").write_text("not an image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(noise).save(folder / "whole.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:1000])
    Image.new("F", (2, 2)).save(folder / "float.tif")
    Image.fromarray(np.full((2, 2), 70000, np.int32)).save(folder / "deep.tif")
    (folder / "folder.png").mkdir()
    return {
        "text.png": "cannot be read as an image: not an image that can be decoded; formats are BMP",
        "empty.png": "cannot be read as an image: not an image that can be decoded",
        "truncated.png": "cannot be read as an image",
        "truncated.jpg": "cannot be read as an image",
        "float.tif": "floating-point pixels; save it with 8 or 16 bits a channel",
        "deep.tif": "values beyond 16 bits",
        "folder.png": "is a folder, not an image",
        "missing.png": "no such file",
    }


def test_every_unreadable_file_is_one_line_with_its_name(tmp_path):
    for name, reason in broken_files(tmp_path).items():
        with pytest.raises(UserError) as caught:
            load_rgb(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {reason}")
        assert "\n" not in str(caught.value)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    Image.new("L", (11, 10)).save(tmp_path / "a.png")
    monkeypatch.setenv("INPUT_LIMITS", "pixels=100")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("was decoded"))
    with pytest.raises(UserError, match=r"a\.png: 11 x 10: 110 pixels; allowed are 100"):
        load_rgb(tmp_path / "a.png")


@pytest.mark.parametrize("moment", ["load", "seek"])
def test_sigterm_while_an_image_is_read_is_no_fault_of_the_image(tmp_path, monkeypatch, moment):
    Image.new("L", (2, 2)).save(tmp_path / "a.gif")

    def terminated(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(GifImageFile, moment, terminated)
    with ended_by_signals(), pytest.raises(StopRequested, match="ended by SIGTERM"):
        load_rgb(tmp_path / "a.gif")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_a_mask_is_true_where_its_file_is_black(tmp_path, mode):
    grey = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8))
    if mode == "I;16":
        grey = Image.fromarray(np.array([[0, 65535], [65535, 0]], np.uint16))
    else:
        grey = grey.convert(mode)
    grey.save(tmp_path / "m.png")
    mask = load_mask(tmp_path / "m.png")
    assert mask.dtype == bool
    assert mask.tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize(
    ("mode", "colour", "reason"),
    [
        ("RGB", (255, 0, 0), "a mask must be grey"),
        ("RGBA", (0, 0, 0, 0), "a mask must not be transparent"),
    ],
)
def test_a_mask_with_anything_else_is_refused(tmp_path, mode, colour, reason):
    Image.new(mode, (2, 2), colour).save(tmp_path / "m.png")
    with pytest.raises(UserError) as caught:
        load_mask(tmp_path / "m.png")
    assert str(caught.value).startswith(f"{tmp_path / 'm.png'}: {reason}")


def test_a_saved_png_has_the_same_pixels(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    save_png(tmp_path / "a.png", pixels)
    assert (np.asarray(load_rgb(tmp_path / "a.png")) == pixels).all()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch):
    save_png(tmp_path / "a.png", np.zeros((2, 2), np.uint8))

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"a\.png: cannot be written.*No space left"):
        save_png(tmp_path / "a.png", np.ones((2, 2), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert rgb_pixel(tmp_path / "a.png") == (0, 0, 0)


def test_images_are_listed_in_natural_order_without_hidden_and_other_files(tmp_path):
    wanted = ["image 2.PNG", "image 10.jpg", "katze 1.webp", "猫.bmp"]
    for name in [*wanted, ".hidden.png", "notes.txt", "image_png"]:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == wanted


def test_a_link_to_nothing_is_a_picture_that_cannot_be_read(tmp_path):
    (tmp_path / "a.png").symlink_to("gone.png")
    (path,) = list_images(tmp_path)
    with pytest.raises(UserError, match=r"a\.png: links to a file that is not there"):
        load_rgb(path)


def test_pictures_of_other_formats_are_told_of_once(tmp_path, capsys):
    for name in ("1.png", "10.avif", "2.HEIC", ".3.jxl", "notes.txt", "mask.npy"):
        (tmp_path / name).touch()
    (tmp_path / "folder.avif").mkdir()
    for _ in range(2):
        assert [path.name for path in list_images(tmp_path)] == ["1.png"]
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"note: {tmp_path}: 2.HEIC and 1 more left out; allowed are .bmp, .gif")


def test_images_of_folders_below_are_left_out_with_a_note(tmp_path, capsys):
    for name in ("1.png", "more/2.png", ".git/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["1.png"]
    (said,) = capsys.readouterr().err.splitlines()
    assert said == f"note: {tmp_path}: {tmp_path}/more contains images too, which are left out"


def test_a_folder_that_gives_no_image_says_why(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"contains no image; looked for \.bmp"):
        list_images(tmp_path)
    (tmp_path / "my cats/tabby").mkdir(parents=True)
    (tmp_path / "my cats/tabby/1.png").touch()
    advice = (
        rf"my cats/tabby contains some; .* prepare_data\.py images '{tmp_path}/my cats' --out DIR"
    )
    with pytest.raises(UserError, match=advice):
        list_images(tmp_path / "my cats")
    with pytest.raises(UserError, match="no such folder"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a folder"):
        list_images(tmp_path / "a.txt")
