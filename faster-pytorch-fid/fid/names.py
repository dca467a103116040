"""File names: which are images, how they are sorted, and which belong together.

Shared with the suite, so that both agree. Names are relative paths with / as separator.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

EXTENSIONS = frozenset(  # read by every build of Pillow
    (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # others may run programs
OTHER_EXTENSIONS = frozenset(  # images, and archives of them, that are skipped with a note
    {".apng", ".arw", ".avif", ".cr2", ".cr3", ".dib", ".dng", ".eps", ".exr", ".hdr", ".heic"}
    | {".heif", ".hif", ".ico", ".j2k", ".jp2", ".jpe", ".jps", ".jxl", ".mpo", ".nef", ".orf"}
    | {".pbm", ".pcx", ".pef", ".pnm", ".psd", ".qoi", ".raf", ".rw2", ".svg", ".tga", ".xcf"}
    | {".7z", ".rar", ".tar", ".zip"}
)
SYSTEM_FOLDERS = frozenset(  # copies, thumbnails and bins of macOS, NAS, Windows and Linux
    ("__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "lost+found")
)
OF_MASK = re.compile(r"masks?\d*|holes?")  # words in names such as photo_mask.png, a_mask001.png
BETWEEN_WORDS = r"[\s!-/:-@[-`{-~\u2010-\u2015]+"  # not the marks of Indic scripts, nor emoji
NUMBER = r"(\d{1,999})"  # int() accepts at most 4,300 digits; a zip member's name may have more


def composed(name: str) -> str:
    """A name in Unicode form NFC; macOS may store accents decomposed."""
    return unicodedata.normalize("NFC", name)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Natural sort key: image_2 before image_10; the name itself breaks ties."""
    parts = re.split(NUMBER, composed(name))  # text and numbers alternate
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], name


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder above it, is hidden or belongs to the system."""
    parts = [part for part in PurePosixPath(name).parts if part != ".."]
    return any(part.startswith(".") or part.casefold() in SYSTEM_FOLDERS for part in parts)


def is_picture(name: str) -> bool:
    """Whether a file's extension is that of a supported image format."""
    return _ends_in(EXTENSIONS, name)


def left_out(names: Iterable[str]) -> str:
    """Text of a note about images in unsupported formats; empty if there are none."""
    others = sorted((name for name in names if _ends_in(OTHER_EXTENSIONS, name)), key=natural_key)
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    allowed = ", ".join(sorted(EXTENSIONS))
    return f"{others[0]}{more} left out; allowed are {allowed}" if others else ""


def partners(names: Sequence[str], others: Sequence[str], spare: bool = False) -> list[int] | None:
    """Index into ``others`` of each name's partner; None if they cannot be paired.

    Uses the first key that is unique and equal on both sides: the whole name, the stem, the stem
    without words such as mask (photo.png, photo_mask001.png), the trailing number of either, the
    name with its folders. spare: allow others without a partner.
    """
    for key in (str, composed, stem, _subject, trailing_number, _number_of_subject, _place):
        wanted, by_key = [key(name) for name in names], {key(o): i for i, o in enumerate(others)}
        unique = len(by_key) == len(others) and len(set(wanted)) == len(wanted)
        fits = set(wanted) <= set(by_key) if spare else set(wanted) == set(by_key)
        if unique and None not in by_key and fits:
            return [by_key[name] for name in wanted]
    return None


def trailing_number(name: str) -> int | None:
    """The number at the end of the stem: 2 for image_002.png and for Windows' image (2).png."""
    return _last_number(stem(name))


def stem(name: str) -> str:
    """The name without folders and suffixes: photo for photo.jpg and its mask photo.jpg.png."""
    found = PurePosixPath(PurePosixPath(name).stem)
    while found.suffix.lower() in EXTENSIONS:
        found = found.with_suffix("")
    return composed(str(found))


def is_mask(name: str) -> bool:
    """Whether a file's name says that it is a mask."""
    return any(OF_MASK.fullmatch(word) for word in words(name))


def words(name: str) -> list[str]:
    """The words of the stem, in lower case."""
    return re.split(BETWEEN_WORDS, stem(name).casefold())


def _subject(name: str) -> str:
    """The stem without mask words: photo for photo_mask.png and masked-photo.png."""
    found = (word for word in words(name) if not OF_MASK.fullmatch(word))
    return "_".join(word for word in found if word not in ("masked", ""))


def _number_of_subject(name: str) -> int | None:
    """The trailing number of the subject: 1 for 1_mask.png."""
    return _last_number(_subject(name))


def _last_number(text: str) -> int | None:
    match = re.search(rf"{NUMBER}[\W_]*$", text)
    return int(match[1]) if match else None


def _place(name: str) -> str:
    return composed(str(PurePosixPath(name).with_suffix("")))


def _ends_in(extensions: frozenset[str], name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in extensions and not is_hidden(name)
