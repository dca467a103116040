"""Who this process is among those that torchrun started, by the variables that it sets.

The scorer stands alone and has a copy of this file (a test holds them equal).
"""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import NamedTuple

COUNTS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}  # variable: its smallest value
MEETING = ("MASTER_ADDR", "MASTER_PORT")


class Place(NamedTuple):
    """The number of a process, how many there are, and its number on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def place() -> Place:
    """The place that torchrun gave this process; alone where the set of variables is incomplete.

    Parts of the set, which outer jobs and their shells leave behind, are ignored with a note.
    Raises `ValueError` for values that no launcher sets.
    """
    return _place(tuple(os.environ.get(name) for name in (*COUNTS, *MEETING)))


@cache  # so that a note comes once
def _place(values: tuple[str | None, ...]) -> Place:
    found = dict(zip((*COUNTS, *MEETING), values, strict=True))
    for name, smallest in COUNTS.items():
        text = found[name]
        if text is not None and not (text.isdecimal() and int(text) >= smallest):
            raise ValueError(
                f"the environment has {name}={text!r}; allowed are whole numbers from {smallest}, "
                "or unset it"
            )
    asked = Place(*(int(found[name] or smallest) for name, smallest in COUNTS.items()))
    missing = [name for name, text in found.items() if not text]
    if missing:
        if asked.rank or asked.world_size > 1:
            has = ", ".join(f"{name}={found[name]}" for name in COUNTS if found[name] is not None)
            lacks = ", ".join(missing)
            print(f"note: {has} is ignored: torchrun would also set {lacks}", file=sys.stderr)
        return Place()
    if asked.rank >= asked.world_size:
        raise ValueError(
            f"the environment has RANK={asked.rank} and WORLD_SIZE={asked.world_size}; ranks count "
            "from 0 to below the size; unset both, or start with torchrun"
        )
    return asked
