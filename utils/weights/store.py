"""Load and save weights, as data only, never as code.

Weights are safetensors with their network's description in the header. A file with any other suffix
is read as a lab solution's checkpoint (utils/weights/lab_file.py).
"""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from config.errors import DivergedError, UserError
from config.schema import TokenizerConfig, TransformerConfig
from config.section import Section
from models.transformer import BidirectionalTransformer
from models.vqgan import VQGAN
from utils.io.files import atomic
from utils.io.messages import raise_if_machine
from utils.weights.description import (
    HEADER,
    KINDS,
    Description,
    Shapes,
    described,
    network_shapes,
    read_header,
    shapes_of,
    without_values,
)


def save_weights(
    path: Path, weights: dict[str, Tensor], description: Section, notes: dict[str, str]
) -> None:
    """Write a safetensors file with the network's description and notes in its header."""
    fields = set(_base(type(description)).model_fields)
    header = {"config": description.model_dump(mode="json", include=fields), **notes}
    weights = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    if bad := _not_finite(weights):
        raise DivergedError(f"{path}: {bad} is no longer finite; the last good file is kept")
    with atomic(path) as temporary:  # one sorted key, so that equal weights make equal files
        temporary.write_bytes(save(weights, {HEADER: json.dumps(header, sort_keys=True)}))


def write_tensors(path: Path, content: Any) -> None:
    """`torch.save`, which reports any failed write alike, with the system's own error."""
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def load_tokenizer(path: Path, expected: TokenizerConfig) -> VQGAN:
    """Build the VQGAN that a file describes, in eval mode and without gradients.

    Raises `UserError` if the file is missing, damaged, of another kind or does not fit
    ``expected``.
    """
    weights, description = _read(path, expected)
    _agree(path, "tokenizer.codebook_size", description.codebook_size, expected.codebook_size)
    halvings = len(description.downsample_after), len(expected.downsample_after)
    _agree(path, "number of levels in tokenizer.downsample_after", *halvings)
    return _built(description, weights, path).requires_grad_(False)


def load_transformer(path: Path, expected: TransformerConfig) -> BidirectionalTransformer:
    """Build the transformer that a file describes, in eval mode. Errors as `load_tokenizer`."""
    weights, description = _read(path, expected)
    foreign = path.suffix != ".safetensors"  # its heads must be named, and go with a width
    shown = ["patch_size"] if description.conditioning == "pixels" else []
    for key in ("codebook_size", "num_tokens", *shown, *(["dim"] if foreign else [])):
        _agree(path, f"transformer.{key}", getattr(description, key), getattr(expected, key))
    description = description.model_copy(update={"attention": expected.attention})
    return _built(description, weights, path)


def codes_fingerprint(codes: Tensor) -> str:
    """SHA-256 of a codebook (K, C) in fp16; identifies the tokenizer of a transformer."""
    return hashlib.sha256(codes.detach().cpu().half().numpy().tobytes()).hexdigest()


def require_tokens_of(transformer: Path, tokenizer: Path, vqgan: VQGAN) -> None:
    """Raise `UserError` if a transformer was trained with another tokenizer."""
    wanted = read_header(transformer).get("codes_sha256")
    if wanted not in (None, codes_fingerprint(vqgan.codebook.embedding.weight)):
        raise UserError(
            f"{transformer}: was trained on the tokens of another tokenizer than {tokenizer}"
        )


def _base(kind: type[Section]) -> type[Section]:
    """The config class of the network itself, without weights and training settings."""
    return TokenizerConfig if issubclass(kind, TokenizerConfig) else TransformerConfig


def _read(path: Path, expected: Description) -> tuple[dict[str, Tensor], Description]:
    """Weights and their description, from the header or inferred from a lab file's shapes."""
    kind = _base(type(expected))
    if not path.is_file():
        raise UserError(
            f"{path}: no such weights file; train first, or give --{KINDS[kind]} FILE; repairs "
            "with the released weights (models/pretrained/cats64) need --config config/cats64.yml"
        )
    if path.suffix != ".safetensors":
        from utils.weights.lab_file import read_network  # imported here: rarely needed

        return read_network(path, KINDS[kind], expected)
    try:
        path.open("rb").close()  # safetensors calls a file missing that it may not open
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return weights, kind.model_validate(read_header(path)["config"])
    except (SafetensorError, OSError) as error:
        raise_if_machine(error, path)
        raise UserError(f"{path}: damaged or no safetensors file ({error})") from None
    except (RuntimeError, MemoryError) as error:
        raise_if_machine(error, path)
        raise
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
        raise UserError(f"{path}: contains {held}") from None


def _built(description: Section, weights: dict[str, Tensor], path: Path) -> Any:
    """Build the described network and load its weights."""
    _check_shapes(network_shapes(description), weights, path)  # before any memory is taken
    return fill(without_values(description), weights, path)


def fill(network: nn.Module, weights: dict[str, Tensor], path: Path) -> Any:
    """Load weights strictly, convert to float32 and switch to eval mode; ``path`` for errors."""
    if bad := _not_finite(weights):
        raise UserError(f"{path}: {bad} contains values that are not finite")
    network.load_state_dict(weights)
    return network.float().eval()


def _check_shapes(own: Shapes, weights: dict[str, Tensor], path: Path) -> None:
    """Raise `UserError` unless the weights have exactly the shapes ``own``."""
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
