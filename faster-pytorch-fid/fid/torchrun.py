"""A process's place among those that torchrun started, and how they connect.

The suite uses it too (utils/device.py).
"""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from functools import cache
from typing import NamedTuple

from fid.files import ScoreError, note
from fid.process import ELASTIC, handled

COUNTS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}  # variable: smallest value
MEETING = ("MASTER_ADDR", "MASTER_PORT")
MEETING_TIME = timedelta(minutes=10)  # from the first process's start to the last one's


class Place(NamedTuple):
    """Rank, world size, and rank on this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def place() -> Place:
    """This process's place under torchrun; a single process if torchrun's variables are incomplete.

    Leftover variables of an outer job are ignored with a note. Raises `ScoreError` for invalid
    values.
    """
    return _place(tuple(os.environ.get(name) for name in (*COUNTS, *MEETING)))


@cache  # so that the note is printed once
def _place(values: tuple[str | None, ...]) -> Place:
    found = dict(zip((*COUNTS, *MEETING), values, strict=True))
    for name, smallest in COUNTS.items():
        text = found[name]
        if text is not None and not (text.isdecimal() and int(text) >= smallest):
            allowed = f"allowed are whole numbers from {smallest}, or unset it"
            raise ScoreError(f"the environment has {name}={text!r}; {allowed}")
    asked = Place(*(int(found[name] or smallest) for name, smallest in COUNTS.items()))
    missing = [name for name, text in found.items() if not text]
    if missing:
        if asked.rank or asked.world_size > 1:
            has = ", ".join(f"{name}={found[name]}" for name in COUNTS if found[name] is not None)
            lacks = ", ".join(missing)
            note(f"{has} is ignored: torchrun would also set {lacks}")
        return Place()
    if asked.rank >= asked.world_size:
        raise ScoreError(
            f"the environment has RANK={asked.rank} and WORLD_SIZE={asked.world_size}; ranks count "
            "from 0 to below the size; unset both, or start with torchrun"
        )
    return asked


def meet(backend: str, patience: timedelta) -> None:
    """Connect torchrun's processes; ``patience`` is the timeout of all later exchanges.

    While it waits, every signal ends the process at once, since PyTorch does not return to Python.
    Raises `ScoreError` if they cannot connect.
    """
    import torch.distributed as dist  # imported here: a single process does not need it

    own, address = place(), ":".join(os.environ[name] for name in MEETING)
    if ELASTIC not in os.environ:  # perhaps left over from an outer job
        text = f"process {own.rank + 1} of {own.world_size} waits at {address} for the others"
        note(f"{text}; if there are none, unset WORLD_SIZE")
    try:
        with handled(signal.SIG_DFL):
            store, rank, size = next(dist.rendezvous("env://", timeout=MEETING_TIME))
            store.set_timeout(patience)
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=size, timeout=patience
            )
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ScoreError(
            f"the processes of torchrun do not meet at MASTER_ADDR, MASTER_PORT: {reason}; "
            "without torchrun, unset WORLD_SIZE"
        ) from error
