"""Zips, csv tables, statistics, manifests and certificates that are broken, hostile or huge."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fault_case import (
    INPAINT,
    PREPARE,
    REPAIRED,
    SCORE,
    ZIPPED,
    Case,
    Maker,
    both,
    linked,
    manifest_with,
    put,
    removed,
    sparse,
)
from fault_files import (
    MIB,
    Hostile,
    bomb,
    claiming,
    encoded,
    encrypted,
    npz,
    of_macs,
    packed,
    patched,
    pictures,
    pixels,
    row,
    table,
)

GIB = 1024 * MIB
SCORED_ZIP = SCORE.replace("results", "bad.zip") + " --gt-path truth"
SCORED_CSV = SCORE + " --gt-path bad.csv"
REPAIRED_CSV = INPAINT.replace("--data job", "--images job/masked_image --masks job/mask64") + (
    " --ground-truth bad.csv"
)
STATISTICS = SCORE + " --gt-path bad.npz"
GOOD, STORED = packed(pictures()), packed(pictures(), zipfile.ZIP_STORED)
LZMA = packed(pictures(), zipfile.ZIP_LZMA)
ROWS = [row(i) for i in range(8)]


def _with(name: str) -> bytes:
    """A good zip with one member of that name."""
    return packed({**pictures(), name: pictures(1)["image_0.png"]})


def _twice() -> bytes:
    """A zip that holds one name twice."""
    return _with("image_A.png").replace(b"image_A.png", b"image_0.png")


ZIPS = {  # what is wrong: content of bad.zip, said by prepare_data.py, said by the scorer
    "with a path out of it": (_with("../../evil.png"), "points outside", "points outside"),
    "with an absolute path": (_with("/tmp/evil.png"), "points outside", "points outside"),
    "with a Windows path": (_with("C:\\evil.png"), "points outside", "points outside"),
    "with one name twice": (_twice(), "two members are called", "two members are called"),
    "that is encrypted": (encrypted(GOOD), "is encrypted; unpack it", "cannot be unpacked"),
    "that is truncated": (GOOD[:999], "is neither a folder nor a zip", "not a readable zip"),
    "of zero bytes": (b"", "is neither a folder nor a zip", "not a readable zip"),
    "of text": (b"not a zip\n", "is neither a folder nor a zip", "not a readable zip"),
    "without pictures": (packed({"readme.txt": b"text"}), "contains no image", "no images"),
    "of a zip": (packed({"a.zip": GOOD}), "contains no image", "no images"),
    "packed by an unknown method": (
        patched(GOOD, 10, b"\x63\x00"), "too few usable images (11 files, 0 read", "unpacked"),
    "with broken members": (
        STORED.replace(b"IDAT", b"TADI"), "too few usable images", "bad.zip/image_0.png"),
    "whose members are larger than they say": (
        claiming(GOOD, 40), "too few usable images", "bad.zip/image_0.png"),
}  # fmt: skip


def _zips() -> list[Case]:
    cases = []
    for what, (content, prepared, scored) in ZIPS.items():
        make = put("bad.zip", content)
        cases.append(Case(f"a zip to prepare {what}", ZIPPED, prepared, make))
        cases.append(Case(f"a zip to score {what}", SCORED_ZIP, scored, make))
    return cases


def _of_windows(content: bytes) -> bytes:
    """The same zip with \\ below folders, as some programs write it."""
    return content.replace(b"sub/", b"sub\\")


def _foreign(pack: Callable[[bytes], bytes]) -> Maker:
    """A zip of another system's, and a truth with the same names."""

    def make(folder: Path) -> None:
        names = [f"{name}.png" for name in ("caf\u00e9", "m\u00fcsli", "ni\u00f1o")]
        members = {f"sub/{name}": encoded(pixels(i)) for i, name in enumerate(names)}
        put("bad.zip", pack(packed(members)))(folder)
        shutil.rmtree(folder / "truth")
        both(*(put(f"truth/{name}", encoded(pixels(9))) for name in names))(folder)

    return make


def _bomb(folder: Path) -> None:
    (folder / "bad.zip").write_bytes(bomb())


BOMBS = [
    Case("a zip to prepare with a bomb among its pictures", ZIPPED, "", _bomb, REPAIRED),
    Case("a zip to score with a bomb among its pictures", SCORED_ZIP,
         "bomb.png: unpacked: 268,435,457 bytes; allowed are 268,435,456", _bomb),
    Case("a zip to prepare of more members than allowed", ZIPPED, "11 members; allowed are 10",
         put("bad.zip", GOOD), limits="members=10"),
    Case("a zip to score of more members than allowed", SCORED_ZIP, "11 members; allowed are 10",
         put("bad.zip", GOOD), limits="members=10"),
    Case("a zip that unpacks to more than allowed", ZIPPED, "bytes; allowed are 999",
         put("bad.zip", GOOD), limits="archive_bytes=999"),
    Case("a zip to prepare whose members claim 4 GiB", ZIPPED, "too few usable images (11 files, 0",
         put("bad.zip", claiming(GOOD, 2**32 - 2))),
    Case("a zip to score whose members claim 4 GiB and hold less", SCORED_ZIP, "",
         put("bad.zip", claiming(GOOD, 2**32 - 2)), REPAIRED),
    Case("a pipe as zip", SCORED_ZIP, "bad.zip: is neither a file nor a folder",
         lambda folder: os.mkfifo(folder / "bad.zip")),
    Case("a zip that links to itself", ZIPPED, "bad.zip: no such", linked("bad.zip", "bad.zip")),
    Case("a folder for the zip's data set that holds other files", f"{ZIPPED} --force",
         "prepared: contains files but no dataset.json",
         both(put("bad.zip", GOOD), put("prepared/diary.txt", "dear diary"))),
    Case("a data set to replace that holds a file of the user", f"{ZIPPED} --force",
         "prepared/diary.txt: is not of the data set",
         both(put("bad.zip", GOOD), put("prepared/dataset.json", "{}"),
              put("prepared/diary.txt", "dear diary"))),
    Case("a data set whose description is broken", ZIPPED, "contains a different data set",
         both(put("bad.zip", GOOD), put("prepared/dataset.json", "{"))),
    Case("a data set whose description is a list", ZIPPED, "contains a different data set",
         both(put("bad.zip", GOOD), put("prepared/dataset.json", "[1]"))),
    Case("a data set whose description is 100,000 brackets deep", ZIPPED, "a different data set",
         both(put("bad.zip", GOOD), put("prepared/dataset.json", "[" * 100_000))),
    Case("earlier repairs whose manifest is 100,000 brackets deep", INPAINT, "",
         put("out/test_results/manifest.json", "[" * 100_000), REPAIRED, results=3,
         replaced="out/test_results/manifest.json"),
    Case("a zip in LZMA with a broken member", ZIPPED, "too few usable images",
         put("bad.zip", LZMA.replace(b"\x09\x04\x05", b"\x09\x04\x09"))),
    Case("a zip to prepare with a zip among its pictures", ZIPPED,
         "bad.zip: more.zip left out; allowed are .bmp",
         put("bad.zip", packed({**pictures(), "more.zip": packed(pictures(2))})), REPAIRED),
    Case("a zip to score with a zip among its pictures", SCORED_ZIP,
         "bad.zip: more.zip left out; allowed are .bmp",
         put("bad.zip", packed({**pictures(8), "more.zip": packed(pictures(2))})), REPAIRED),
    Case("a zip to score with hidden files and a notebook's copies", SCORED_ZIP, "",
         put("bad.zip", packed({**pictures(8), ".a.png": b"", "b/.checkpoints/image_0.png": b"",
                                "b/__MACOSX/image_1.png": b""})), REPAIRED),
    *(Case(f"a zip to {what} with a name of 9,000 digits", command, "",
           put("bad.zip", packed({**pictures(11), f"{'9' * 9000}.png": encoded(pixels(99))})),
           REPAIRED) for what, command in (("prepare", ZIPPED), ("score", SCORED_ZIP))),
    *(Case(f"a zip {what} to score", f"{SCORED_ZIP} --metrics fid,paired", "", make, REPAIRED)
      for what, make in (("of a Mac", _foreign(of_macs)), ("of Windows", _foreign(_of_windows)))),
    Case("a storage server's thumbnails among pictures to prepare",
         PREPARE.replace("6 3 2", "7 3 2"), "pictures: too few usable images (11 files",
         put("pictures/@eaDir/image_1.png/SYNOPHOTO_THUMB_M.png", encoded(pixels(99)))),
    Case("a pipe as zip to prepare", ZIPPED, "bad.zip: is neither a folder nor a zip file",
         lambda folder: os.mkfifo(folder / "bad.zip")),
    Case("a pipe as csv of ground truth", REPAIRED_CSV, "bad.csv: is not a file",
         lambda folder: os.mkfifo(folder / "bad.csv")),
    Case("a pipe in the place of a certificate", f"{SCORE} --json bad.json",
         "bad.json: cannot be written (is no file)", lambda folder: os.mkfifo(folder / "bad.json")),
    Case("a folder to prepare that links to itself", PREPARE.replace("prepared", "loop"),
         "loop: is not a folder", linked("loop", "loop")),
]  # fmt: skip

TABLES: dict[str, tuple[str | Maker, str]] = {  # content of bad.csv, what the scorer says
    "of zero bytes": ("", "bad.csv"),
    "of a header only": (table([]), "no images"),
    "of one row": (table(ROWS[:1]), "only one image"),
    "with too many columns": (table(ROWS, 999), "999 columns, expected 3 x side x side"),
    "with a short row": (table([*ROWS[:7], "1,2,3"]), "row 7: 3 columns, the first row has 768"),
    "with text in it": (table([*ROWS[:7], row("x")]), "row 7: column 0 is 'x', expected a number"),
    "with 256 in it": (table([*ROWS[:7], row(256)]), "row 7: values must be whole numbers"),
    "with -1 in it": (table([*ROWS[:7], row(-1)]), "row 7: values must be whole numbers"),
    "with fractions": (table([*ROWS[:7], row(0.5)]), "row 7: values must be whole numbers"),
    "with not a number": (table([*ROWS[:7], row("nan")]), "row 7: values must be whole numbers"),
    "with semicolons": (table(ROWS).replace(",", ";"), "columns, expected 3 x side x side"),
    "of random bytes": (lambda folder: put("bad.csv", np.random.default_rng(0).bytes(5000))(folder),
                        "bad.csv"),
    "of 9 GiB": (sparse("bad.csv", 9 * GIB, b"a,b\n"), "9,663,676,416 bytes; allowed are"),
    "with a row of 200 MiB": (sparse("bad.csv", 200 * MIB), "a row: 67,108,865 bytes; allowed"),
}  # fmt: skip
TRUTHS = {
    "of zero bytes": ("", "bad.csv: 1 columns, expected 3 x side x side"),
    "with a row of 200 MiB": (sparse("bad.csv", 200 * MIB), "a row: 67,108,865 bytes"),
    "that is not there": (lambda folder: None, "bad.csv"),
}
ODD_TABLES = [
    Case("a csv of ground truth with more rows than images", REPAIRED_CSV,
         "note: bad.csv: 5 rows more than images are left out", put("bad.csv", table(ROWS)),
         REPAIRED, results=3),
    Case("a csv with more rows than images", f"{SCORED_CSV} --metrics fid,paired",
         "note: bad.csv: 5 rows more than images are left out",
         put("bad.csv", table(ROWS + ROWS[:5])), REPAIRED),
    Case("a csv whose rows may have 1e30 bytes", SCORED_CSV, "", put("bad.csv", table(ROWS)),
         REPAIRED, limits="row_bytes=1e30"),
    Case("a csv with Windows line ends", SCORED_CSV, "",
         put("bad.csv", table(ROWS).replace("\n", "\r\n")), REPAIRED),
    Case("a csv without a line end at its end", SCORED_CSV, "",
         put("bad.csv", table(ROWS).rstrip("\n")), REPAIRED),
    Case("a csv with empty lines", SCORED_CSV, "",
         put("bad.csv", table(ROWS).replace("\n", "\n\n")), REPAIRED),
]  # fmt: skip


def _headed(header: str) -> bytes:
    """Statistics whose mean has such a header and no numbers."""
    start = b"\x93NUMPY\x01\x00\x76\x00"
    return packed({"mu.npy": start + header.encode().ljust(117) + b"\n", "sigma.npy": b""})


EYE, ZEROS = np.eye(64), np.zeros(64)
ARRAYS: dict[str, tuple[bytes, str]] = {  # content of bad.npz, what is said
    "of zero bytes": (b"", "not a readable npz"),
    "of text": (b"statistics\n", "not a readable npz"),
    "that is truncated": (npz(mu=ZEROS, sigma=EYE)[:300], "not a readable npz"),
    "without sigma": (npz(mu=ZEROS), "no 'sigma' in it (it contains mu)"),
    "of other dims": (npz(mu=ZEROS[:9], sigma=EYE[:9, :9]), "have 64 dims"),
    "with not a number": (npz(mu=ZEROS + np.nan, sigma=EYE), "not finite"),
    "of text in arrays": (npz(mu=ZEROS.astype(str), sigma=EYE), "not of real numbers"),
    "of complex numbers": (npz(mu=ZEROS + 1j, sigma=EYE), "not of real numbers"),
    "with a program": (npz(mu=[Hostile()] * 64, sigma=EYE), "not a readable npz"),
    "with a program for a number": (npz(mu=ZEROS, sigma=EYE, n=[Hostile()]), "not a readable npz"),
    "of bytes without a header": (packed({"mu.npy": b"0" * 512, "sigma.npy": b""}), "npy header"),
    "with an open quote in a header": (_headed("{'descr': '<f8', 'shape': ("), "not a readable"),
    "with a number for a header": (_headed("7"), "not a readable npz"),
    "with a shape of text": (
        _headed("{'descr': '<f8', 'fortran_order': False, 'shape': ('a',)}"), "not a readable npz"),
    "with a list of fields": (
        _headed("{'descr': [7], 'fortran_order': False, 'shape': (1,)}"), "not a readable npz"),
    "of a negative number of images": (npz(mu=ZEROS, sigma=EYE, n=-3), "n is -3, expected"),
    "of many numbers of images": (npz(mu=ZEROS, sigma=EYE, n=[3, 4]), "n is [3 4], expected"),
    "with features of not a number": (
        npz(mu=ZEROS, sigma=EYE, features=np.full((3, 64), np.nan)), "not finite"),
    "of other features": (npz(mu=ZEROS, sigma=EYE, backend="dinov2"), "made with backend dinov2"),
    "that claims to unpack to 3.9 GiB": (
        claiming(npz(mu=ZEROS, sigma=EYE), 2_100_000_000), "bytes; allowed are 2,147,483,648"),
    "with an array of 10^15 numbers": (
        _headed("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"),
        "not a readable npz"),
}  # fmt: skip


def _manifest(change: object) -> Maker:
    """Another manifest in the folder of results."""

    def make(folder: Path) -> None:
        path = folder / "results" / "manifest.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    return make


MANIFESTS: dict[str, tuple[Maker, str]] = {
    "that is no JSON": (put("results/manifest.json", "{"), "not readable JSON"),
    "of random bytes": (put("results/manifest.json", bytes(range(256))), "not readable JSON"),
    "100,000 brackets deep": (put("results/manifest.json", "[" * 100_000), "not readable JSON"),
    "that is a list": (put("results/manifest.json", "[]"), "expected an object with a list"),
    "without images": (put("results/manifest.json", "{}"), "expected an object with a list"),
    "that names no truth": (_manifest(lambda m: m.pop("ground_truth")), "names no ground truth"),
    "with a threshold in words": (
        manifest_with(mask_threshold="low"), "'mask_threshold' must be a whole number or null"),
    **{f"with a threshold of {value}": (
        manifest_with(mask_threshold=value),
        f"'mask_threshold' is {value}; allowed are 1 to 255") for value in (0, 256)},
    "with an inversion in words": (
        manifest_with(inverted_masks="yes"), "'inverted_masks' must be true, false or null"),
    "with a number for a path": (_manifest(lambda m: m.update(ground_truth=3)), "must be a path"),
    "that names a missing image": (
        _manifest(lambda m: m["images"][1].update(image="gone.png")), "no image 'gone.png'"),
    "that names an image elsewhere": (
        _manifest(lambda m: m["images"][1].update(image="../truth/image_1.png")), "no image"),
    "with a list for a name": (_manifest(lambda m: m["images"][1].update(image=[1])), "no image"),
    "of one image": (_manifest(lambda m: m.update(images=m["images"][:1])), "only one image"),
    "whose truth is not there": (removed("truth/image_1.png"), "no image 'image_1.png'"),
}  # fmt: skip
CERTIFICATES = {
    "that is no JSON": ("{", "not readable JSON"),
    "100,000 brackets deep": ("[" * 100_000, "not readable JSON"),
    "of another format": ('{"format": 9}', "not a score certificate of format 1"),
    "that is nearly empty": ('{"format": 1}', "is missing"),
}

CASES = [
    *_zips(),
    *BOMBS,
    *(
        Case(f"a csv {what}", SCORED_CSV, says,
             content if callable(content) else put("bad.csv", content))
        for what, (content, says) in TABLES.items()
    ),
    *(
        Case(f"a csv of ground truth {what}", REPAIRED_CSV, says,
             content if callable(content) else put("bad.csv", content))
        for what, (content, says) in TRUTHS.items()
    ),
    *ODD_TABLES,
    *(
        Case(f"an npz {what}", STATISTICS, says, put("bad.npz", content))
        for what, (content, says) in ARRAYS.items()
    ),
    Case("an npz with a program that is not read", STATISTICS, "",
         put("bad.npz", npz(mu=ZEROS, sigma=EYE, more=[Hostile()])), REPAIRED),
    *(Case(f"a manifest {what}", SCORE, says, make) for what, (make, says) in MANIFESTS.items()),
    *(
        Case(f"a certificate {what}", "faster-pytorch-fid/fid_score_gpu.py --verify bad.json", says,
             put("bad.json", text))
        for what, (text, says) in CERTIFICATES.items()
    ),
    Case("a folder to prepare that is not there", PREPARE.replace("pictures", "gone"),
         "gone: no such folder or zip file"),
]  # fmt: skip
