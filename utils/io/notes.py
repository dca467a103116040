"""Notes on stderr: information that needs no action."""

from __future__ import annotations

import sys

from tqdm import tqdm

from config.errors import printable

_told: set[str] = set()  # keys of notes that this process has printed


def note(text: str) -> None:
    """Print a one-line note to stderr."""
    tqdm.write(f"note: {printable(text)}", file=sys.stderr)


def note_once(what: str, text: str) -> None:
    """Print a note unless this process has printed one with the same key ``what``."""
    if what not in _told:
        _told.add(what)
        note(text)
