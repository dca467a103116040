"""How a lab solution names the layers of attention, and our weights under its names.

Here the layers are `Attention.qkv` and `Attention.proj`. What a solution calls them is recognised
by utils/weights/lab_attention.py.

Letters: D width of the transformer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from config.errors import UserError

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Naming:
    """Layers of attention within a block, in the order in which they hold q, k and v."""

    inputs: dict[str, str]
    """Layer -> which of q, k and v its rows are, e.g. {"Attention.qkv": "qkv"}."""
    output: str
    biased: frozenset[str]
    """The layers that have a bias."""
    separators: dict[str, str]
    """Layer -> what stands between its name and `weight`, where that is no dot."""

    @property
    def title(self) -> str:
        """Name of the variant, or the layers."""
        known = (name for name, naming in VARIANTS.items() if naming == self)
        return next(known, ", ".join([*self.inputs, self.output]))

    def as_text(self) -> str:
        """JSON, as a header keeps it."""
        return json.dumps(vars(self) | {"biased": sorted(self.biased)})

    @classmethod
    def from_text(cls, text: str) -> Naming:
        """The opposite of `as_text`."""
        values = json.loads(text)
        return cls(**values | {"biased": frozenset(values["biased"])})


def _variant(inputs: dict[str, str], output: str, biased: list[str]) -> Naming:
    inputs = {f"Attention.{layer}": rows for layer, rows in inputs.items()}
    return Naming(
        inputs, f"Attention.{output}", frozenset(f"Attention.{layer}" for layer in biased), {}
    )


SEPARATE = {"query": "q", "key": "k", "value": "v"}
VARIANTS = {
    "report": _variant({"qkv": "qkv"}, "proj", ["proj"]),
    "fused": _variant({"qkv": "qkv"}, "proj", ["qkv", "proj"]),
    "separate": _variant(SEPARATE, "output_layer", [*SEPARATE, "output_layer"]),
}


def to_naming(weights: Weights, naming: Naming) -> Weights:
    """Our transformer's weights as another solution names them; the opposite of `from_naming`.

    A bias that the network lacks is written as zeros where the naming has one. Raises `UserError`
    where the naming would lose a bias.
    """
    out: Weights = {}
    for key, value in weights.items():
        block, dot, rest = key.partition(".Attention.")
        if not dot:
            out[key] = value
        elif rest == "qkv.weight":
            bias = weights.get(f"{block}.Attention.qkv.bias", value.new_zeros(len(value)))
            for layer, rows in naming.inputs.items():
                _write(out, block, layer, _rows(value, rows), _rows(bias, rows), naming)
        elif rest == "proj.weight":
            bias = weights[f"{block}.Attention.proj.bias"]
            _write(out, block, naming.output, value, bias, naming)
    return out


def _write(
    out: Weights, block: str, layer: str, weight: Tensor, bias: Tensor, naming: Naming
) -> None:
    """One layer of a block under its name."""
    start = f"{block}.{layer}{naming.separators.get(layer, '.')}"
    out[f"{start}weight"] = weight
    if layer in naming.biased:
        out[f"{start}bias"] = bias
    elif bias.any():
        raise UserError(
            f"{block}.{layer}: this variant's attention has no such biases; export to another "
            "--variant, such as fused or separate"
        )


def _rows(value: Tensor, rows: str) -> Tensor:
    """The rows of a fused tensor (3D, ...) that hold some of q, k and v."""
    q_k_v = dict(zip("qkv", value.chunk(3), strict=True))
    return torch.cat([q_k_v[letter] for letter in rows])
