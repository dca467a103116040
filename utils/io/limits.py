"""How much an input file may claim before it is opened: the scorer's limits (fid/files.py)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fid import files
from fid.files import ScoreError

from config.errors import UserError


def limit(name: str) -> float:
    """The limit in force, `math.inf` where it is lifted. Raises `UserError` for a wrong switch."""
    with as_user_error():
        return files.limit(name)


def check_limit(name: str, found: float, what: str) -> None:
    """Refuse a size beyond its limit; ``what`` names the file or flag."""
    with as_user_error():
        files.check_limit(name, found, what)


@contextmanager
def as_user_error() -> Iterator[None]:
    """Let the scorer's refusals be the suite's."""
    try:
        yield
    except ScoreError as error:
        raise UserError(str(error)) from None
