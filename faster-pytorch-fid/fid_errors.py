"""The one error a user sees: one line that names the file or flag, what was found, what fits."""

from __future__ import annotations


class ScoreError(Exception):
    """A mistake of the user's (paths, files, flags). The command shows it as one line, code 2."""
