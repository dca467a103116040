"""Read a lab solution's checkpoint safely: tensors and plain values, no code."""

from __future__ import annotations

import pickle
import re
import struct
import tarfile
import zipfile
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from fid.names import natural_key, trailing_number
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from config.errors import MachineError, UserError
from utils.io.messages import message_of, note_once, raise_if_machine, refusal
from utils.weights.description import TRANSFORMER, Description, described
from utils.weights.lab_keys import UNSETTLED, LabFile, read_keys
from utils.weights.lab_naming import Settled
from utils.weights.lab_networks import FIRST_WORDS, NothingFoundError
from utils.weights.lab_pickle import read_data
from utils.weights.lab_shapes import describe, not_followed

BROKEN_FILE = (  # the unpickler takes a text's letters for its own instructions
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, MemoryError),
    *(struct.error, AttributeError, AssertionError),
)
WEIGHTS_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
EPOCH = re.compile(r"(?:epoch|ep|step|checkpoint)s?[\W_]*(\d{1,9})", re.IGNORECASE)
LOSS = re.compile(r"[_-]?\d+\.\d+")  # in the name of an epoch, as in 30_0.81.pt
HEX = re.compile(r"[0-9a-f]{1,8}")  # how some name epochs before a loss, as in 3c_1.0512.pt
Progress = tuple[bool, bool, bool, int]
SAVE_AGAIN = "; save it again: torch.save(model.state_dict(), 'transformer.pt')"


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
            content, left_out = read_data(path)
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
    except NothingFoundError:
        if not left_out:
            raise
        asks = f"holds more than tensors and is not opened (it asks for {left_out[0]})"
        raise UserError(f"{path}: {asks}{SAVE_AGAIN}") from None
    if left_out:
        found.notes.append(f"not opened: objects of {', '.join(left_out)}")
    return found


def _other_archive(path: Path) -> str | None:
    """What an archive of another kind holds, and what to do with it; None for any other file."""
    names: list[str] = []
    with suppress(*BROKEN_FILE, zipfile.BadZipFile, tarfile.TarError):
        if zipfile.is_zipfile(path):
            names = zipfile.ZipFile(path).namelist()
        elif tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                names = archive.getnames()
    if any(name.endswith("/constants.pkl") for name in names):
        return f"is a TorchScript program, which is not opened{SAVE_AGAIN}"
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


def pick_files(
    paths: Sequence[Path], settled: Settled, brought: Collection[str], notes: list[str]
) -> dict[str, Path]:
    """The file to take each network from: of several epochs the best one, or else the last.

    Names tell, as in best.pt, final.pt and epoch_20.pt; the last of equally good ones is taken,
    with a note. Networks in ``brought`` need no file. Files without a network, such as the state of
    an optimizer, are left out. Raises `NothingFoundError` if no file has a network. Errors of
    `read_lab_file`, unless a better file has a transformer: then they become notes.
    """
    missing = FIRST_WORDS.keys() - brought
    picked: dict[str, Path] = {}
    runs: dict[str, Progress] = {}  # name without the epoch -> progress of the epoch that is read
    nothing: NothingFoundError | None = None
    for path in sorted(paths, key=_order, reverse=True):
        reached = progress(path)
        better = {kind for kind, found in picked.items() if progress(found) > reached}
        if better == missing:
            break
        if runs.setdefault(EPOCH.sub("", str(path)), reached) != reached:
            continue
        try:
            kinds = read_lab_file(path, settled).parts
        except NothingFoundError as error:
            nothing = nothing or error
            continue
        except UserError as error:
            if isinstance(error, MachineError) or TRANSFORMER not in better:
                raise
            notes.append(f"left out: {error}")
            continue
        for kind in (kind for kind in kinds if kind in missing):
            taken = picked.setdefault(kind, path)
            if taken != path and kind not in better:
                notes.append(f"{taken}: its {kind} is taken; by its name {path} is equally good")
    if nothing and not picked and not brought:
        raise nothing
    return picked


def _order(path: Path) -> tuple[Progress, tuple]:
    """Sorts equally good files by name."""
    return progress(path), natural_key(str(path))


def progress(path: Path) -> Progress:
    """How far training was by a file's name: sorts the best after the last after other epochs.

    Of several best ones that by validation is the last.
    """
    name = path.stem.casefold()
    epoch = LOSS.sub("", name)
    if epoch != name and HEX.fullmatch(epoch):  # this also sorts decimal numbers
        number = int(epoch, 16)
    elif epochs := EPOCH.findall(f"{path.parent.name}/{epoch}"):
        number = int(epochs[-1])
    else:
        number = trailing_number(f"{epoch}{path.suffix}")
    is_last = any(word in name for word in ("last", "latest", "final"))
    is_best = "best" in name
    return is_best, is_best and "val" in name, is_last, -1 if number is None else number
