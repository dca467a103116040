"""What an earlier job left in the output folder: what stays, and what is repaired again."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from config.errors import UserError
from utils.inpainting.manifest import sources_of
from utils.inpainting.stamps import differences, read_stamp


def say_what_changed(
    folder: Path, before: dict[str, Any], settings: dict[str, Any], digest: str
) -> None:
    """Tell why images of an earlier run are repaired again, if they are."""
    if before:
        changes = differences(before["settings"], settings)
    else:  # a run cut short left no manifest, but stamps
        stamps = (read_stamp(path) for path in folder.glob("image_*.png"))
        others = [stamp for stamp in stamps if stamp and not stamp.startswith(digest)]
        changes = [f"{len(others)} images of a run that did not end"] if others else []
    if changes:
        tqdm.write(
            f"note: {folder} was made with other settings ({'; '.join(changes)}): its images are "
            "made again",
            file=sys.stderr,
        )


def refuse_to_replace(folder: Path, before: dict[str, Any], planned: dict[str, str]) -> None:
    """Raise `UserError` where the repair of a picture that is not in the job would be lost.

    planned: file name of every result: that of the picture it repairs.
    """
    made = sources_of(before)
    pictures = set(planned.values())
    lost = [name for name in planned if made.get(name, planned[name]) not in pictures]
    if lost:
        raise UserError(
            f"{folder / lost[0]}: is the repair of {made[lost[0]]}, not of {planned[lost[0]]}; "
            "name another --output, or replace it with --restart"
        )


def is_complete(folder: Path, names: Iterable[str], digest: str) -> bool:
    """Whether results of these names are there, of all processes, with the same settings."""
    return all((read_stamp(folder / name) or "").startswith(digest) for name in names)
