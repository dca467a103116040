"""Weights on disk: data, never programs.

Weights are safetensors with their network's description in the header. A file of any other suffix
is read as a lab solution's checkpoint (utils/weights/lab_keys.py).
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from config.errors import DivergedError, UserError
from config.schema import TokenizerConfig, TransformerConfig
from config.section import Section
from models.transformer import BidirectionalTransformer
from models.vqgan import VQGAN
from utils.io.faults import raise_if_machine
from utils.io.files import atomic
from utils.io.images import tell_once
from utils.weights.lab_keys import TOKENIZER, TRANSFORMER, UNSETTLED, LabFile, read_keys
from utils.weights.lab_naming import Settled
from utils.weights.lab_shapes import Shapes, WithoutValues, describe, network_shapes, shapes_of

HEADER = "maskgit"  # the one metadata key of our safetensors files
KINDS = {TokenizerConfig: TOKENIZER, TransformerConfig: TRANSFORMER}
Description = TypeVar("Description", TokenizerConfig, TransformerConfig)
BROKEN_FILE = (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, MemoryError)
NUMPY_NUMBERS = [np.dtype(code) for code in ("?", *"bhilqBHILQ", *"efd")]


def numpy_number(kind: np.dtype, value: bytes) -> np.generic:
    """A NumPy number as a pickle spells it; any other kind of value is refused."""
    if kind not in NUMPY_NUMBERS:
        raise pickle.UnpicklingError(f"a NumPy value of type {kind}")
    return np.frombuffer(value, kind)[0]


NUMBERS = [  # losses and such, which training loops save next to weights
    np.dtype,
    *{type(kind) for kind in NUMPY_NUMBERS},
    (numpy_number, "numpy.core.multiarray.scalar"),
    (numpy_number, "numpy._core.multiarray.scalar"),
]


def save_weights(
    path: Path, weights: dict[str, Tensor], description: Section, notes: dict[str, str]
) -> None:
    """Write a safetensors file whose header holds the network's description and notes."""
    fields = set(_base(type(description)).model_fields)
    header = {"config": description.model_dump(mode="json", include=fields), **notes}
    weights = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    if bad := _not_finite(weights):
        raise DivergedError(f"{path}: {bad} is no longer finite; the last good file is kept")
    with atomic(path) as temporary:  # one sorted key, so that equal weights make equal files
        temporary.write_bytes(save(weights, {HEADER: json.dumps(header, sort_keys=True)}))


def read_header(path: Path) -> dict[str, Any]:
    """Description and notes of a weights file of ours; {} for any other file.

    Raises `MachineError` where a disk does not answer.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
    except (FileNotFoundError, IsADirectoryError, SafetensorError, ValueError, RecursionError):
        return {}
    except OSError as error:
        raise_if_machine(error, path)
        return {}
    return header if isinstance(header, dict) else {}


def load_tokenizer(path: Path, expected: TokenizerConfig) -> VQGAN:
    """Build the VQGAN that a file describes, in eval mode and without gradients.

    Raises `UserError` if the file is missing, foreign, damaged, or does not fit ``expected``.
    """
    weights, description = _read(path, expected)
    _agree(path, "tokenizer.codebook_size", description.codebook_size, expected.codebook_size)
    halvings = len(description.downsample_after), len(expected.downsample_after)
    _agree(path, "number of levels in tokenizer.downsample_after", *halvings)
    _check_shapes(network_shapes(description), weights, path)  # before any memory is taken
    with WithoutValues():
        network = VQGAN(description)
    return fill(network, weights, path).requires_grad_(False)


def load_transformer(path: Path, expected: TransformerConfig) -> BidirectionalTransformer:
    """Build the transformer that a file describes, in eval mode. Errors as `load_tokenizer`."""
    weights, description = _read(path, expected)
    foreign = path.suffix != ".safetensors"  # its heads must be named, and go with a width
    shown = ["patch_size"] if description.conditioning == "pixels" else []
    for key in ("codebook_size", "num_tokens", *shown, *(["dim"] if foreign else [])):
        _agree(path, f"transformer.{key}", getattr(description, key), getattr(expected, key))
    description = description.model_copy(update={"attention": expected.attention})
    _check_shapes(network_shapes(description), weights, path)
    with WithoutValues():
        network = BidirectionalTransformer(description)
    return fill(network, weights, path)


def read_lab_file(path: Path, settled: Settled = UNSETTLED) -> LabFile:
    """Read a lab solution's checkpoint: tensors and plain values, nothing that could run.

    Raises `UserError` for a file that is missing or damaged, that
    asks for more, or that holds no known network; and for one of ours, whose description shapes
    would not replace.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is not a file")
    if kind := described(path):
        raise UserError(f"{path}: is in our form already; give it as *.safetensors to --{kind}")
    content: object
    try:
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
        raise UserError(f"{path}: damaged or no weights file ({first_line(error)})") from None
    return read_keys(content, str(path), settled)


def codes_fingerprint(codes: Tensor) -> str:
    """SHA-256 in fp16 of a codebook's weight (K, C), by which a transformer knows its tokenizer."""
    return hashlib.sha256(codes.detach().cpu().half().numpy().tobytes()).hexdigest()


def require_tokens_of(transformer: Path, tokenizer: Path, vqgan: VQGAN) -> None:
    """Raise `UserError` for a transformer that another tokenizer's tokens were shown to."""
    wanted = read_header(transformer).get("codes_sha256")
    if wanted not in (None, codes_fingerprint(vqgan.codebook.embedding.weight)):
        raise UserError(
            f"{transformer}: was trained on the tokens of another tokenizer than {tokenizer}"
        )


def _base(kind: type[Section]) -> type[Section]:
    """The class that describes a network, without the settings around it."""
    return TokenizerConfig if issubclass(kind, TokenizerConfig) else TransformerConfig


def _read(path: Path, expected: Description) -> tuple[dict[str, Tensor], Description]:
    """Weights and the description to build from: the header's, or what a lab file's shapes tell."""
    kind = _base(type(expected))
    if not path.is_file():
        raise UserError(
            f"{path}: no such weights file; train first, or give --{KINDS[kind]} FILE or "
            f"{KINDS[kind]}.weights; released ones lie in models/pretrained/cats64"
        )
    if path.suffix != ".safetensors":
        part = read_lab_file(path).part(KINDS[kind])
        for text in part.notes:
            tell_once(f"{path} {text}", f"{path}: {text}")
        return part.weights, describe(part, expected, str(path))
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return weights, kind.model_validate(read_header(path)["config"])
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or no safetensors file ({error})") from None
    except (KeyError, ValidationError):
        found, wanted = described(path), KINDS[kind]
        held = (
            f"a {found}, but no {wanted}"
            if found
            else (
                f"no description of a {wanted}; one of the lab's is converted first: "
                f"python -m utils.weights.import_lab {shlex.quote(str(path))} --out runs/lab"
            )
        )
        raise UserError(f"{path}: holds {held}") from None


def described(path: Path) -> str | None:
    """Which network a file of ours describes; None for any other file."""
    header = read_header(path)
    for section, kind in KINDS.items():
        with suppress(KeyError, ValidationError):
            section.model_validate(header["config"])
            return kind
    return None


def fill(network: nn.Module, weights: dict[str, Tensor], path: Path) -> Any:
    """Load weights strictly and switch to eval mode; ``path`` names their file in errors."""
    if bad := _not_finite(weights):
        raise UserError(f"{path}: {bad} holds values that are not finite")
    _check_shapes(shapes_of(network.state_dict()), weights, path)
    network.load_state_dict(weights)
    return network.float().eval()


def _check_shapes(own: Shapes, weights: dict[str, Tensor], path: Path) -> None:
    """Refuse weights that are not those of a network with such shapes."""
    found = shapes_of(weights)
    if own != found:
        wrong = sorted(key for key in own.keys() | found.keys() if own.get(key) != found.get(key))
        raise UserError(
            f"{path}: does not fit the network, {len(wrong)} of {len(own)} keys differ; first "
            f"{wrong[0]}: found {found.get(wrong[0], 'none')}, needed {own.get(wrong[0], 'none')}"
        )


def _not_finite(weights: dict[str, Tensor]) -> str | None:
    """Name of the first tensor with a NaN or an infinity."""
    return next((name for name, w in weights.items() if not torch.isfinite(w).all()), None)


def _agree(path: Path, key: str, found: object, needed: object) -> None:
    if found != needed:
        raise UserError(f"{path}: {key} is {found}, but the config says {needed}")


def refusal(error: pickle.UnpicklingError) -> str:
    """Why a file is not opened, and what it would have run as far as that is known."""
    if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"holds more than tensors and is not opened (it asks for {wanted[1]})"
    if re.search(r"Unsupported operand|invalid load key", str(error)):
        return "damaged or no weights file"
    return "holds more than tensors and is not opened"


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
