"""Read a lab solution's checkpoint as data only: nothing that it names is called.

Training loops save their settings, losses and paths next to the weights. Whatever is neither a
tensor nor a plain value becomes an empty stand-in, so that none of its code runs.
"""

from __future__ import annotations

import builtins
import pickle
import re
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import torch
from fid.names import is_hidden
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from config.errors import UserError
from utils.io.messages import message_of, note_once, raise_if_machine, refusal
from utils.weights.description import TRANSFORMER, Description, described
from utils.weights.lab_keys import UNSETTLED, LabFile, read_keys
from utils.weights.lab_naming import Settled
from utils.weights.lab_networks import NothingFoundError, NotOpenedError, UnknownKeysError
from utils.weights.lab_shapes import describe, not_followed

BROKEN_FILE = (  # the unpickler takes a text's letters for its own instructions
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, MemoryError),
    *(struct.error, AttributeError, AssertionError),
)
WEIGHTS_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
OTHER_SUFFIXES = (".th", ".tar", ".pkl")  # as in .pth.tar; of other files too
MAGIC = (b"PK\3\4", b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19")  # of torch.save since 1.6, before
SAVE_AGAIN = "; save it again: torch.save(model.state_dict(), 'transformer.pt')"
UNKNOWN = re.compile(r"Unsupported global: GLOBAL ([\w.]+) was")
UNFIT = re.compile(r"Can only (?P<verb>\w+) .*got <class '(?P<name>[\w.]+)'>")
MAX_TRIES = 60  # each replaces one class


def may_have_weights(path: Path) -> bool:
    """Whether a file's suffix, or for some its first bytes, are those of a checkpoint."""
    suffix = path.suffix.lower()
    if suffix not in OTHER_SUFFIXES:
        return suffix in WEIGHTS_SUFFIXES
    with path.open("rb") as file:
        return file.read(max(map(len, MAGIC))).startswith(MAGIC)


def read_lab_file(path: Path, settled: Settled = UNSETTLED) -> LabFile:
    """The networks of a checkpoint, under our names.

    Raises `UserError` for a file that is missing, damaged, not only data or without a known
    network, and for one of ours, as shapes would not replace its description.
    """
    if path.exists() and not path.is_file():
        folder = " but a folder; name the files in it" if path.is_dir() else ""
        raise UserError(f"{path}: is not a file{folder}")
    if kind := described(path):
        raise UserError(f"{path}: is in our form already; give it as *.safetensors to --{kind}")
    content: object
    left_out: list[str] = []
    try:
        with path.open("rb") as file:  # safetensors calls a file missing that it may not open
            is_safetensors = file.read(9)[8:] == b"{"
        if is_safetensors:
            content = load_file(path)
        else:
            content, left_out = _read_data(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        reason = _other_archive(path) or refusal(error)
        raise UserError(f"{path}: {reason}{SAVE_AGAIN if 'opened' in reason else ''}") from None
    except (*BROKEN_FILE, SafetensorError) as error:
        raise_if_machine(error, path)
        reason = _other_archive(path) or f"damaged or no weights file ({message_of(error)})"
        raise UserError(f"{path}: {reason}") from None
    try:
        found = read_keys(content, str(path), settled)
    except NothingFoundError as error:
        if not left_out or isinstance(error, UnknownKeysError):
            raise
        asks = f"contains more than tensors and is not opened (it asks for {left_out[0]})"
        raise NotOpenedError(f"{path}: {asks}{SAVE_AGAIN}") from None
    if left_out:
        found.notes.append(f"not opened: objects of {', '.join(left_out)}")
    return found


def _other_archive(path: Path) -> str | None:
    """What an archive of another kind contains, and what to do with it; None for any other file.

    Raises `NotOpenedError` for a TorchScript program.
    """
    names: list[str] = []
    with suppress(*BROKEN_FILE, zipfile.BadZipFile, tarfile.TarError):
        if tarfile.is_tarfile(path):  # first, as one of checkpoints ends as a zip file does
            with tarfile.open(path) as archive:
                names = archive.getnames()
        elif zipfile.is_zipfile(path):
            names = zipfile.ZipFile(path).namelist()
    names = [name for name in names if not is_hidden(name)]
    if any(name.endswith("/constants.pkl") for name in names):
        raise NotOpenedError(f"{path}: is a TorchScript program, which is not opened{SAVE_AGAIN}")
    if inner := [name for name in names if name.lower().endswith(WEIGHTS_SUFFIXES)]:
        return f"is an archive that contains {', '.join(inner)}; unpack it and name these files"
    return None


def read_network(
    path: Path, kind: str, expected: Description
) -> tuple[dict[str, Tensor], Description]:
    """One network of a checkpoint: its weights under our names, and its description from shapes.

    Assumptions are noted once. Errors as `read_lab_file` and `describe`.
    """
    settled = Settled(heads=expected.num_heads if kind == TRANSFORMER else 0)
    part = read_lab_file(path, settled).part(kind)
    description = describe(part, expected, str(path))
    for text in (*part.notes, *not_followed(description, expected)):
        note_once(f"{path} {text}", f"{path}: {text}")
    return part.weights, description


class LeftOut:
    """Stands for an object of any class; only keeps its attributes, such as those of arguments."""

    attributes: object = None

    def __new__(cls, *_arguments: object) -> LeftOut:
        return super().__new__(cls)

    def __init__(self, *_arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.attributes = state

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


def _read_data(path: Path) -> tuple[object, list[str]]:
    """The content of a checkpoint, and the names of the classes that stand-ins replaced.

    Raises `pickle.UnpicklingError` if it asks for a function of Python's own or of the system.
    """
    stand_ins: dict[str, type[LeftOut]] = {}
    first: pickle.UnpicklingError | None = None  # names what a whole module asks for
    for _ in range(MAX_TRIES):
        try:
            return _load(path, stand_ins), [*stand_ins]
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
            if not known or name.startswith("torch.storage."):  # of a tensor, in a plain pickle
                raise
            stand_ins[name] = kind
    assert first
    raise first


def _load(path: Path, stand_ins: dict[str, type[LeftOut]]) -> object:
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
