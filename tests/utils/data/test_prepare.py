"""A prepared data set: its layout, what is in which split, and what happens on a mistake."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
import time
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prepare_data
from config.errors import MachineError, UserError
from utils.cli import run
from utils.data import photos
from utils.data import prepare as preparing
from utils.data.pairs import list_images
from utils.data.photos import BANDS, PHOTOS, Photos, draw_box, photo_path
from utils.data.prepare import Preparation, channel_statistics, prepare
from utils.data.sources import deal, open_pictures
from utils.io.images import encode_png, load_mask, load_rgb

ROOT = Path(__file__).parents[3]
PARTS = ("train", "val", "test", "masked_image", "mask64")
SMALL = Preparation((6, 3, 2), image_size=16)


def picture(seed: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def put(folder: Path, seeds: range | list[int]) -> Path:
    """A folder of files 0.png, 1.png, ..., one for each seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in enumerate(seeds):
        (folder / f"{name}.png").write_bytes(encode_png(picture(seed)))
    return folder


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def make(source: Path, out: Path, settings: Preparation = SMALL, **options: bool) -> dict:
    prepare(open_pictures(source), out, settings, workers=2, **options)
    return json.loads((out / "dataset.json").read_text())


def pixels(folder: Path) -> list[bytes]:
    return [load_rgb(path).tobytes() for path in list_images(folder)]


def everything(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_the_layout_has_the_labs_names_and_polarity(tmp_path):
    make(put(tmp_path / "in", range(11)), tmp_path / "out")
    names = sorted(everything(tmp_path / "out"))
    assert names == sorted(
        [f"train/image_{i:05d}.png" for i in range(6)]
        + [f"val/image_{i:05d}.png" for i in range(3)]
        + [f"{part}_{i:03d}.png" for part in ("test/image", "mask64/mask") for i in range(2)]
        + [f"masked_image/image_{i:03d}.png" for i in range(2)]
        + ["dataset.json"]
    )
    for i in range(2):
        mask_file = tmp_path / f"out/mask64/mask_{i:03d}.png"
        with Image.open(mask_file) as image:
            assert image.mode == "L"
            assert set(np.unique(np.asarray(image))) == {0, 255}
        hole = load_mask(mask_file)
        truth, masked = (
            np.asarray(load_rgb(tmp_path / f"out/{part}/image_{i:03d}.png"))
            for part in ("test", "masked_image")
        )
        assert (masked[hole] == 128).all()
        assert (masked[~hole] == truth[~hole]).all()
        assert 0.1 < hole.mean() < 0.4


def test_the_description_says_what_was_made_of_what(tmp_path):
    found = make(put(tmp_path / "in", range(11)), tmp_path / "out")
    train = np.frombuffer(b"".join(pixels(tmp_path / "out/train")), np.uint8).reshape(-1, 3) / 255
    assert found["mean"] == pytest.approx(train.mean(axis=0))
    assert found["std"] == pytest.approx(train.std(axis=0))
    assert found["kind"] == "images"
    assert found["source"] == "in"  # a name, no path of this machine
    assert found["split"] == {"train": 6, "val": 3, "test": 2}
    assert (found["seed"], found["image_size"]) == (0, 16)
    assert (found["holes"], found["hole_share"]) == ("lab", [0.15, 0.35])
    assert found["files"] == {"files": 11, "read": 11, "distinct": 11, "unreadable": 0}
    assert found["skipped"] == []
    assert len(found["content_sha256"]) == len(found["source_sha256"]) == 64


def test_the_seed_decides_everything_and_a_zip_equals_its_folder(tmp_path):
    folder = put(tmp_path / "in", range(14))
    archive = pack(tmp_path / "in.zip", {p.name: p.read_bytes() for p in folder.iterdir()})
    first = make(folder, tmp_path / "a")
    assert make(archive, tmp_path / "b")["content_sha256"] == first["content_sha256"]
    other = make(folder, tmp_path / "c", Preparation((6, 3, 2), image_size=16, seed=1))
    assert other["content_sha256"] != first["content_sha256"]
    for part in PARTS:
        assert pixels(tmp_path / "a" / part) == pixels(tmp_path / "b" / part)
        assert pixels(tmp_path / "a" / part) != pixels(tmp_path / "c" / part)


def test_images_are_found_at_any_depth_and_cut_to_the_centred_square(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200  # the centred square is all 200
    (tmp_path / "in/deep/er").mkdir(parents=True)
    put(tmp_path / "in/.hidden", range(20, 30))
    (tmp_path / "in/deep/er/wide.png").write_bytes(encode_png(wide))
    put(tmp_path / "in/deep", range(2))
    make(tmp_path / "in", tmp_path / "out", Preparation((1, 1, 1), image_size=16))
    square = bytes([200]) * (16 * 16 * 3)
    assert square in [p for s in ("train", "val", "test") for p in pixels(tmp_path / "out" / s)]


def test_unreadable_files_are_named_counted_and_skipped(tmp_path, capsys):
    folder = put(tmp_path / "in", range(11))
    (folder / "broken.jpg").write_bytes(b"no image")
    found = make(folder, tmp_path / "out")
    assert found["files"]["unreadable"] == 1
    assert found["skipped"][0].startswith("broken.jpg: cannot be read as an image")
    told = capsys.readouterr().out
    assert f"images from {folder} (12 files, " in told
    assert "skipped 1 files" in told
    assert "broken.jpg" in told


def test_with_enough_images_each_is_used_once(tmp_path):
    make(put(tmp_path / "in", [*range(11), *range(11)]), tmp_path / "out")
    used = [p for split in ("train", "val", "test") for p in pixels(tmp_path / "out" / split)]
    assert len(used) == len(set(used)) == 11


def test_copies_never_cross_splits_and_only_fill_up_train(tmp_path):
    # 7 distinct images, 4 of them twice: 11 files
    make(put(tmp_path / "in", [*range(7), *range(4)]), tmp_path / "out", Preparation((8, 1, 2), 16))
    train, val, test = (pixels(tmp_path / "out" / split) for split in ("train", "val", "test"))
    assert len(set(val + test)) == 3
    assert not set(train) & set(val + test)
    assert len(train) == 8
    assert len(set(train)) == 4


def test_copies_that_do_not_fit_are_an_error_with_counts(tmp_path):
    folder = put(tmp_path / "in", [*range(6), *range(6)])
    with pytest.raises(UserError) as caught:
        make(folder, tmp_path / "out")
    assert str(caught.value) == (
        f"{folder}: too few usable images (12 files, 12 read, 6 distinct, 0 unreadable; copies of"
        " an image share a split), but --split asks for 6 + 3 + 2 = 11; try --split 2 2 2"
    )


def test_dealing_gives_test_and_val_the_images_without_copies():
    dealt = deal({"a": 2, "b": 1, "c": 2, "d": 1}, {"train": 4, "val": 1, "test": 1})
    assert dealt == {"test": ["b"], "val": ["d"], "train": ["a", "c", "a", "c"]}
    assert deal({"a": 2, "b": 1, "c": 2, "d": 1}, {"train": 5, "val": 1, "test": 1}) is None


def test_too_few_files_are_an_error_with_counts(tmp_path):
    with pytest.raises(
        UserError, match=r"/in: too few usable .*3 distinct.*--split asks for 6 \+ 3 \+ 2 = 11$"
    ):
        make(put(tmp_path / "in", [0, 1, 2, *[0] * 8]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_split_larger_than_the_files_is_told_before_any_is_read(tmp_path):
    source = open_pictures(put(tmp_path / "in", range(10)))
    source.read = None
    told = r"\(10 files\), but --split asks for 6 \+ 3 \+ 2 = 11; try --split 6 2 2$"
    with pytest.raises(UserError, match=told):
        prepare(source, tmp_path / "out", SMALL)


def test_the_first_picture_that_is_enlarged_is_noted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("utils.io.messages._told", set())
    folder = put(tmp_path / "in", range(11))
    (folder / "3.png").write_bytes(encode_png(picture(3, 12, 30)))
    make(folder, tmp_path / "out")
    assert "note: 3.png has 30 x 12 pixels; it is enlarged to 16 x 16\n" in capsys.readouterr().err


def test_a_zip_whose_members_point_outside_is_refused_and_nothing_is_written(tmp_path):
    members = {f"../../evil/{i}.png": encode_png(picture(i)) for i in range(11)}
    with pytest.raises(UserError, match=r"member '\.\./\.\./evil/0\.png' points outside"):
        make(pack(tmp_path / "in.zip", members), tmp_path / "here/out")
    assert {path.name for path in tmp_path.iterdir()} == {"in.zip"}


def test_what_a_mac_adds_to_a_zip_is_no_image(tmp_path):
    members = {f"{i}.png": encode_png(picture(i)) for i in range(11)}
    members["__MACOSX/._0.png"] = b"resource fork"
    found = make(pack(tmp_path / "in.zip", members), tmp_path / "out")
    assert found["files"]["files"] == 11
    assert not found["skipped"]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_pictures_of_other_formats_are_told_of(tmp_path, capsys, kind):
    folder = put(tmp_path / "in", range(11))
    put(folder / "more", [])
    (folder / "more" / "a.avif").write_bytes(b"picture")
    (folder / "notes.txt").write_text("text")
    if kind == "zip":
        files = [path for path in folder.rglob("*") if path.is_file()]
        members = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        folder = pack(tmp_path / "in.zip", members)
    assert make(folder, tmp_path / "out")["files"]["files"] == 11
    said = capsys.readouterr().err
    assert f"note: {folder}: more/a.avif left out; allowed are .bmp, .gif, .jfif, .jpeg" in said


def test_an_encrypted_zip_is_refused(tmp_path):
    path = pack(tmp_path / "in.zip", {"0.png": encode_png(picture(0))})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"in\.zip: is encrypted"):
        open_pictures(path)


def test_only_the_pictures_of_a_zip_are_read(tmp_path):
    members = {f"{i}.png": encode_png(picture(i)) for i in range(11)}
    members |= {"folder_a/": b"", "folder_b/": b"", "notes_a.txt": b"a", "notes_b.txt": b"b"}
    path = pack(tmp_path / "in.zip", {**members, "secret.txt": b"text"})
    content = path.read_bytes().replace(b"folder_b", b"folder_a").replace(b"notes_b", b"notes_a")
    flags = content.rindex(b"secret.txt") - 46 + 8  # in the central directory
    path.write_bytes(content[:flags] + b"\x01" + content[flags + 1 :])  # encrypted
    with zipfile.ZipFile(path) as archive:
        assert len({*archive.namelist()}) == len(archive.namelist()) - 2
        assert archive.getinfo("secret.txt").flag_bits & 1
    assert make(path, tmp_path / "out")["files"]["read"] == 11


def test_a_damaged_zip_member_and_oversized_files_are_skipped(tmp_path, monkeypatch):
    members = {f"{i}.png": encode_png(picture(i)) for i in range(11)}
    members["damaged.png"] = b"x" * 50
    members["large.png"] = bytes(6000)
    members["huge.png"] = encode_png(np.zeros((40, 40, 3), np.uint8))
    path = pack(tmp_path / "in.zip", members)
    path.write_bytes(path.read_bytes().replace(b"x" * 50, b"y" * 50))  # checksum now wrong
    monkeypatch.setenv("INPUT_LIMITS", f"file_bytes=5000,pixels={40 * 39}")
    found = make(path, tmp_path / "out", Preparation((6, 3, 2), image_size=16, seed=3))
    told = dict(line.split(": ", 1) for line in found["skipped"])
    assert set(told) <= {"damaged.png", "large.png", "huge.png"}
    source = open_pictures(path)
    reasons = {"damaged.png": "cannot be unpacked", "large.png": "6,000 bytes; allowed are 5,000"}
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=reason):
            source.read(name)
    assert told.get("huge.png", "40 x 40: 1,600 pixels").startswith("40 x 40: 1,600 pixels")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere", "no such folder or zip file"),
        ("empty", "contains no image"),
        ("empty.zip", "contains no image"),
        ("notes.txt", "is neither a folder nor a zip file"),
    ],
)
def test_a_source_without_images_says_so(tmp_path, name, reason):
    (tmp_path / "empty").mkdir()
    pack(tmp_path / "empty.zip", {"readme.txt": b"nothing"})
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UserError) as caught:
        open_pictures(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name}: {reason}"


def test_the_same_data_set_is_reused_and_a_different_one_needs_force(tmp_path, capsys):
    folder, out = put(tmp_path / "in", range(12)), tmp_path / "out"
    make(folder, out)
    before, other = everything(out), Preparation((6, 3, 2), image_size=16, seed=1)
    make(folder, out)
    assert "already contains this data set; reused" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"contains a different data set; .* --force"):
        make(folder, out, other)
    assert everything(out) == before
    make(folder, out, other, force=True)
    assert everything(out) != before
    (folder / "0.png").write_bytes(encode_png(picture(99)))
    with pytest.raises(UserError, match="contains a different data set"):
        make(folder, out, other)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_an_incomplete_data_set_is_not_reused(tmp_path):
    folder, out = put(tmp_path / "in", range(11)), tmp_path / "out"
    make(folder, out)
    (out / "val/image_00000.png").unlink()
    with pytest.raises(UserError, match="contains a different data set"):
        make(folder, out)


def test_force_never_replaces_a_folder_that_is_no_data_set(tmp_path):
    folder, home = put(tmp_path / "in", range(11)), tmp_path / "home"
    home.mkdir()
    make(folder, home)  # an empty folder is taken
    for path in home.iterdir():
        if path.is_file():
            path.unlink()
    with pytest.raises(UserError, match=r"contains files but no dataset\.json"):
        make(folder, home, force=True)
    assert len(list_images(home / "train")) == 6


@pytest.mark.parametrize("name", ["notes.txt", "train/mine.png", "test_results/image_000.png"])
def test_force_never_deletes_a_file_that_is_not_of_the_data_set(tmp_path, name):
    folder, out = put(tmp_path / "in", range(11)), tmp_path / "out"
    make(folder, out)
    for own in ("token_cache/a.npy", "val/.DS_Store"):
        (out / own).parent.mkdir(exist_ok=True)
        (out / own).write_bytes(b"")
    make(folder, out, Preparation((6, 3, 2), image_size=16, seed=1), force=True)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("dear diary")
    before = everything(out)
    with pytest.raises(UserError, match=rf"out/{name}: is not of the data set"):
        make(folder, out, force=True)
    assert everything(out) == before


@pytest.mark.parametrize("out", ["in", "in/out", ""])
def test_out_must_not_overlap_the_source(tmp_path, out):
    folder = put(tmp_path / "in", range(11))
    with pytest.raises(UserError, match="overlaps the source"):
        make(folder, tmp_path / out, force=True)
    assert len(list_images(folder)) == 11


@pytest.mark.parametrize("with_older", [False, True])
@pytest.mark.parametrize(
    "fault", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_an_interrupted_run_leaves_nothing_half_made(tmp_path, monkeypatch, fault, with_older):
    folder, out = put(tmp_path / "in", range(11)), tmp_path / "out"
    before = make(folder, out) and everything(out) if with_older else None
    calls = []

    def fail_late(pixels: np.ndarray) -> bytes:
        calls.append(1)
        if len(calls) > 9:
            raise fault
        return encode_png(pixels)

    monkeypatch.setattr(preparing, "encode_png", fail_late)
    with pytest.raises((KeyboardInterrupt, UserError)) as caught:
        make(folder, out, Preparation((6, 3, 2), image_size=16, seed=5), force=True)
    if isinstance(caught.value, UserError):
        assert str(caught.value) == f"{out}: cannot be written (No space left on device)"
    left = {path.name for path in tmp_path.iterdir()}
    assert left == ({"in", "out"} if with_older else {"in"})
    assert not with_older or everything(out) == before


def test_no_thread_writes_any_more_when_an_interrupted_set_is_deleted(tmp_path, monkeypatch):
    folder, at_work, found = put(tmp_path / "in", range(11)), [], []

    def slowly(_pixels: np.ndarray) -> bytes:
        at_work.append(1)
        time.sleep(0.02)
        at_work.pop()
        return b""

    def interrupted(files: Iterator, **_options: object) -> Iterator:
        yield next(files)
        raise KeyboardInterrupt

    monkeypatch.setattr(preparing, "encode_png", slowly)
    monkeypatch.setattr(preparing, "tqdm", interrupted)
    monkeypatch.setattr(preparing.shutil, "rmtree", lambda *_, **__: found.append(len(at_work)))
    with pytest.raises(KeyboardInterrupt):
        make(folder, tmp_path / "out")
    assert found == [0]


def test_an_out_that_cannot_be_replaced_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "_write_images", lambda *_: pytest.fail("worked"))
    folder, out = put(tmp_path / "in", range(11)), tmp_path / "out"
    out.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "ismount", lambda path: Path(path) == out)
        with pytest.raises(UserError, match="out: is a mount point, which cannot be replaced"):
            make(folder, out)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        make(folder, tmp_path / "file" / "out")
    assert str(caught.value) == f"{tmp_path / 'file'}: cannot be written (Not a directory)"


@pytest.mark.parametrize("kind", ["partial", "old"])
def test_folders_of_another_process_with_the_same_number_are_left_alone(tmp_path, kind):
    folder, out = put(tmp_path / "in", range(11)), tmp_path / "out"
    make(folder, out)
    theirs = tmp_path / f".out.{os.getpid()}.{kind}"
    theirs.mkdir()
    (theirs / "dataset.json").write_text("theirs")
    make(folder, out, Preparation((6, 3, 2), image_size=16, seed=1), force=True)
    assert (theirs / "dataset.json").read_text() == "theirs"
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", theirs.name}


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (Preparation((6, 0, 2)), "--split: 0; each part needs at least 1 image"),
        (Preparation((6, 3, 2), image_size=4), "--image-size: 4; allowed are 16 to 1024"),
        (Preparation((6, 3, 2), seed=-1), "--seed: -1; allowed are 0 and more"),
        (Preparation((6, 3, 2), hole_share=(0.4, 0.2)), "hole share: 0.4 to 0.2; allowed are"),
        (Preparation((6, 3, 2), holes="boxes"), "holes: 'boxes' is unknown"),
    ],
)
def test_a_setting_out_of_range_is_one_line(tmp_path, settings, line):
    with pytest.raises(UserError) as caught:
        make(put(tmp_path / "in", range(11)), tmp_path / "out", settings)
    assert str(caught.value).startswith(line)


# The embedded photographs


def test_the_bands_of_a_photograph_are_disjoint_and_crops_stay_within():
    edges = sorted(BANDS.values())
    assert edges[0][0] == 0
    assert edges[-1][1] == 1
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(edges))
    rng = np.random.default_rng(0)
    for size in [(451, 300), (1000, 872), (333, 77)]:
        owner = np.full(size[0], "", dtype=object)  # split that uses a column
        for split in BANDS:
            for _ in range(300):
                left, top, right, bottom = draw_box(size, split, 64, rng)
                assert right - left == bottom - top >= 64
                assert 0 <= top < bottom <= size[1]
                assert set(owner[left:right]) <= {"", split}
                owner[left:right] = split
        assert set(owner[:: size[0] // 50]) == set(BANDS)  # and they use all of it


def test_photo_crops_are_all_different_and_come_from_the_seed(tmp_path):
    settings = Preparation((60, 20, 20))
    for name in ("a", "b"):
        prepare(Photos(), tmp_path / name, settings)
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
    used = [p for split in ("train", "val", "test") for p in pixels(tmp_path / "a" / split)]
    assert len(used) == len(set(used)) == 100
    assert len(used[0]) == 64 * 64 * 3


def test_every_photograph_is_in_the_package_in_colour():
    for file in PHOTOS:
        image = np.asarray(load_rgb(photo_path(file))).astype(int)
        assert (image[..., 0] != image[..., 2]).mean() > 0.2
        assert min(image.shape[0], image.shape[1] // 5) >= 64


def test_photos_too_small_for_the_image_size_and_missing_ones_say_so(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--image-size: 128; photos allow at most 90"):
        prepare(Photos(), tmp_path / "out", Preparation((1, 1, 1), image_size=128))
    monkeypatch.setattr(photos, "PHOTOS", {"nothing.png": ""})
    with pytest.raises(UserError, match=r"nothing\.png: not in the installed scikit-image"):
        prepare(Photos(), tmp_path / "out", Preparation((1, 1, 1)))
    assert not (tmp_path / "out").exists()


def test_the_script_prepares_photos_from_the_shell(tmp_path):
    arguments = ["photos", "--out", str(tmp_path / "out"), "--split", "4", "2", "3"]
    command = [sys.executable, "prepare_data.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 train, 2 val, 3 test images" in done.stdout
    numbers = [len(list_images(tmp_path / "out" / part)) for part in PARTS]
    assert numbers == [4, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["images", "nowhere"], "nowhere: no such folder or zip file"),
        (["photos", "--split", "1", "2"], "expected 3 arguments"),
        (["photos", "--workers", "0"], "--workers: '0' is not a whole number from 1 to 256"),
        (["photos", "--holes", "round"], "invalid choice: 'round'"),
        (["photos", "--hole-share", "0.5", "0.1"], "hole share: 0.5 to 0.1; allowed are"),
    ],
)
def test_the_script_answers_a_mistake_with_one_line_and_code_2(
    tmp_path, monkeypatch, capsys, arguments, line
):
    out = str(tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *arguments, "--out", out])
    with pytest.raises(SystemExit) as left:
        run(prepare_data.main)
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert line in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


# What the machine and other systems do


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.EIO, os.strerror(errno.EIO)), OSError(errno.EMFILE, "x")]
)
def test_memory_or_a_disk_that_fails_ends_the_work_instead_of_skipping_files(
    tmp_path, monkeypatch, error
):
    folder = put(tmp_path / "pictures", range(11))

    def fail(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(MachineError, match="stays as it is"):
        prepare(open_pictures(folder), tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fails_while_files_are_hashed_is_no_other_data_set(tmp_path, monkeypatch):
    source = open_pictures(put(tmp_path / "pictures", range(3)))

    def fail(_path: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(MachineError, match="0.png: cannot be read"):
        source.fingerprint()


def test_a_disk_that_fails_within_a_zip_ends_the_work_too(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for path in put(tmp_path / "pictures", range(11)).iterdir():
            archive.write(path, path.name)
    source = open_pictures(tmp_path / "pictures.zip")

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(zipfile.ZipFile, "read", fail)
    with pytest.raises(MachineError, match="png: cannot be read: Input/output error"):
        prepare(source, tmp_path / "out", SMALL)


def test_names_that_write_an_accent_otherwise_are_the_same_source(tmp_path):
    prints = []
    for form in ("NFC", "NFD"):
        folder = put(tmp_path / form, range(2))
        (folder / "0.png").rename(folder / unicodedata.normalize(form, "\u00e9.png"))
        prints.append(open_pictures(folder).fingerprint())
    assert prints[0] == prints[1]


@pytest.mark.parametrize("target", ["gone.png", "x.png"])
def test_a_link_to_nothing_or_itself_is_counted_as_unreadable(tmp_path, target):
    folder = put(tmp_path / "pictures", range(13))
    (folder / "x.png").symlink_to(target)
    prepare(open_pictures(folder), tmp_path / "out", SMALL, workers=1)
    description = json.loads((tmp_path / "out/dataset.json").read_text())
    assert description["files"]["files"] == 14
    assert description["skipped"][0].startswith("x.png: cannot be read")


def test_a_data_set_may_have_a_name_as_long_as_the_system_allows(tmp_path):
    out = tmp_path / ("d" * 255)
    prepare(open_pictures(put(tmp_path / "pictures", range(11))), out, SMALL, workers=1)
    assert (out / "dataset.json").is_file()


def test_a_link_to_a_folder_is_left_out_with_a_note(tmp_path, capsys):
    folder = put(tmp_path / "pictures", range(2))
    (folder / "more").symlink_to(put(tmp_path / "more", range(2)))
    assert open_pictures(folder).files == ["0.png", "1.png"]
    said = capsys.readouterr().err
    assert said == f"note: {folder}: more is a link to a folder, which is left out\n"


def test_a_profile_that_a_set_cannot_keep_is_told_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("utils.io.messages._told", set())
    folder = put(tmp_path / "pictures", range(11))
    for number in (4, 7):
        profile = b"." * 16 + b"RGB " + b"." * 200
        Image.fromarray(picture(number)).save(folder / f"{number}.png", icc_profile=profile)
    prepare(open_pictures(folder), tmp_path / "out", SMALL, workers=1)
    assert capsys.readouterr().err.count("has a colour profile; it is left out") == 1


def test_channel_statistics_are_those_of_all_pixels_together():
    pictures = np.random.default_rng(0).integers(256, size=(5, 8, 6, 3), dtype=np.uint8)
    mean, std = channel_statistics(pictures)
    assert mean == pytest.approx((pictures / 255).mean(axis=(0, 1, 2)))
    assert std == pytest.approx((pictures / 255).std(axis=(0, 1, 2)))


def test_a_description_that_cannot_be_read_is_no_other_data_set(tmp_path, monkeypatch):
    # --force would be advised for another one, and deletes it
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    assert not preparing._is_same(tmp_path, {})  # there is none
    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(MachineError, match=r"dataset.json: cannot be read: Input/output error"):
        preparing._is_same(tmp_path, {})


def test_a_zip_that_a_failing_disk_hides_is_not_called_something_else(tmp_path):
    (tmp_path / "a.zip").symlink_to("/proc/self/mem")  # whose first bytes cannot be read
    with pytest.raises(MachineError, match=r"a.zip: cannot be read: Input/output error; it stays"):
        open_pictures(tmp_path / "a.zip")
