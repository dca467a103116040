"""Zip files of images, checked before anything of them is read."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from config.errors import UserError
from utils.io.limits import check_limit

ENCRYPTED = 1  # bit of a member's flags
BROKEN_ARCHIVE = (  # what zipfile raises on broken or foreign bytes
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)


def open_zip(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """Names of a zip's files, and what reads one in memory: no path of it touches the disk."""
    try:
        archive = zipfile.ZipFile(path)
    except BROKEN_ARCHIVE as error:
        raise UserError(f"{path}: cannot be read as a zip file: {error}") from error
    _check_members(path, archive.infolist())
    members = {member.filename: member for member in archive.infolist() if not member.is_dir()}

    def read(name: str) -> bytes:
        check_limit("file_bytes", members[name].file_size, name)
        try:
            return archive.read(members[name])
        except BROKEN_ARCHIVE as error:
            raise UserError(f"{name}: cannot be unpacked: {error}") from error

    return list(members), read


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse a zip that claims too much or names what no packed folder of images has."""
    check_limit("members", len(members), str(path))
    check_limit("archive_bytes", sum(member.file_size for member in members), str(path))
    seen = set()
    for member in members:
        name = member.filename
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if not parts and not name.endswith("/"):
            raise UserError(f"{path}: a member has no name; pack it again")
        if ".." in parts or (parts and (parts[0] == "/" or parts[0].endswith(":"))):
            raise UserError(f"{path}: member {name!r} points outside the archive; pack it again")
        if name in seen:
            raise UserError(f"{path}: two members are called {name!r}; pack it again")
        if member.flag_bits & ENCRYPTED:
            raise UserError(f"{path}: is encrypted; unpack it and name the folder instead")
        seen.add(name)
