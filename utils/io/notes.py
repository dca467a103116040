"""Notes on stderr: information that needs no action."""

from __future__ import annotations

import sys

from tqdm import tqdm

from config.errors import printable

_told: set[str] = set()  # what this process has noted


def note(text: str) -> None:
    """One line on stderr, which no file's name can break."""
    tqdm.write(f"note: {printable(text)}", file=sys.stderr)


def note_once(what: str, text: str) -> None:
    """One note, unless this process has given it before."""
    if what not in _told:
        _told.add(what)
        note(text)
