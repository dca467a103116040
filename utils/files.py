"""Files that are either whole or not there, and their fingerprints."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from config.errors import UserError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary name in the same folder; when the block succeeds, it becomes ``path``.

    What stood at ``path`` stays whole until then, whoever else writes it: machines that share a
    folder may have processes of the same number. Raises `UserError` where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder that can be written to, or say in a `UserError` why not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: no permission to write here")


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, or leave what was there."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def content_hash(paths: Iterable[Path]) -> str:
    """SHA-256 over the files' bytes, in the given order, as hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
