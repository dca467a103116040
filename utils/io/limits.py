"""How much an input file may claim before it is opened, and the switch that changes it.

INPUT_LIMITS=pixels=200e6,members=5e6 sets some limits, INPUT_LIMITS=off lifts them all; the scorer
reads the same variable (fid/files.py). An environment variable reaches worker processes too.
"""

from __future__ import annotations

import math
import os
from functools import cache

from config.errors import UserError, one_of

SWITCH = "INPUT_LIMITS"
OFF = "off"
DEFAULT_LIMITS = {
    "pixels": 64e6,  # of one image, as its header declares it
    "file_bytes": 256 * 2.0**20,  # of one image file, in an archive unpacked
    "members": 4e6,  # of an archive
    "archive_bytes": 64 * 2.0**30,  # of all members unpacked
    "table_bytes": 8 * 2.0**30,  # of a csv
    "row_bytes": 64 * 2.0**20,  # of a row of a csv
    "statistics_bytes": 2 * 2.0**30,  # of an npz, unpacked
    "held_bytes": 64 * 2.0**30,  # of prepared pixels that are in memory at once
}


def limit(name: str) -> float:
    """The limit in force, `math.inf` where it is lifted. Raises `UserError` for a wrong switch."""
    return _limits(os.environ.get(SWITCH, ""))[name]


def check_limit(name: str, found: float, what: str) -> None:
    """Refuse a size beyond its limit; ``what`` names the file or flag."""
    allowed = limit(name)
    if found > allowed:
        raise UserError(
            f"{what}: {found:,.0f} {name.split('_')[-1]}; allowed are {allowed:,.0f}"
            f" ({SWITCH}={name}=N allows N)"
        )


@cache
def _limits(text: str) -> dict[str, float]:
    """The defaults with what the switch says."""
    if text == OFF:
        return dict.fromkeys(DEFAULT_LIMITS, math.inf)
    limits = dict(DEFAULT_LIMITS)
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in limits:
            raise one_of(SWITCH, name, [*limits, OFF])
        try:
            limits[name] = float(value)
        except ValueError:
            limits[name] = math.nan
        if not limits[name] > 0:
            raise UserError(f"{SWITCH}: {name} is {value!r}; allowed are numbers above 0")
    return limits
