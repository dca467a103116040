"""Which image, mask and ground truth belong together."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config.errors import UserError
from utils.data.datasets import InpaintingSet
from utils.io.images import encode_png


def picture(value: int, height: int = 4, width: int = 4) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def put(folder: Path, pictures: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in pictures.items():
        (folder / name).write_bytes(encode_png(pixels))
    return folder


def hole(place: int) -> np.ndarray:
    """A 4 x 4 mask file whose one hole is at the flat place."""
    mask = np.full(16, 255, np.uint8)
    mask[place] = 0
    return mask.reshape(4, 4)


def job(folder: Path, images: list[str], masks: list[str]) -> tuple[Path, Path]:
    """Folders of images with grey values 0, 10, ... and masks with their hole at 0, 1, ..."""
    return (
        put(folder / "images", {name: picture(10 * i) for i, name in enumerate(images)}),
        put(folder / "masks", {name: hole(i) for i, name in enumerate(masks)}),
    )


def pairs(items: InpaintingSet) -> list[tuple[int, str, int, int]]:
    """Index, name, grey value of the image, place of the hole."""
    return [(x.index, x.name, x.image[0, 0, 0], int(x.hole.argmax())) for x in items]


def test_a_prepared_folder_is_a_job_with_ground_truth(tmp_path):
    put(tmp_path / "masked_image", {f"image_{i:03d}.png": picture(i) for i in range(3)})
    put(tmp_path / "mask64", {f"mask_{i:03d}.png": hole(i) for i in range(3)})
    put(tmp_path / "test", {f"image_{i:03d}.png": picture(100 + i) for i in range(3)})
    items = InpaintingSet(tmp_path)
    assert len(items) == 3
    assert items.truth.location == tmp_path / "test"
    assert items.truth.name(2) == "image_002.png"
    assert pairs(items) == [(i, f"image_{i:03d}.png", i, i) for i in range(3)]
    assert [int(items.ground_truth(i)[0, 0, 0]) for i in range(3)] == [100, 101, 102]
    assert items[0].hole.dtype == bool
    assert items[0].hole.sum() == 1


def lab_folder(folder: Path, rows: list[str]) -> Path:
    put(folder / "masked_image", {f"image_{i:03d}.png": picture(i, 1, 1) for i in range(2)})
    masks = {f"mask_{i:03d}.png": np.array([[0]], np.uint8) for i in range(2)}
    put(folder / "mask64", masks)
    (folder / "test_gt.csv").write_text("\n".join(["a,b,c", *rows]) + "\n")
    return folder


def test_the_labs_table_is_ground_truth(tmp_path):
    items = InpaintingSet(lab_folder(tmp_path, ["0,1,2", "250,251,252.0"]))
    assert items.truth.name(1) == 1
    assert items.ground_truth(1).tolist() == [[[250, 251, 252]]]
    assert items.ground_truth(0).tolist() == [[[0, 1, 2]]]
    assert items.ground_truth(0).dtype == np.uint8


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1,2", "row 1: 2 columns, the first row has 3"),
        ("1,2,x", "row 1: column 2 is 'x', expected a number"),
        ("1,2,256", "row 1: values must be whole numbers from 0 to 255"),
        ("1,2,0.5", "row 1: values must be whole numbers from 0 to 255"),
    ],
)
def test_a_wrong_row_of_the_table_is_named(tmp_path, row, reason):
    items = InpaintingSet(lab_folder(tmp_path, ["0,1,2", row]))
    with pytest.raises(UserError, match=f"test_gt.csv, {reason}"):
        items.ground_truth(1)


def test_a_table_with_too_few_rows_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"test_gt\.csv: 1 rows for 2 images"):
        InpaintingSet(lab_folder(tmp_path, ["0,1,2"]))


def test_files_pair_by_the_number_at_the_end_of_their_names(tmp_path):
    folders = job(tmp_path, ["cat 2.png", "cat 10.png"], ["mask_0010.png", "mask_0002.png"])
    assert pairs(InpaintingSet(*folders)) == [(0, "cat 2.png", 0, 1), (1, "cat 10.png", 10, 0)]


def test_other_files_pair_by_name(tmp_path):
    folders = job(tmp_path, ["tom.png", "mia_1.png"], ["mia_1.png", "tom.png"])
    assert pairs(InpaintingSet(*folders)) == [(0, "mia_1.png", 10, 0), (1, "tom.png", 0, 1)]


def test_repeated_numbers_pair_by_name(tmp_path):
    folders = job(tmp_path, ["a_1.png", "b_1.png"], ["b_1.png", "a_1.png"])
    assert pairs(InpaintingSet(*folders)) == [(0, "a_1.png", 0, 1), (1, "b_1.png", 10, 0)]


def test_one_image_and_one_mask_pair_whatever_their_names(tmp_path):
    images, masks = job(tmp_path, ["holiday.png"], ["hole_7.png"])
    items = InpaintingSet(images / "holiday.png", masks / "hole_7.png")
    assert pairs(items) == [(0, "holiday.png", 0, 0)]
    assert items.truth is None
    assert items.ground_truth(0) is None


@pytest.mark.parametrize(
    ("images", "masks", "end"),
    [
        (["i_1.png", "i_2.png"], ["m_1.png"], "without a partner: i_2.png"),
        (["i_1.png", "i_2.png"], ["m_1.png", "m_3.png"], "without a partner: i_2.png, m_3.png"),
        (["a.png", "b.png"], ["a.png", "c.png"], "without a partner: b.png, c.png"),
        (["a.png", "b_1.png"], ["x.png", "b_1.png"], "without a partner: a.png, x.png"),
        (["i_1.png", "j_1.png"], ["m_1.png", "n_1.png"], "some numbers or names are not unique"),
    ],
)
def test_files_without_a_partner_are_counted_and_named(tmp_path, images, masks, end):
    folders = job(tmp_path, images, masks)
    with pytest.raises(UserError) as caught:
        InpaintingSet(*folders)
    line = str(caught.value)
    side = f"{len(masks)} masks in {folders[1]}" if len(masks) > 1 else folders[1] / masks[0]
    assert line.startswith(f"{len(images)} images in {folders[0]} and {side} do not pair")
    assert line.endswith(end)


def test_one_image_beside_a_folder_of_masks_is_called_by_its_name(tmp_path):
    images, masks = job(tmp_path, ["i_1.png", "i_3.png"], ["m_1.png", "m_2.png"])
    with pytest.raises(UserError) as caught:
        InpaintingSet(images / "i_3.png", masks)
    assert str(caught.value).startswith(f"{images / 'i_3.png'} and 2 masks in {masks} do not pair")


def truths(folder: Path, images: list[int], masks: list[int], count: int = 5) -> list[int]:
    """Rows of a table, row i of grey i, that images of these numbers get."""
    put(folder / "masked_image", {f"image_{i:03d}.png": picture(i, 1, 1) for i in images})
    put(folder / "mask64", {f"mask_{i}.png": np.array([[0]], np.uint8) for i in masks})
    rows = [f"{i},{i},{i}" for i in range(count)]
    (folder / "test_gt.csv").write_text("\n".join(["a,b,c", *rows]) + "\n")
    items = InpaintingSet(folder)
    found = [items.truth.name(i) for i in range(len(items))]
    assert [items.truth.pixels(i)[0, 0, 0] for i in range(len(items))] == found
    return found


@pytest.mark.parametrize(
    ("images", "masks", "rows", "how"),
    [
        ([0, 1, 3, 4], range(5), [0, 1, 3, 4], "each has its mask's row"),
        ([1, 2, 3, 4], range(5), [1, 2, 3, 4], "each has its mask's row"),
        ([1, 2, 4, 5], range(1, 6), [0, 1, 3, 4], "each has its mask's row"),
        ([1, 2, 3, 4], range(1, 6), [0, 1, 2, 3], "each has its mask's row"),
        ([0, 1, 3], [0, 1, 3], [0, 1, 3], "each has the row of its number, counted from 0"),
        ([2, 4], [2, 4], [2, 4], "each has the row of its number, counted from 0"),
        ([2, 5], [2, 5], [1, 4], "each has the row of its number, counted from 1"),
        ([1, 2, 3], [1, 2, 3], [0, 1, 2], "they have the first rows, in order"),
        ([1], [1], [1], "each has the row of its number, counted from 0"),
        ([10, 20], [10, 20], [0, 1], "they have the first rows, in order"),
        ([1, 2, 3, 4, 5], range(1, 6), [0, 1, 2, 3, 4], ""),
    ],
)
def test_an_image_that_is_missing_shifts_no_row_of_the_table(
    tmp_path, capsys, images, masks, rows, how
):
    assert truths(tmp_path, images, masks) == rows
    assert how in capsys.readouterr().err


def test_a_link_to_itself_is_not_called_missing(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="loop: is a link that leads nowhere"):
        InpaintingSet(tmp_path / "loop", tmp_path / "loop")


def test_a_file_that_is_not_there_is_not_called_a_folder(tmp_path):
    images, masks = job(tmp_path, ["i_1.png"], ["m_1.png"])
    with pytest.raises(UserError, match=r"no\.png: no such file or folder"):
        InpaintingSet(images / "no.png", masks)


@pytest.mark.parametrize(("orientation", "is_on_its_side"), [(1, False), (3, False), (6, True)])
def test_a_picture_turned_by_its_exif_says_so_beside_a_mask_that_is_not(
    tmp_path, orientation, is_on_its_side
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(0, 4, 6)).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "m.png")
    size = "4 x 6 (turned as its EXIF says)" if is_on_its_side else "6 x 4"
    with pytest.raises(UserError) as caught:
        InpaintingSet(tmp_path / "a.jpg", tmp_path / "m.png")[0]
    assert str(caught.value).endswith(f"a.jpg has {size}")


def test_a_mask_or_ground_truth_of_another_size_is_refused(tmp_path):
    images = put(tmp_path / "images", {"0.png": picture(0)})
    small = put(tmp_path / "small", {"0.png": np.zeros((2, 3), np.uint8)})
    fit = put(tmp_path / "fit", {"0.png": hole(0)})
    reason = "3 x 2 pixels, but .*0.png has 4 x 4"
    with pytest.raises(UserError, match=reason):
        InpaintingSet(images, small)[0]
    with pytest.raises(UserError, match=reason):
        InpaintingSet(images, fit, small).ground_truth(0)


def test_an_image_at_hand_is_not_read_again_for_its_truth(tmp_path):
    images = put(tmp_path / "images", {"0.png": picture(7)})
    truths = put(tmp_path / "truth", {"0.png": picture(9)})
    small = put(tmp_path / "small", {"0.png": picture(9, 2, 3)})
    masks = put(tmp_path / "masks", {"0.png": hole(0)})
    fit, wrong = InpaintingSet(images, masks, truths), InpaintingSet(images, masks, small)
    image = fit[0].image
    (images / "0.png").unlink()
    assert (fit.ground_truth(0, image) == 9).all()
    with pytest.raises(UserError, match="3 x 2 pixels, but .*0.png has 4 x 4"):
        wrong.ground_truth(0, image)


def test_a_folder_without_the_labs_parts_says_what_is_missing(tmp_path):
    images, _ = job(tmp_path, ["a.png"], ["a.png"])
    with pytest.raises(UserError, match="has no masked_image/"):
        InpaintingSet(tmp_path)
    with pytest.raises(UserError, match=r"a\.png: has no masked_image/; .* images and masks one"):
        InpaintingSet(images / "a.png")
    with pytest.raises(UserError, match="nowhere: no such folder"):
        InpaintingSet(tmp_path / "nowhere")


def test_items_are_read_only_when_asked_for(tmp_path):
    images, masks = job(tmp_path, ["0.png", "1.png"], ["0.png", "1.png"])
    (images / "1.png").write_bytes(b"broken")
    items = InpaintingSet(images, masks)
    assert items[0].name == "0.png"
    with pytest.raises(UserError, match=r"1\.png: cannot be read"):
        items[1]


@pytest.mark.parametrize("by_order", [False, True])
def test_names_that_write_an_accent_otherwise_belong_together(tmp_path, by_order):
    names = ["caf\u00e9.png", "cafz.png", "ni\u00f1o.png"]
    forms = ([unicodedata.normalize(form, name) for name in names] for form in ("NFC", "NFD"))
    items = InpaintingSet(*job(tmp_path, *forms), pair_by_order=by_order)
    assert sorted(place for *_, place in pairs(items)) == [0, 1, 2]
    assert all(value == 10 * place for _, _, value, place in pairs(items))


@pytest.mark.parametrize("other", ["images", "./images/", "link", "{folder}/images"])
def test_one_folder_of_images_and_masks_may_be_written_in_two_ways(tmp_path, monkeypatch, other):
    monkeypatch.chdir(tmp_path)
    names = ("a1.png", "a1_mask001.png", "a2.png", "a2_mask001.png")
    put(tmp_path / "images", {name: hole(i) for i, name in enumerate(names)})
    (tmp_path / "link").symlink_to("images")
    items = InpaintingSet(Path("images"), Path(other.format(folder=tmp_path)))
    assert [(x.name, int(x.hole.argmax())) for x in items] == [("a1.png", 1), ("a2.png", 3)]


def test_a_name_cannot_break_the_line_of_a_warning(tmp_path, capsys):
    put(tmp_path / "images", {"\x1b[31mred.png": picture(0)})
    put(tmp_path / "masks", {"\x1b[31mred.png": np.zeros((4, 4), np.uint8)})
    list(InpaintingSet(tmp_path / "images", tmp_path / "masks"))
    assert f"warning: {tmp_path}/masks/\\x1b[31mred.png: 100%" in capsys.readouterr().err
