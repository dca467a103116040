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
MAX_UNKNOWN = 100  # classes in one checkpoint


class LeftOut:
    """Stands for an object of any class; forgets what the pickle says about it."""

    def __new__(cls, *_arguments: object) -> LeftOut:
        return super().__new__(cls)

    def __init__(self, *_arguments: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


class DictLeftOut:
    """Stands for a dictionary of any class; its items are read as those of a plain one."""

    def __new__(cls, *_arguments: object) -> OrderedDict:  # type: ignore[misc]
        return OrderedDict()


class ListLeftOut:
    """Stands for a list or queue of any class."""

    def __new__(cls, *_arguments: object) -> list:  # type: ignore[misc]
        return []


def read_data(path: Path) -> tuple[object, list[str]]:
    """The content of a checkpoint, and the names of the classes that stand-ins replaced.

    Raises `pickle.UnpicklingError` if it asks for a function of Python's own or of the system.
    """
    stand_ins: dict[str, type] = {}
    while True:
        names = [(kind, name) for name, kind in stand_ins.items()]
        # PyTorch names a built-in without its module, but looks it up with it
        names += [(kind, f"builtins.{name}") for kind, name in names if "." not in name]
        try:
            # not by its path, whose suffix PyTorch would believe
            with (
                torch.serialization.safe_globals(names),
                path.open("rb") as file,
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore", UserWarning)  # that the protocol is another
                return torch.load(file, map_location="cpu", weights_only=True), [*stand_ins]
        except pickle.UnpicklingError as error:
            unknown = UNKNOWN.search(str(error))
            if not unknown or unknown[1] in stand_ins or len(stand_ins) == MAX_UNKNOWN:
                raise
            if "." not in unknown[1] and not isinstance(getattr(builtins, unknown[1], 0), type):
                raise
            stand_ins[unknown[1]] = _stand_in(unknown[1].lower())


def _stand_in(name: str) -> type:
    """The stand-in for a class, by its name: pickles fill dictionaries and lists item by item."""
    if name.endswith("dict"):
        return DictLeftOut
    return ListLeftOut if name.endswith(("list", "deque")) else LeftOut
