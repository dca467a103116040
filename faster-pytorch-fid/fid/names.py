"""Names of files: which are pictures, in which order, and which belong together.

The suite asks here too, so that scorer and suite agree. Names are relative, with / below folders.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

EXTENSIONS = frozenset(  # what every Pillow reads
    (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # others may run programs
OTHER_EXTENSIONS = frozenset(  # pictures as well, which are left out with a note
    {".apng", ".arw", ".avif", ".cr2", ".cr3", ".dib", ".dng", ".eps", ".exr", ".hdr", ".heic"}
    | {".heif", ".hif", ".ico", ".j2k", ".jp2", ".jpe", ".jps", ".jxl", ".mpo", ".nef", ".orf"}
    | {".pbm", ".pcx", ".pef", ".pnm", ".psd", ".qoi", ".raf", ".rw2", ".svg", ".tga", ".xcf"}
)
SYSTEM_FOLDERS = frozenset(  # of Macs, storage servers, Windows and Linux: copies, thumbnails, bins
    ("__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "lost+found")
)
OF_MASK = re.compile(r"masks?\d*|holes?")  # words in names, such as photo_mask.png, a_mask001.png
NUMBER = r"(\d{1,999})"  # Python reads at most 4,300 digits, a name in a zip may have more


def composed(name: str) -> str:
    """A name with each accent in one character (NFC): a Mac writes two where others write one."""
    return unicodedata.normalize("NFC", name)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key that counts: image_2 before image_10; the name itself breaks ties."""
    parts = re.split(NUMBER, composed(name))  # text and numbers alternate
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], name


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder above it, is hidden or a system's own."""
    parts = [part for part in PurePosixPath(name).parts if part != ".."]
    return any(part.startswith(".") or part.casefold() in SYSTEM_FOLDERS for part in parts)


def is_picture(name: str) -> bool:
    """Whether a file is, by its name, a picture that is read."""
    return _ends_in(EXTENSIONS, name)


def left_out(names: Iterable[str]) -> str:
    """What a note says of pictures of formats that are not read; empty where there are none."""
    others = sorted((name for name in names if _ends_in(OTHER_EXTENSIONS, name)), key=natural_key)
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    allowed = ", ".join(sorted(EXTENSIONS))
    return f"{others[0]}{more} left out; allowed are {allowed}" if others else ""


def partners(names: Sequence[str], others: Sequence[str], spare: bool = False) -> list[int] | None:
    """The place among the others of what belongs to each name; None where they do not pair.

    The first of these decides that both sides have alike, each once: the whole name, the name
    without its suffix, also without words such as mask (photo.png, photo_mask001.png), the number
    at the end of either, the name with the folders above it. spare: others may be left over.
    """
    for key in (composed, stem, _subject, trailing_number, _number_of_subject, _place):
        wanted, by_key = [key(name) for name in names], {key(o): i for i, o in enumerate(others)}
        unique = len(by_key) == len(others) and len(set(wanted)) == len(wanted)
        fits = set(wanted) <= set(by_key) if spare else set(wanted) == set(by_key)
        if unique and None not in by_key and fits:
            return [by_key[name] for name in wanted]
    return None


def trailing_number(name: str) -> int | None:
    """The number at the end of the stem: 2 of image_002.png and of Windows' image (2).png."""
    return _last_number(stem(name))


def stem(name: str) -> str:
    """The name without folders and suffixes: photo of photo.jpg, and of its mask photo.jpg.png."""
    found = PurePosixPath(PurePosixPath(name).stem)
    while found.suffix.lower() in EXTENSIONS:
        found = found.with_suffix("")
    return composed(str(found))


def is_mask(name: str) -> bool:
    """Whether a file is, by its name, a mask."""
    return any(OF_MASK.fullmatch(word) for word in words(name))


def words(name: str) -> list[str]:
    """The words of the stem, in small letters."""
    return re.split(r"[\W_]+", stem(name).casefold())


def _subject(name: str) -> str:
    """What a file shows: photo of photo_mask.png and of masked-photo.png."""
    found = (word for word in words(name) if not OF_MASK.fullmatch(word))
    return "_".join(word for word in found if word not in ("masked", ""))


def _number_of_subject(name: str) -> int | None:
    """1 of 1_mask.png."""
    return _last_number(_subject(name))


def _last_number(text: str) -> int | None:
    match = re.search(rf"{NUMBER}[\W_]*$", text)
    return int(match[1]) if match else None


def _place(name: str) -> str:
    return composed(str(PurePosixPath(name).with_suffix("")))


def _ends_in(extensions: frozenset[str], name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in extensions and not is_hidden(name)
