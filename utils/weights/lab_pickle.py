"""Read a checkpoint written by `torch.save` as data only: nothing that it names is called.

Training loops save their settings, losses and paths next to the weights. Whatever is neither a
tensor nor a plain value becomes an empty stand-in, so that none of its code runs.
"""

from __future__ import annotations

import builtins
import pickle
import re
import warnings
from collections import OrderedDict
from pathlib import Path

import torch

UNKNOWN = re.compile(r"Unsupported global: GLOBAL ([\w.]+) was")
UNFIT = re.compile(r"Can only (?P<verb>\w+) .*got <class '(?P<name>[\w.]+)'>")
MAX_TRIES = 60  # each replaces one class


class LeftOut:
    """Stands for an object of any class; forgets what the pickle says about it."""

    def __new__(cls, *_arguments: object) -> LeftOut:
        return super().__new__(cls)

    def __init__(self, *_arguments: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass

    def __repr__(self) -> str:
        return "an object"


class FilledAsDict(LeftOut):
    """Stands for a dictionary of any class; its items are read as those of a plain one."""

    def __new__(cls, *_arguments: object) -> OrderedDict:  # type: ignore[misc]
        return OrderedDict()


class FilledAsList(LeftOut):
    """Stands for a list or queue of any class."""

    def __new__(cls, *_arguments: object) -> list:  # type: ignore[misc]
        return []


FILLED = {"append": FilledAsList, "extend": FilledAsList}  # any other verb fills a dictionary


def read_data(path: Path) -> tuple[object, list[str]]:
    """The content of a checkpoint, and the names of the classes that stand-ins replaced.

    Raises `pickle.UnpicklingError` if it asks for a function of Python's own or of the system.
    """
    stand_ins: dict[str, type[LeftOut]] = {}
    first: pickle.UnpicklingError | None = None  # names what a whole module asks for
    for _ in range(MAX_TRIES):
        try:
            return _read(path, stand_ins), [*stand_ins]
        except pickle.UnpicklingError as error:
            first = first or error
            if unknown := UNKNOWN.search(str(error)):
                name, kind = unknown[1], LeftOut
                known = "." in name or isinstance(getattr(builtins, name, None), type)
            elif unfit := UNFIT.search(str(error)):
                name, kind = unfit["name"], FILLED.get(unfit["verb"], FilledAsDict)
                known = name in stand_ins
            else:
                raise (error if "GLOBAL" in str(error) else first) from None
            if not known:
                raise
            stand_ins[name] = kind
    assert first
    raise first


def _read(path: Path, stand_ins: dict[str, type[LeftOut]]) -> object:
    """Read a checkpoint with stand-ins for some classes, each a class of its name."""
    names = []
    for name, base in stand_ins.items():
        kind = type(name, (base,), {"__module__": "builtins"})
        # PyTorch names a built-in without its module, but looks it up with it
        names.append((kind, name if "." in name else f"builtins.{name}"))
    # not by its path, whose suffix PyTorch would believe
    with (
        torch.serialization.safe_globals(names),
        path.open("rb") as file,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", UserWarning)  # that the protocol is another
        return torch.load(file, map_location="cpu", weights_only=True)
