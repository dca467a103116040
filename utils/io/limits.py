"""Size limits for input files, checked before they are opened: the scorer's (fid/files.py)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fid import files
from fid.files import ScoreError

from config.errors import UserError


def limit(name: str) -> float:
    """The current limit, `math.inf` if lifted. Raises `UserError` for an invalid INPUT_LIMITS."""
    with as_user_error():
        return files.limit(name)


def check_limit(name: str, found: float, what: str) -> None:
    """Raise `UserError` for a size beyond its limit; ``what`` names the file or flag."""
    with as_user_error():
        files.check_limit(name, found, what)


@contextmanager
def as_user_error() -> Iterator[None]:
    """Turn the scorer's `ScoreError` into a `UserError`."""
    try:
        yield
    except ScoreError as error:
        raise UserError(str(error)) from None
