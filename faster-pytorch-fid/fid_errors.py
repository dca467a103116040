"""The one error a user sees: one line that names the file or flag, what was found, what fits."""

from __future__ import annotations


class ScoreError(Exception):
    """A mistake of the user's (paths, files, flags). The command shows it as one line, code 2."""

    def __str__(self) -> str:
        text = " ".join(super().__str__().splitlines())  # a file's name may hold anything
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
