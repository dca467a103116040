"""List the files of a folder or a zip, and which of them are images.

Shared with the suite (utils/io/images.py, utils/data/sources.py).
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from fid.files import ScoreError, check_limit, note
from fid.names import is_hidden, is_picture, left_out, natural_key

UTF8_NAME = 0x800  # flag of a UTF-8 member name; without it, zipfile decodes as cp437


def folder_names(path: Path, recursive: bool = False) -> list[str]:
    """Names of a folder's images in natural order; recursive: with its subfolders."""
    try:
        names = names_below(path) if recursive else os.listdir(path)
    except OSError as error:
        raise ScoreError(f"{path}: {error.strerror}") from None
    found = [name for name in names if is_picture(name) and is_file(path / name)]
    _note_left_out(path, names)
    if not recursive and (inner := inner_folder(path)):
        if not found:
            raise ScoreError(
                f"{path}: no images, but {inner} holds some; name it or use --recursive"
            )
        note(f"{path}: {inner} holds images too, left out without --recursive", once=str(inner))
    return sorted(found, key=natural_key)


def names_below(path: Path) -> list[str]:
    """Names of all files below a folder, relative to it; hidden ones are skipped.

    Unreadable folders and links to folders, which could form a cycle, are skipped with a note.
    """
    names, links = [], []
    for place, folders, files in os.walk(path, onerror=_note_closed):
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
    """Names of the image members; raises `ScoreError` for names that point outside the archive."""
    check_limit("members", len(members), str(path))
    check_limit("archive_bytes", sum(member.file_size for member in members), str(path))
    names = [m.filename for m in members if not m.is_dir() and is_picture(m.filename)]
    for name in names:
        parts = PurePosixPath(name).parts
        if ".." in parts or parts[0] == "/" or parts[0].endswith(":"):
            raise ScoreError(f"{path}: member {name!r} points outside the archive")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ScoreError(f"{path}: two members are called {twice!r}")
    _note_left_out(path, [member.filename for member in members])
    return sorted(names, key=natural_key)


def _note_left_out(place: Path, names: Iterable[str]) -> None:
    if text := left_out(names):
        note(f"{place}: {text}", once=f"left out of {place}")


def _note_closed(error: OSError) -> None:
    note(f"{error.filename}: {error.strerror}; what it holds is left out")
