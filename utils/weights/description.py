"""The network that a weights file of ours describes in its header, and its shapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from config.schema import TokenizerConfig, TransformerConfig
from models.transformer import BidirectionalTransformer
from models.vqgan import VQGAN
from utils.io.messages import raise_if_machine

HEADER = "maskgit"  # the one metadata key of our safetensors files
TOKENIZER, TRANSFORMER = "tokenizer", "transformer"
WEIGHTS_FILES = {TOKENIZER: "vqgan.safetensors", TRANSFORMER: "transformer.safetensors"}
KINDS = {TokenizerConfig: TOKENIZER, TransformerConfig: TRANSFORMER}
DRAWS = {"uniform_", "normal_"}  # methods that draw initial values
Description = TypeVar("Description", TokenizerConfig, TransformerConfig)
Shapes = dict[str, tuple[int, ...]]


def read_header(path: Path) -> dict[str, Any]:
    """The header (config and notes) of a weights file of ours; {} for any other file.

    Raises `MachineError` for a disk error.
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


def described(path: Path) -> str | None:
    """The kind of network that a file of ours describes; None for any other file."""
    header = read_header(path)
    for section, kind in KINDS.items():
        with suppress(KeyError, ValidationError):
            section.model_validate(header["config"])
            return kind
    return None


def network_shapes(description: TokenizerConfig | TransformerConfig) -> Shapes:
    """The shape of every key of a network, without allocating memory."""
    with torch.device("meta"):
        return shapes_of(without_values(description).state_dict())


def without_values(description: TokenizerConfig | TransformerConfig) -> Any:
    """Build the described network with uninitialised values, ready for loading."""
    network = VQGAN if isinstance(description, TokenizerConfig) else BidirectionalTransformer
    with WithoutValues():
        return network(description)


class WithoutValues(TorchFunctionMode):
    """Skip weight initialisation, as loaded weights replace the values (or they are on `meta`)."""

    def __torch_function__(
        self, function: Callable, _types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"]
        if function.__name__ in DRAWS:
            return args[0].zero_()  # not left uninitialised: a rejection loop might never end
        return function(*args, **kwargs)


def shapes_of(weights: dict[str, Tensor]) -> Shapes:
    """The shape of every tensor."""
    return {key: tuple(value.shape) for key, value in weights.items()}
