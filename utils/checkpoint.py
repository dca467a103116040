"""Weights and training states on disk: data, never programs.

Weights are safetensors with their network's description in the header. A training state is read
with `weights_only=True`; the one before it is kept, so that a broken file loses one interval.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from config.errors import UserError
from config.schema import Section, TokenizerConfig, TransformerConfig
from models.transformer import BidirectionalTransformer
from models.vqgan import VQGAN
from utils.files import atomic

Description = TypeVar("Description", TokenizerConfig, TransformerConfig)
State = dict[str, Any]


def save_weights(
    path: Path, weights: dict[str, Tensor], description: Section, notes: dict[str, str]
) -> None:
    """Write a safetensors file whose header holds the network's description and notes."""
    fields = set(_base(type(description)).model_fields)
    header = {"config": json.dumps(description.model_dump(mode="json", include=fields)), **notes}
    weights = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    with atomic(path) as temporary:
        save_file(weights, temporary, metadata=header)


def load_tokenizer(path: Path, expected: TokenizerConfig) -> VQGAN:
    """Build the VQGAN that a file describes, in eval mode and without gradients.

    Raises `UserError` if the file is missing, foreign, damaged, or does not fit ``expected``.
    """
    weights, description = _read(path, expected)
    for key in ("codebook_size", "downsample_after"):
        _agree(path, f"tokenizer.{key}", getattr(description, key), getattr(expected, key))
    return _fill(VQGAN(description), weights, path).requires_grad_(False)


def load_transformer(path: Path, expected: TransformerConfig) -> BidirectionalTransformer:
    """Build the transformer that a file describes, in eval mode. Errors as `load_tokenizer`."""
    weights, description = _read(path, expected)
    for key in ("codebook_size", "num_tokens"):
        _agree(path, f"transformer.{key}", getattr(description, key), getattr(expected, key))
    description = description.model_copy(update={"attention": expected.attention})
    return _fill(BidirectionalTransformer(description), weights, path)


def save_state(path: Path, state: State) -> None:
    """Write a training state; what was the latest becomes ``<name>.previous``."""
    with atomic(path) as temporary:
        torch.save(state, temporary)
        if path.exists():
            path.replace(previous(path))


def load_state(path: Path) -> State | None:
    """Read the latest whole training state, or None if there is none yet."""
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            return torch.load(candidate, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError):
            print(f"{candidate}: damaged checkpoint, passed over", file=sys.stderr)
    if path.exists():
        raise UserError(f"{path}: damaged, and no earlier checkpoint is left; start a new run")
    return None


def previous(path: Path) -> Path:
    """Where the state before the latest is kept."""
    return path.with_name(path.name + ".previous")


def _base(kind: type[Section]) -> type[Section]:
    """The class that describes a network, without the settings around it."""
    return TokenizerConfig if issubclass(kind, TokenizerConfig) else TransformerConfig


def _read(path: Path, expected: Description) -> tuple[dict[str, Tensor], Description]:
    """Weights and the description to build from: the header's, or ``expected`` for a .pt file."""
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; train first, or name one in the config")
    kind = _base(type(expected))
    if path.suffix != ".safetensors":
        fields = expected.model_dump(include=set(kind.model_fields))
        return _read_foreign(path), kind.model_validate(fields)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return weights, kind.model_validate_json(header["config"])
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or no safetensors file ({error})") from None
    except (KeyError, ValidationError):
        raise UserError(f"{path}: holds no description of a {kind.__name__[:-6]}") from None


def _read_foreign(path: Path) -> dict[str, Tensor]:
    """A lab .pt file: a plain dictionary of tensors, nothing that could run."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path}: holds more than tensors and is not opened") from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged or no weights file ({_first_line(error)})") from None
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise UserError(f"{path}: expected a dictionary of tensors")
    return weights


def _fill(network: nn.Module, weights: dict[str, Tensor], path: Path) -> Any:
    """Load weights strictly and switch to eval mode."""
    if bad := next((k for k, w in weights.items() if not torch.isfinite(w).all()), None):
        raise UserError(f"{path}: {bad} holds values that are not finite")
    own = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    if own != found:
        wrong = sorted(key for key in own.keys() | found.keys() if own.get(key) != found.get(key))
        raise UserError(
            f"{path}: does not fit the network, {len(wrong)} of {len(own)} keys differ; first "
            f"{wrong[0]}: found {found.get(wrong[0], 'none')}, needed {own.get(wrong[0], 'none')}"
        )
    network.load_state_dict(weights)
    return network.float().eval()


def _agree(path: Path, key: str, found: object, needed: object) -> None:
    if found != needed:
        raise UserError(f"{path}: {key} is {found}, but the config says {needed}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
