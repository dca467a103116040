"""Images from a folder or a zip file, split into train, val and test.

No image, compared by its prepared pixels, is in two splits; the same files and seed give the same
splits. An image is cropped to its largest centred square and resized with antialiasing to uint8
(H, W, 3), H = W = image size in pixels.
"""

from __future__ import annotations

import errno
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from fid.files import BROKEN_ZIP, composed
from fid.names import is_file, is_picture, names_below, natural_key, open_zip
from fid.pixels import profile_of
from PIL import Image
from tqdm import tqdm

from config.errors import MachineError, UserError
from utils.data.pairs import note_skipped
from utils.io.files import read_ahead
from utils.io.images import load_rgb, note_profile
from utils.io.messages import check_limit, note_once, raise_if_machine

Counts = dict[str, int]  # images by split
Splits = dict[str, list[np.ndarray]]
SPLIT_NAMES = ("train", "val", "test")
DECODED_AHEAD = 64  # decoded images waiting to be used
OF_THE_FILE = errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP  # errors of one file only


class ImageFiles:
    """The image files of one folder or zip, in natural order of their names.

    `read` returns a file's bytes. After `splits`, `skipped` has a line for each unusable file and
    `report` the numbers of files and of readable, distinct and unreadable ones.
    """

    kind = "images"

    def __init__(self, path: Path, files: list[str], read: Callable[[str], bytes]) -> None:
        self.path, self.label = path.resolve(), str(path)
        self.name = self.path.name  # without parent folders, which differ elsewhere
        self.files = sorted(files, key=natural_key)
        self.read = read
        self.skipped: list[str] = []
        self.report: Counts = {}

    def fingerprint(self) -> str:
        """SHA-256 over the names and contents of all files."""
        digest = hashlib.sha256()
        for name in self.files:
            try:
                content = hashlib.sha256(self.read(name)).digest()
            except MachineError:
                raise
            except UserError:
                content = b"unreadable"
            digest.update(composed(name).encode("utf-8", "surrogateescape") + b"\0" + content)
        return digest.hexdigest()

    def splits(self, counts: Counts, image_size: int, seed: int, workers: int) -> Splits:
        """Decode files in an order shuffled by `seed` until the splits are full.

        Keeps the chosen images in memory, 12 kB each at 64 x 64. Raises UserError if there are too
        few.
        """
        wanted, number = sum(counts.values()), len(self.files)
        names = [self.files[i] for i in np.random.default_rng(seed).permutation(number)]
        images: dict[bytes, np.ndarray] = {}
        copies: Counts = {}
        decoded = self._decoded(names, image_size, workers)
        for image in tqdm(decoded, "reading", number, unit="image"):
            digest = hashlib.sha256(image.tobytes()).hexdigest()
            images.setdefault(digest, image)
            copies[digest] = copies.get(digest, 0) + 1
            if len(images) == wanted:
                break
        self.report = {
            "files": number,
            "read": sum(copies.values()),
            "distinct": len(images),
            "unreadable": len(self.skipped),
        }
        dealt = deal(copies, counts)
        if dealt is None:
            found = ", ".join(f"{number} {what}" for what, number in self.report.items())
            found += "; copies of an image share a split"
            raise too_few(self.label, found, counts, len(images))
        return {split: [images[digest] for digest in dealt[split]] for split in SPLIT_NAMES}

    def _decoded(self, names: list[str], image_size: int, workers: int) -> Iterator[np.ndarray]:
        """Decode with a few threads, in order; add faulty files to `skipped`."""

        def decode(name: str) -> np.ndarray | str:
            try:
                image = load_rgb(io.BytesIO(self.read(name)), name)
                note_profile(profile_of(image), name)
                if min(image.size) < image_size:
                    found = f"{name} has {image.width} x {image.height} pixels"
                    note_once("enlarged", f"{found}; it is enlarged to {image_size} x {image_size}")
                return square_crop(image, image_size)
            except MachineError:
                raise
            except UserError as error:
                return str(error).encode("utf-8", "backslashreplace").decode()

        for result in read_ahead(decode, names, workers, DECODED_AHEAD):
            if isinstance(result, str):
                self.skipped.append(result)
            else:
                yield result


def deal(copies: Counts, counts: Counts) -> dict[str, list[str]] | None:
    """Assign images, given as {digest: number of files}, to splits; each to one split only.

    If there are enough distinct images, each is used once. Otherwise test and val take the images
    with the fewest copies, once each, and train includes the copies of its own. Returns the digests
    of each split, or None if that is still too few.
    """
    digests = list(copies)
    if len(digests) < sum(counts.values()):
        digests.sort(key=lambda digest: copies[digest])  # stable: ties stay shuffled
    val_start, train_start = counts["test"], counts["test"] + counts["val"]
    train = digests[train_start:]
    further = [digest for digest in train for _ in range(copies[digest] - 1)]
    dealt = {
        "train": (train + further)[: counts["train"]],
        "val": digests[val_start:train_start],
        "test": digests[:val_start],
    }
    return dealt if all(len(dealt[split]) == counts[split] for split in SPLIT_NAMES) else None


def too_few(label: str, found: str, counts: Counts, number: int) -> UserError:
    """The error for a split larger than the number of images; suggests one that fits."""
    wanted = " + ".join(str(counts[split]) for split in SPLIT_NAMES)
    tenth = max(2, number // 10)  # a score needs two
    advice = f"; try --split {number - 2 * tenth} {tenth} {tenth}" if number >= 6 else ""
    few = f"{label}: too few usable images ({found})"
    return UserError(f"{few}, but --split asks for {wanted} = {sum(counts.values())}{advice}")


def square_crop(image: Image.Image, size: int) -> np.ndarray:
    """Crop the largest centred square and resize with antialiasing to uint8 (size, size, 3)."""
    if image.width != image.height:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))  # resize must not look beyond
    if image.width != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image)


def open_pictures(path: Path) -> ImageFiles:
    """Open a folder of any depth or a zip file. Raises UserError if it contains no image."""
    if not path.exists():
        raise UserError(f"{path}: no such folder or zip file")
    if path.is_dir():
        names, read = open_folder(path)
    elif path.is_file() and _is_zip(path):  # reading a pipe would hang
        names, read = open_picture_zip(path)
    else:
        raise UserError(f"{path}: is neither a folder nor a zip file")
    note_skipped(path, names)
    images = [name for name in names if is_picture(name)]
    if not images:
        raise UserError(f"{path}: contains no image")
    return ImageFiles(path, images, read)


def _is_zip(path: Path) -> bool:
    """Whether a file is a zip; `zipfile.is_zipfile` also says no if it cannot read it."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise_if_machine(error, path)
        raise
    return zipfile.is_zipfile(path)


def open_folder(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """Relative names of all files below a folder, and a function that reads one."""

    def read(name: str) -> bytes:
        try:
            check_limit("file_bytes", (path / name).stat().st_size, name)
            return (path / name).read_bytes()
        except OSError as error:
            if error.errno not in OF_THE_FILE:
                raise_if_machine(error, name)
            raise UserError(f"{name}: cannot be read: {error.strerror}") from error

    return [name for name in names_below(path) if is_file(path / name)], read


def open_picture_zip(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """Names of a zip's files, and a function that reads one in memory, never extracting it."""
    try:
        archive = open_zip(path)
    except BROKEN_ZIP as error:
        raise_if_machine(error, path)
        raise UserError(f"{path}: cannot be read as a zip file: {error}") from error
    members = archive.infolist()
    _check_members(path, members)
    sizes = {member.filename: member.file_size for member in members if not member.is_dir()}

    def read(name: str) -> bytes:
        check_limit("file_bytes", sizes[name], name)
        try:
            return archive.read(name)
        except BROKEN_ZIP as error:
            raise_if_machine(error, name)
            raise UserError(f"{name}: cannot be unpacked: {error}") from error

    return list(sizes), read


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raise `UserError` for a zip beyond the limits, with invalid names, or whose pictures are
    encrypted or have one name twice.
    """
    check_limit("members", len(members), str(path))
    check_limit("archive_bytes", sum(member.file_size for member in members), str(path))
    seen = set()
    for member in members:
        name = member.filename
        parts = PurePosixPath(name).parts
        if not parts and not name.endswith("/"):
            raise UserError(f"{path}: a member has no name; pack it again")
        if ".." in parts or (parts and (parts[0] == "/" or parts[0].endswith(":"))):
            raise UserError(f"{path}: member {name!r} points outside the archive; pack it again")
        if member.is_dir() or not is_picture(name):  # never read
            continue
        if name in seen:
            raise UserError(f"{path}: two members are called {name!r}; pack it again")
        if member.flag_bits & 1:  # encrypted
            raise UserError(f"{path}: is encrypted; unpack it and name the folder instead")
        seen.add(name)
