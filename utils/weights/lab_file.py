"""Read a lab solution's checkpoint safely: tensors and plain values, no code."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from config.errors import UserError
from utils.io.messages import message_of, note_once, raise_if_machine, refusal
from utils.weights.description import Description, described
from utils.weights.lab_keys import UNSETTLED, LabFile, read_keys
from utils.weights.lab_naming import Settled
from utils.weights.lab_shapes import describe

BROKEN_FILE = (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, MemoryError)
NUMPY_NUMBERS = [np.dtype(code) for code in ("?", *"bhilqBHILQ", *"efd")]


def numpy_number(kind: np.dtype, value: bytes) -> np.generic:
    """Unpickle a NumPy number; raises an error for any other dtype."""
    if kind not in NUMPY_NUMBERS:
        raise pickle.UnpicklingError(f"a NumPy value of type {kind}")
    return np.frombuffer(value, kind)[0]


NUMBERS = [  # for losses and the like that training loops save next to weights
    np.dtype,
    *{type(kind) for kind in NUMPY_NUMBERS},
    (numpy_number, "numpy.core.multiarray.scalar"),
    (numpy_number, "numpy._core.multiarray.scalar"),
]


def read_lab_file(path: Path, settled: Settled = UNSETTLED) -> LabFile:
    """The networks of a checkpoint, under our names.

    Raises `UserError` for a file that is missing, damaged, not only data or without a known
    network, and for one of ours, as shapes would not replace its description.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is not a file")
    if kind := described(path):
        raise UserError(f"{path}: is in our form already; give it as *.safetensors to --{kind}")
    content: object
    try:
        path.open("rb").close()  # safetensors calls a file missing that it may not open
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with torch.serialization.safe_globals(NUMBERS):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        cure = "; save it again: torch.save(model.state_dict(), 'transformer.pt')"
        reason = refusal(error)
        raise UserError(f"{path}: {reason}{cure if 'opened' in reason else ''}") from None
    except (*BROKEN_FILE, SafetensorError) as error:
        raise_if_machine(error, path)
        raise UserError(f"{path}: damaged or no weights file ({message_of(error)})") from None
    return read_keys(content, str(path), settled)


def read_network(
    path: Path, kind: str, expected: Description
) -> tuple[dict[str, Tensor], Description]:
    """One network of a checkpoint: its weights under our names, and its description from shapes.

    Assumptions are noted once. Errors as `read_lab_file` and `describe`.
    """
    part = read_lab_file(path).part(kind)
    for text in part.notes:
        note_once(f"{path} {text}", f"{path}: {text}")
    return part.weights, describe(part, expected, str(path))
