"""Exceptions for mistakes that a user can fix; scripts show them as one line, exit code 2."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

MAX_SHOWN = 80  # characters of a wrong value
MAX_READ = 2000  # of them in which passwords are looked for, in quadratic time
PASSWORDS = (  # in URLs, in any flag or key; the part that is kept, the part that is hidden
    re.compile(r"(:/{1,2}[^\s:/@]*:)(?:\S+|[^\s:@][^:@]*)(?=@)"),  # a Path has one slash
    re.compile(r"((?:passw|passphrase|pwd)\w*=)[^\s&;'\"]+", re.IGNORECASE),
)


def printable(text: str) -> str:
    """Text for one line of output: control characters escaped, passwords hidden."""
    text = without_passwords(" ".join(text.splitlines()))
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def without_passwords(text: str) -> str:
    """A text with the passwords of its URLs replaced by ***.

    >>> without_passwords("run is postgresql://me:my secret@host/db")
    'run is postgresql://me:***@host/db'
    """
    for secret in PASSWORDS:
        text = secret.sub(r"\1***", text)
    return text


class UserError(Exception):
    """Says on one line which file or key is wrong, what was found and what is allowed."""

    def __str__(self) -> str:
        return printable(super().__str__())


class DivergedError(UserError):
    """A loss or weights that are not finite; a search prunes such a trial."""


class SettingsError(UserError):
    """Settings that are incompatible with each other; a search prunes a trial that drew them."""


class MachineError(UserError):
    """Memory or a disk failed; the file being read may be intact."""


class StopRequested(Exception):
    """The process was asked to stop, by Ctrl-C or another signal; finished work is kept."""


def shorten(text: str) -> str:
    """A text truncated to fit an error line; passwords go first, as a cut one is not recognised."""
    text = without_passwords(text[:MAX_READ])
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def closest(name: str, known: Iterable[str]) -> str:
    """The known name most similar to ``name``; empty if none is similar."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), "")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the known name closest to ``name``, or nothing."""
    close = closest(name, known)
    return f" (did you mean '{close}'?)" if close else ""


def one_of(what: str, found: str, known: Iterable[str]) -> UserError:
    """Build the error for a name that is not in a registry."""
    known = sorted(known)
    return UserError(
        f"{what}: '{found}' is unknown; known are {', '.join(known)}{nearest(found, known)}"
    )
