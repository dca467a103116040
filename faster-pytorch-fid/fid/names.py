"""File names in a folder or a zip: which are images, how they are sorted, which belong together.

Shared with the suite, so that both agree. Names are relative paths with / as separator.
"""

from __future__ import annotations

import contextlib
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from fid.files import ScoreError, check_limit, composed, note, reading

EXTENSIONS = frozenset(  # read by every build of Pillow
    (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # others may run programs
OTHER_EXTENSIONS = frozenset(  # images, and archives of them, that are skipped with a note
    {".apng", ".arw", ".avif", ".cr2", ".cr3", ".dib", ".dng", ".eps", ".exr", ".hdr", ".heic"}
    | {".heif", ".hif", ".ico", ".j2k", ".jp2", ".jpe", ".jps", ".jxl", ".mpo", ".nef", ".orf"}
    | {".pbm", ".pcx", ".pef", ".pnm", ".psd", ".qoi", ".raf", ".rw2", ".svg", ".tga", ".xcf"}
    | {".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip"}
)
SYSTEM_FOLDERS = frozenset(  # copies, thumbnails and bins of macOS, NAS, Windows and Linux
    ("__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "lost+found")
)
MANIFEST = "manifest.json"  # what inpainting leaves next to its results
OF_MASK = re.compile(r"masks?\d*|holes?")  # words in names such as photo_mask.png, a_mask001.png
BETWEEN_WORDS = r"[\s!-/:-@[-`{-~\u2010-\u2015]+"  # not the marks of Indic scripts, nor emoji
UTF8_NAME = 0x800  # flag of a UTF-8 name in a zip; without it, zipfile decodes as cp437
NUMBER = r"(\d{1,999})"  # int() accepts at most 4,300 digits; a zip member's name may have more


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


def rows_by_name(names: Sequence[str], count: int) -> tuple[Sequence[int], str]:
    """The row of each image in a table of more rows, count, and how it was found, for a note.

    It is the number at the end of the name where all numbers differ and are numbers of rows; else
    the image's position. Numbers from 1 to the number of images are positions, and one that equals
    count shows that they begin at 1. A single image of number 1 tells nothing.
    """
    numbers = [trailing_number(name) for name in names]
    first = 1 if count in numbers and 0 not in numbers else 0
    rows = [number - first for number in numbers if number is not None]
    is_full = set(numbers) == set(range(1, len(names) + 1)) != {1}
    if is_full or len({*rows}.intersection(range(count))) < len(names):
        return range(len(names)), "they have the first rows, in order"
    return rows, f"each has the row of its number, counted from {first}"


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


def folder_names(path: Path, recursive: bool = False) -> list[str]:
    """Names of a folder's images in natural order; recursive: with its subfolders."""
    with reading(path):
        names = names_below(path) if recursive else os.listdir(path)
    found = [name for name in names if is_picture(name) and is_file(path / name)]
    _note_left_out(path, names)
    if not recursive and (inner := inner_folder(path)):
        if not found:
            advice = "name it or use --recursive"
            if results := min(path.glob(f"*/{MANIFEST}"), default=None):  # of the whole run
                inner, advice = results.parent, "name it"
            raise ScoreError(f"{path}: no images, but {inner} contains some; {advice}")
        note(f"{path}: {inner} contains images too, left out without --recursive", once=str(inner))
    return sorted(found, key=natural_key)


def names_below(path: Path) -> list[str]:
    """Names of all files below a folder, relative to it; hidden ones are skipped.

    Unreadable folders and links to folders, which could form a cycle, are skipped with a note.
    """
    names, links = [], []
    closed = "{0.filename}: {0.strerror}; its content is left out"
    for place, folders, files in os.walk(path, onerror=lambda e: note(closed.format(e))):
        folders[:] = [name for name in folders if not is_hidden(name)]
        links += [Path(place, name) for name in folders if Path(place, name).is_symlink()]
        names += [Path(place, name).relative_to(path).as_posix() for name in files]
    if links:
        note(f"{path}: {min(links).relative_to(path)} is a link to a folder, which is left out")
    return names


def inner_folder(path: Path) -> Path | None:
    """The first subfolder that contains images, for a hint; None if there is none."""
    for place, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        has_some = any(is_picture(name) and is_file(Path(place, name)) for name in files)
        if has_some and Path(place) != path:
            return Path(place)
    return None


def is_file(path: Path) -> bool:
    """Whether a path is a file, or a broken link, which reading reports; not a pipe or folder."""
    return path.is_file() or not path.exists()


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip and restore its members' original names, with / as separator.

    macOS writes UTF-8 names without the flag; some Windows programs write \\ instead of /.
    """
    archive = zipfile.ZipFile(path)
    for member in archive.infolist():
        if not member.flag_bits & UTF8_NAME:
            with contextlib.suppress(UnicodeError):
                member.filename = member.filename.encode("cp437").decode("utf-8")
        member.filename = member.filename.replace("\\", "/")
    archive.NameToInfo = {member.filename: member for member in archive.infolist()}
    return archive


def zip_names(path: Path, members: Sequence[zipfile.ZipInfo]) -> list[str]:
    """Names of the image members in natural order.

    Raises `ScoreError` for names that point outside the archive.
    """
    check_limit("members", len(members), str(path))
    check_limit("archive_bytes", sum(member.file_size for member in members), str(path))
    names = [m.filename for m in members if not m.is_dir() and is_picture(m.filename)]
    for name in names:
        parts = PurePosixPath(name).parts
        if ".." in parts or parts[0] == "/" or parts[0].endswith(":"):
            raise ScoreError(f"{path}: member {name!r} points outside the archive")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ScoreError(f"{path}: two members are called {twice[0]!r}")
    _note_left_out(path, [member.filename for member in members])
    folders = sorted({str(PurePosixPath(name).parent) for name in names}, key=natural_key)
    if len(folders) > 1:
        shown = ", ".join(folders[:3]) + (f" and {len(folders) - 3} more" if folders[3:] else "")
        note(f"{path}: images of several folders count as one set: {shown}", once=f"sets {path}")
    if MANIFEST in (PurePosixPath(member.filename).name for member in members):
        note(f"{path}: its {MANIFEST} is not read; unpack the zip to use it", once=f"in {path}")
    return sorted(names, key=natural_key)


def _note_left_out(place: Path, names: Iterable[str]) -> None:
    if text := left_out(names):
        note(f"{place}: {text}", once=f"left out of {place}")
