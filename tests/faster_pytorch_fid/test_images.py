"""Folders, zips and csv files give the same pixels; what is wrong with one is named."""

import errno
import io
import os
import pickle
import struct
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fid import files
from fid.files import ScoreError, note
from fid.images import FolderImages
from fid.inputs import open_images, read_manifest
from fid.names import folder_names, is_picture, natural_key
from fid.paired import belonging
from fid.pixels import decode_image, mask_values
from fid_test_images import draw_images, write_csv, write_folder
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from config import errors
from config.errors import UserError
from utils.data.datasets import TruthTable
from utils.data.pairs import list_images, pair
from utils.data.sources import open_pictures
from utils.io.images import load_mask, load_rgb


def encoded(pixels: np.ndarray, kind: str = "PNG", **how) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **how)
    return buffer.getvalue()


def write_zip(path, members: dict[str, bytes]):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def pixels():
    return draw_images(3, seed=5, side=8)


def test_folder_zip_and_csv_hold_the_same_images(tmp_path, pixels):
    folder = write_folder(tmp_path / "a", pixels)
    (folder / "notes.txt").write_text("not an image")
    members = {f"top/{p.name}": p.read_bytes() for p in folder.iterdir()}
    archive = write_zip(tmp_path / "a.zip", members | {"__MACOSX/top/._image_000.png": b"junk"})
    table = write_csv(tmp_path / "a.csv", pixels)
    for path in (folder, archive, table):
        images = open_images(path)
        assert len(images) == 3
        for index, expected in enumerate(pixels):
            np.testing.assert_array_equal(images.pixels(index), expected)


def test_a_zip_reaches_other_processes(tmp_path, pixels):
    members = {f"{i}.png": encoded(pixels[i]) for i in range(3)}
    images = open_images(write_zip(tmp_path / "a.zip", members))
    images.pixels(0)  # which opens it
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(images)).pixels(2), pixels[2])


def test_the_hash_is_of_the_images_not_of_their_container(tmp_path, pixels):
    folder = write_folder(tmp_path / "a", pixels)
    archive = write_zip(tmp_path / "a.zip", {p.name: p.read_bytes() for p in folder.iterdir()})
    first = open_images(folder).sha256()
    assert open_images(archive).sha256() == first
    changed = [*pixels[:2], pixels[2] ^ 1]
    assert open_images(write_folder(tmp_path / "b", changed)).sha256() != first


def test_a_selection_keeps_its_order(tmp_path, pixels):
    folder = write_folder(tmp_path / "a", pixels)
    table = write_csv(tmp_path / "a.csv", pixels)
    for images in (
        open_images(folder, ["image_002.png", "image_000.png"]),
        open_images(table, [2, 0]),
    ):
        np.testing.assert_array_equal(images.pixels(0), pixels[2])
        np.testing.assert_array_equal(images.pixels(1), pixels[0])
    with pytest.raises(ScoreError, match=r"no image 'x.png', though the manifest names it"):
        open_images(folder, ["x.png", "image_000.png"])
    for bad in (3, -1, "0", True):
        with pytest.raises(ScoreError, match="it has rows 0 to 2"):
            open_images(table, [0, 1, bad])


def exif_bytes(*more: bytes) -> bytes:
    """EXIF of orientation 6, with entries of a tag, type, count and value each."""
    entries = [struct.pack("<HHIHH", 0x112, 3, 1, 6, 0), *more]
    return (
        b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    )


def few_primaries() -> PngInfo:
    """A chunk of primaries that holds two of eight values."""
    chunks = PngInfo()
    chunks.add(b"cHRM", bytes(8))
    return chunks


def turned(pixels: np.ndarray, kind: str = "PNG", exif: bytes = exif_bytes(), **how) -> bytes:
    """The picture stored lying on its side, with the EXIF orientation that sets it upright."""
    buffer = io.BytesIO()
    lying = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    lying.save(buffer, kind, exif=exif, **how)
    return buffer.getvalue()


GREY = draw_images(1, seed=5, side=8)[0][..., 0]
RGB = draw_images(1, seed=6, side=8)[0]
DAMAGED = b"Exif\0\0damaged"
SAME_TO_BOTH = {
    "grey": encoded(GREY),
    "gif": encoded(GREY, "GIF"),
    "jpeg": encoded(RGB, "JPEG"),
    "16 bits": encoded(GREY.astype(np.uint16) * 257),
    "transparent": encoded(np.dstack([RGB, GREY])),
    "turned": turned(RGB),
    "turned WebP": turned(RGB, "WEBP", lossless=True),
    "turned TIFF": turned(RGB, "TIFF"),
    "turned, with a resolution in words": turned(
        RGB, exif=exif_bytes(struct.pack("<HHI4s", 0x11A, 2, 4, b"high"))
    ),
    "turned, with a negative number of bits": turned(
        RGB, exif=exif_bytes(struct.pack("<HHIi", 0x102, 8, 1, -1))
    ),
    "turned, with EXIF that ends early": turned(RGB, exif=exif_bytes(b"")[:-4]),
    "JPEG with damaged EXIF": encoded(RGB, "JPEG", exif=DAMAGED),
    "PNG with damaged EXIF": encoded(RGB, exif=DAMAGED),
}


@pytest.mark.parametrize("kind", SAME_TO_BOTH)
def test_scorer_and_suite_read_a_picture_alike(tmp_path, kind):
    path = tmp_path / "picture.png"
    path.write_bytes(SAME_TO_BOTH[kind])
    found = decode_image(path.read_bytes(), "x")
    np.testing.assert_array_equal(found, np.asarray(load_rgb(path)))
    if "turned" in kind or kind.startswith("PNG"):  # which lose nothing
        np.testing.assert_array_equal(found, RGB)


def test_a_png_with_too_few_primaries_is_read_or_refused_by_both(tmp_path):
    """Pillow 13 refuses it, earlier versions read it."""
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(RGB, pnginfo=few_primaries()))
    if features.version("pil") >= "13":
        with pytest.raises(ScoreError, match="not a readable image .*cHRM"):
            decode_image(path.read_bytes(), "x")
        with pytest.raises(UserError, match="picture.png.*cHRM"):
            load_rgb(path)
    else:
        np.testing.assert_array_equal(decode_image(path.read_bytes(), "x"), RGB)
        np.testing.assert_array_equal(load_rgb(path), RGB)


HOLE = np.array([[255, 255], [0, 255]], np.uint8)
MASKS = {  # each says the same hole
    "8 bits": encoded(HOLE),
    "one bit": encoded(HOLE > 0),
    "colour": encoded(np.dstack([HOLE] * 3)),
    "0 and 1": encoded(HOLE // 255),
    "0 and 1 in 16 bits": encoded((HOLE // 255).astype(np.uint16)),
    "16 bits": encoded(HOLE.astype(np.uint16) * 257),
    "32 bits": encoded(HOLE.astype(np.int32), "TIFF"),
    "fractions": encoded((HOLE / 255).astype(np.float32), "TIFF"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_scorer_and_suite_read_a_mask_alike(tmp_path, kind):
    (tmp_path / "a.png").write_bytes(MASKS[kind])
    found = decode_image(MASKS[kind], "a.png", mask_values)
    np.testing.assert_array_equal(found == 0, HOLE == 0)
    np.testing.assert_array_equal(load_mask(tmp_path / "a.png"), HOLE == 0)


def test_a_transparent_mask_says_nothing_to_the_scorer():
    clear = encoded(np.dstack([HOLE, HOLE, HOLE, HOLE]))
    with pytest.raises(ScoreError, match="a mask must not be transparent"):
        decode_image(clear, "a.png", mask_values)


def test_hidden_files_and_folders_are_no_pictures_wherever_they_lie(tmp_path, pixels):
    names = ["a.png", "b/c.png", ".ipynb_checkpoints/a-checkpoint.png", "b/.d.png", "._a.png"]
    members = {name: encoded(pixels[0]) for name in [*names, "b/__MACOSX/e.png"]}
    for name, content in members.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    assert folder_names(tmp_path / "folder", recursive=True) == names[:2]
    assert open_images(write_zip(tmp_path / "a.zip", members)).names == names[:2]
    assert open_pictures(tmp_path / "folder").files == open_pictures(tmp_path / "a.zip").files
    assert open_pictures(tmp_path / "folder").files == names[:2]


def test_numbers_in_names_may_be_longer_than_python_reads():
    names = [f"{'9' * 5000}.png", "8.png", f"{'7' * 70_000}.png"]
    assert sorted(names, key=natural_key)[0] == "8.png"


def test_a_turned_16_bit_or_transparent_picture_has_the_expected_pixels():
    np.testing.assert_array_equal(decode_image(turned(RGB), "x"), RGB)
    np.testing.assert_array_equal(decode_image(SAME_TO_BOTH["16 bits"], "x")[..., 0], GREY)
    clear = encoded(np.dstack([RGB, np.zeros((8, 8), np.uint8)]))
    assert (decode_image(clear, "x") == 255).all()  # white paper


def test_scorer_and_suite_take_the_same_files_for_pictures_in_the_same_order(tmp_path):
    for name in ("b_10.PNG", "B_9.jfif", "a.gif", ".hidden.png", "note.txt", "1.avif", "02.jpg"):
        (tmp_path / name).write_bytes(encoded(RGB))
    expected = [path.name for path in list_images(tmp_path)]
    assert folder_names(tmp_path) == expected == ["02.jpg", "a.gif", "B_9.jfif", "b_10.PNG"]


def test_pictures_of_other_formats_are_left_out_with_a_note(tmp_path, capsys):
    for name in ("a.png", "b.heic", "c.MPO"):
        (tmp_path / name).write_bytes(b"")
    assert folder_names(tmp_path) == ["a.png"]
    assert f"note: {tmp_path}: b.heic and 1 more left out" in capsys.readouterr().err


def test_subfolders_are_read_when_asked_and_hinted_at_when_they_hold_all(tmp_path):
    for name in ("2/b.png", "10/a.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(encoded(RGB))
    assert open_images(tmp_path, recursive=True).names == ["2/b.png", "10/a.png"]
    with pytest.raises(ScoreError, match=r"no images, but .*10 contains some; .*--recursive"):
        open_images(tmp_path)


NAMES = {
    "by number": (["image_002.png", "image_010.png"], ["10.png", "2.png"], ["2.png", "10.png"]),
    "by stem": (["a.png", "b.png"], ["b.jpg", "a.gif"], ["a.gif", "b.jpg"]),
    "composed": (["\u00e9.png", "b.png"], ["b.png", "e\u0301.png"], ["e\u0301.png", "b.png"]),
    "by subject": (["a.png", "b.png"], ["b_mask.png", "mask-a.png"], ["mask-a.png", "b_mask.png"]),
    "of LaMa": (
        ["a1.png", "a2.png"],
        ["a1_mask002.png", "a2_mask001.png"],
        ["a1_mask002.png", "a2_mask001.png"],
    ),
    "with the suffix": (["a.jpg", "b.jpg"], ["b.jpg.png", "a.jpg.png"], ["a.jpg.png", "b.jpg.png"]),
    "photographs of holes": (
        ["hole1.png", "hole2.png"],
        ["hole2_mask.png", "hole1_mask.png"],
        ["hole1_mask.png", "hole2_mask.png"],
    ),
    "of Windows": (
        ["a (1).png", "a (2).png"],
        ["b (2).png", "b (1).png"],
        ["b (1).png", "b (2).png"],
    ),
    "number before": (
        ["a_001.png", "a_002.png"],
        ["2_mask.png", "1_mask.png"],
        ["1_mask.png", "2_mask.png"],
    ),
    "of a telephone": (["I_1.JPG", "I_1.PNG"], ["I_1.PNG", "I_1.JPG"], ["I_1.JPG", "I_1.PNG"]),
    "marks of Thai": (
        ["\u0e01\u0e35.png", "\u0e01\u0e36.png"],
        ["\u0e01\u0e36_mask.png", "\u0e01\u0e35_mask.png"],
        ["\u0e01\u0e35_mask.png", "\u0e01\u0e36_mask.png"],
    ),
    "emoji": (
        ["\U0001f431.png", "\U0001f436.png"],
        ["mask \U0001f436.png", "mask \U0001f431.png"],
        ["mask \U0001f431.png", "mask \U0001f436.png"],
    ),
    "both ways to write an accent": (
        ["\u00e9.png", "e\u0301.png"],
        ["e\u0301.png", "\u00e9.png"],
        ["\u00e9.png", "e\u0301.png"],
    ),
    "by folder": (["a/1.png", "b/1.png"], ["b/1.jpg", "a/1.jpg"], ["a/1.jpg", "b/1.jpg"]),
}


@pytest.mark.parametrize("case", NAMES)
def test_scorer_and_suite_pair_files_alike(tmp_path, case):
    left, right, expected = NAMES[case]
    found = belonging(FolderImages(tmp_path, left), FolderImages(tmp_path, right))
    assert found.names == expected
    if case != "by folder":
        partners = pair([Path(n) for n in left], [Path(n) for n in right], "others")
        assert [path.name for path in partners] == expected


def test_more_truths_pair_by_stem_too(tmp_path, capsys):
    names = ["a_1.png", "a_2.png"], ["a_0.jpg", "a_1.jpg", "a_2.jpg"]
    assert belonging(*(FolderImages(tmp_path, side) for side in names)).names == names[1][1:]
    assert "2 of the 3 images have a partner; the others are not used" in capsys.readouterr().err


def test_files_that_do_not_pair_are_named(tmp_path):
    sets = [FolderImages(tmp_path, names) for names in (["a.png", "b.png"], ["a.png", "c.png"])]
    with pytest.raises(ScoreError, match="without a partner: b, c"):
        belonging(*sets)


@pytest.mark.parametrize(
    ("names", "rows", "how"),
    [
        (["test_0.png", "test_1.png"], ["0", "1"], "of its number, counted from 0"),
        (["test_1.png", "test_3.png"], ["1", "3"], "of its number, counted from 0"),
        (["a.png", "b.png"], ["0", "1"], "they have the first rows, in order"),
    ],
)
def test_surplus_rows_of_a_csv_are_left_out_with_a_note(tmp_path, capsys, names, rows, how):
    table = open_images(write_csv(tmp_path / "a.csv", draw_images(5, seed=1)))
    assert belonging(FolderImages(tmp_path, names), table).names == rows
    said = capsys.readouterr().err
    assert "a.csv: 3 rows more than images are left out; " in said
    assert how in said


def test_a_folder_of_results_is_advised_before_another(tmp_path, pixels):
    for name in ("masks", "test_results"):
        write_folder(tmp_path / name, pixels)
    (tmp_path / "test_results" / "manifest.json").touch()
    with pytest.raises(ScoreError, match="but .*/test_results contains some; name it$"):
        folder_names(tmp_path)


FIRST_ROWS = {  # of a table: whether it names columns
    "a,b,c": True,
    "0,1,2": True,  # as pandas counts
    "1,2,3": True,
    ",0,1,2": True,  # and with its index
    "# r,g,b": True,  # as NumPy writes it
    "9,2,3": False,
    "0,1,1": False,  # a picture may begin as a count does
    "0,0,0": False,
    "9.0,2.0,3.0": False,
    "9,9.1,3": False,  # pandas took a picture for names, and made them differ
    "\ufeff9,2,3": False,
    "9,nan,3": False,
    "image_0.png,9,2,3": False,  # a picture may begin with its name
    "9,2,3,": False,
    '"9","2","3"': False,
    '"","V1","V2","V3"': True,  # as R writes it
    '"red, 0","green, 1","blue, 2"': True,
}


@pytest.mark.parametrize(("row", "names"), FIRST_ROWS.items())
def test_a_first_row_that_is_an_image_is_refused_by_scorer_and_suite(tmp_path, row, names):
    path = tmp_path / "t.csv"
    path.write_text(f"{row}\n9,2,3\n4,5,6\n", encoding="utf-8")
    images = [Path("0.png"), Path("1.png")]
    if names:
        assert len(open_images(path)) == 2
        assert len(TruthTable(path, images).rows) == 2
        return
    with pytest.raises(ScoreError, match="t.csv: has no header; its first row would be lost"):
        open_images(path)
    with pytest.raises(UserError, match="t.csv: has no header; its first row would be lost"):
        TruthTable(path, images)


def test_quoted_values_of_a_csv_are_numbers(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('"red, 0","green, 1","blue, 2"\n"9","2","3"\n"4","5","6"\n')
    assert open_images(path).pixels(1).tolist() == [[[4, 5, 6]]]


def test_rows_of_a_csv_may_begin_with_spaces(tmp_path):
    path = tmp_path / "t.csv"
    np.savetxt(path, [[9, 2, 145], [4, 5, 6]], "%3d", ",", header="r,g,b")
    assert path.read_text().splitlines()[1] == "  9,  2,145"
    assert open_images(path).pixels(0).tolist() == [[[9, 2, 145]]]
    truth = TruthTable(path, [Path("0.png"), Path("1.png")])
    assert truth.pixels(0).tolist() == [[[9, 2, 145]]]


UNREADABLE_TABLES = {  # the first row: what is said of it
    "0,1,2,label": "its last column, 'label', contains no pixels; remove it",
    "p0,p1,p2,class2": "its last column, 'class2', contains no pixels; remove it",
    ",".join(f"{c}{i}" for i in range(4) for c in "rgb") + ",label": "its last column, 'label'",
    ",".join(f"{i}_0_{c}" for i in range(4) for c in "RGB") + ",id": "its last column, 'id'",
    "p0,p1,p2,": "its last column, '', contains no pixels; remove it",
    "0;1;2": "in its first row; separate values by commas, not by semicolons",
    "0\t1\t2": "in its first row; separate values by commas, not by tabs",
    "0 1 2": "in its first row; separate values by commas, not by spaces",
    "sep=,": "2 columns, expected 3 x side x side, as 12,288 for 64 x 64 images, in its first row",
}


@pytest.mark.parametrize(("row", "said"), UNREADABLE_TABLES.items())
def test_a_table_whose_columns_are_not_the_pixels_is_refused(tmp_path, row, said):
    path = tmp_path / "t.csv"
    path.write_text(f"{row}\n9,2,3,1\n4,5,6,0\n")
    with pytest.raises(ScoreError, match=said):
        open_images(path)


def test_a_table_whose_lines_end_in_cr_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"r,g,b\r9,2,3\r4,5,6\r")
    with pytest.raises(ScoreError, match="t.csv: its lines end in CR alone; save it with LF or CR"):
        open_images(path)


def test_a_table_in_utf_16_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("0,1,2\n9,2,3\n", encoding="utf-16")
    with pytest.raises(ScoreError, match="t.csv: is UTF-16; save it as UTF-8"):
        open_images(path)


def test_a_csv_may_carry_an_index(tmp_path, capsys):
    path = tmp_path / "t.csv"
    path.write_text(",0,1,2\n0,9,2,3\n1,4,5,6\n")  # as pandas writes it
    assert open_images(path).pixels(1).tolist() == [[[4, 5, 6]]]
    assert "its first column is taken for an index\n" in capsys.readouterr().err
    path.write_text("name,p0,p1,p2\nb_2.png,9,2,3\nb_0.png,4,5,6\n")
    assert open_images(path).pixels(1).tolist() == [[[4, 5, 6]]]
    assert "an index; rows are not paired by b_2.png, b_0.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "x.png: not a readable image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "x.png: not a readable image"),
        (b"text", "x.png: not a readable image"),
        (encoded(draw_images(1, 0, 64)[0])[:300], "x.png: not a readable image"),
        (encoded(np.zeros((4, 4), np.float32), "TIFF"), "x.png: floating-point pixels"),
        (encoded(np.zeros((7, 5, 3), np.uint8)), "x.png: 5 x 7: 35 pixels; allowed are 30"),
    ],
)
def test_a_bad_image_is_named_in_one_line(monkeypatch, data, message):
    monkeypatch.setenv("INPUT_LIMITS", f"pixels={30 if '5 x 7' in message else 10_000}")
    with pytest.raises(ScoreError, match=message) as caught:
        decode_image(data, "x.png")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "C:\\a.png", "in/../../a.png"])
def test_a_zip_member_outside_the_archive_is_refused(tmp_path, name, pixels):
    path = write_zip(tmp_path / "a.zip", {name: encoded(pixels[0]), "b.png": encoded(pixels[0])})
    with pytest.raises(ScoreError, match="points outside the archive"):
        open_images(path)


def test_an_overlong_zip_member_is_refused(tmp_path, monkeypatch, pixels):
    monkeypatch.setenv("INPUT_LIMITS", "file_bytes=50")
    images = open_images(write_zip(tmp_path / "a.zip", {f"{i}.png": b"0" * 60 for i in range(2)}))
    with pytest.raises(ScoreError, match=r"0.png: unpacked: 51 bytes; allowed are 50"):
        images.pixels(0)


def test_a_damaged_zip_member_is_named(tmp_path, pixels):
    path = write_zip(tmp_path / "a.zip", {f"{i}.png": encoded(pixels[i]) for i in range(2)})
    data = bytearray(path.read_bytes())
    data[60] ^= 255  # inside the first member: its checksum fails
    path.write_bytes(data)
    with pytest.raises(ScoreError, match=r"0.png: cannot be unpacked"):
        open_images(path).pixels(0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a,b,c"], "no images; at least two"),
        (["a,b,c", "1,2,3"], "only one image; at least two"),
        (["a,b", "1,2", "1,2"], "2 columns, expected 3 x side x side"),
        (["a,b,c", "1,2,3", "1,2"], "row 1: 2 columns, the first row has 3"),
        (["a,b,c", "1,2,3", "1,two,3"], "row 1: column 1 is 'two', expected a number"),
        (["a,b,c", "1,2,3", "1,,3"], "row 1: column 1 is '', expected a number"),
        (["a,b,c", "1,2,3", "1,256,3"], "row 1: values must be whole numbers from 0 to 255"),
        (["a,b,c", "1,2,3", "1,-1,3"], "row 1: values must be whole numbers from 0 to 255"),
        (["a,b,c", "1,2,3", "1,nan,3"], "row 1: values must be whole numbers from 0 to 255"),
        (["a,b,c", "1,2,3", "0.5,1,3"], "row 1: values must be whole numbers from 0 to 255"),
    ],
)
def test_a_bad_csv_names_its_row(tmp_path, rows, message):
    path = tmp_path / "t.csv"
    path.write_text("\n".join(rows) + "\n\n")

    def read_all() -> None:
        images = open_images(path)
        for index in range(len(images)):
            images.pixels(index)

    with pytest.raises(ScoreError, match=message) as caught:
        read_all()
    assert "t.csv" in str(caught.value)


def test_a_csv_may_have_windows_line_ends_and_decimal_points(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,b,c\r\n1.0,2,3\r\n4, 5,6\r\n")
    assert open_images(path).pixels(0).tolist() == [[[1, 2, 3]]]
    assert open_images(path).pixels(1).tolist() == [[[4, 5, 6]]]


def test_missing_empty_and_foreign_paths_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.tar").write_bytes(b"")
    (tmp_path / "x.zip").write_bytes(b"PK no")
    cases = {
        "nowhere": "no such file or folder",
        "empty": "no images; at least two",
        "x.tar": "expected a folder, a .zip, a .csv or an .npz",
        "x.zip": "not a readable zip",
    }
    for name, message in cases.items():
        with pytest.raises(ScoreError, match=f"{name}: {message}"):
            open_images(tmp_path / name)


def test_a_link_to_a_folder_is_left_out_with_a_note(tmp_path, pixels, capsys):
    folder = write_folder(tmp_path / "a", pixels)
    (folder / "more").symlink_to(write_folder(tmp_path / "b", pixels))
    assert len(folder_names(folder, recursive=True)) == len(pixels)
    said = capsys.readouterr().err
    assert said == f"note: {folder}: more is a link to a folder, which is left out\n"


def test_a_folder_that_cannot_be_gone_into_is_left_out_with_a_note(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.png").write_bytes(encoded(RGB))
    (tmp_path / "theirs").mkdir()
    scan = os.scandir

    def closed(path: str | Path) -> object:
        if Path(path).name == "theirs":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert folder_names(tmp_path, recursive=True) == ["mine/a.png"]
    said = capsys.readouterr().err
    assert said == f"note: {tmp_path}/theirs: Permission denied; its content is left out\n"


SYSTEMS = ["@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "$RECYCLE.BIN/$IABC.png", "lost+found/b.png"]


@pytest.mark.parametrize("name", [*SYSTEMS, "#recycle/a.png", "__MACOSX/a.png"])
def test_copies_that_a_system_keeps_are_no_pictures_of_the_users(name):
    assert not is_picture(name)
    assert is_picture(f"x{name}")


def of_macs(content: bytes) -> bytes:
    """A zip as Macs pack it: names are UTF-8, and no flag says so."""
    changed = bytearray(content)
    for header, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        place = -1
        while (place := changed.find(header, place + 1)) >= 0:
            changed[place + offset + 1] &= ~0x08
    return bytes(changed)


def test_names_in_a_zip_are_those_of_the_machine_that_packed_it(tmp_path):
    members = {"caf\u00e9.png": encoded(RGB), "out\\sub\\b.png": encoded(255 - RGB)}
    path = write_zip(tmp_path / "a.zip", members)
    path.write_bytes(of_macs(path.read_bytes()))
    images = open_images(path)
    assert images.names == ["caf\u00e9.png", "out/sub/b.png"]
    np.testing.assert_array_equal(images.pixels(1), 255 - RGB)
    source = open_pictures(path)
    assert source.files == images.names
    assert source.read("caf\u00e9.png") == encoded(RGB)


def test_colours_other_than_srgb_are_told_of_once_but_not_of_masks(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fid.files._noted", set())
    profile = b"." * 16 + b"RGB " + b"." * 200
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "PNG", icc_profile=profile)
    decode_image(buffer.getvalue(), "mask.png", lambda image, name: np.asarray(image))
    assert capsys.readouterr().err == ""
    for name in ("a.png", "b.png"):
        np.testing.assert_array_equal(decode_image(buffer.getvalue(), name), RGB)
    text = "declares a colour space other than sRGB; its values are not converted"
    assert capsys.readouterr().err == f"note: a.png {text}\n"


def test_a_name_cannot_break_the_line_of_a_note(capsys):
    note("two\nlines \x1b[31mred.heic left out")
    assert capsys.readouterr().err == "note: two lines \\x1b[31mred.heic left out\n"


def test_a_password_of_a_url_is_hidden_as_by_the_suite():
    for text in ("https:/me:secret@host/a.zip: no such file", "http://me:my secret@host", "a: b@c"):
        assert str(ScoreError(text)) == str(UserError(text))
    assert str(ScoreError("https:/me:secret@host/a.zip")) == "https:/me:***@host/a.zip"
    assert files.PASSWORDS == errors.PASSWORDS
    assert str(ScoreError("https:/h/x?passwd=secret&a=b: gone")).endswith("?passwd=***&a=b: gone")


def test_a_manifest_may_write_an_accent_otherwise_than_the_folder(tmp_path, pixels):
    folder = write_folder(tmp_path / "a", pixels)
    composed, apart = (unicodedata.normalize(form, "\u00e9.png") for form in ("NFC", "NFD"))
    for there, asked in ((composed, apart), (apart, composed)):
        (folder / "image_000.png").rename(folder / there)
        images = open_images(folder, [asked, "image_001.png"])
        assert images.names == [there, "image_001.png"]
        (folder / there).rename(folder / "image_000.png")


def test_a_manifest_without_images_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text('{"images": []}')
    with pytest.raises(ScoreError, match=r"manifest\.json: lists no images"):
        read_manifest(tmp_path)
