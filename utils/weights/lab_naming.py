"""Names and memory layout of the attention tensors in a lab file.

Matrices may be fused, whole or by head, with outputs or inputs first.
Letters: D width, H heads, d = D / H, r role (q, k, v) in a fused matrix.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from config.errors import UserError
from utils.weights.lab_names import Roles, layer_of

Weights = dict[str, Tensor]

STANDARD = "rhd"
LAYOUTS = {  # --attention: axes of a fused matrix's rows, outermost first
    "standard": STANDARD,
    "rows-by-head": "hrd",
    "rows-interleaved": "hdr",
    "inputs-first": STANDARD,  # matrices (inputs, outputs), for x @ W
}
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class Settled:
    """The user's answers to ambiguities in a file."""

    entry: str | None = None
    """Which of several networks of one kind to use."""
    roles: Roles = field(default_factory=dict)
    """Roles of attention layers with ambiguous names."""
    layout: str | None = None
    """One of LAYOUTS; None: standard, unless matrices are bare parameters."""
    heads: int = 0


@dataclass(frozen=True)
class Naming:
    """Keys of attention within a block -> which of q, k, v and o (the output) their rows are."""

    weights: Roles
    """E.g. {"Attention.qkv.weight": "qkv", "Attention.proj.weight": "o"}."""
    biases: Roles
    """Likewise; roles not listed have no bias."""
    layout: str = "standard"
    """One of LAYOUTS."""
    heads: int = 0
    """Number of heads, if needed by the layout or a list of heads (`heads.*.query.weight`)."""

    @property
    def title(self) -> str:
        """Name of the variant, or of the layers."""
        known = (name for name, naming in VARIANTS.items() if naming == self)
        return next(known, ", ".join(map(layer_of, self.weights)))

    def as_text(self) -> str:
        """JSON, as stored in a header."""
        return json.dumps(vars(self))

    def axes(self, key: str) -> str:
        """Axes of a tensor's rows; a list of heads is ordered by head."""
        return LAYOUTS["rows-by-head" if "*" in key else self.layout]

    @classmethod
    def from_text(cls, text: str) -> Naming:
        """The inverse of `as_text`."""
        return cls(**json.loads(text))


def _variant(layers: Roles, biased: Roles) -> Naming:
    return Naming(
        {f"Attention.{layer}.weight": rows for layer, rows in layers.items()},
        {f"Attention.{layer}.bias": rows for layer, rows in biased.items()},
    )


FUSED = {"qkv": "qkv", "proj": "o"}
SEPARATE = {"query": "q", "key": "k", "value": "v", "output_layer": "o"}
VARIANTS = {
    "report": _variant(FUSED, {"proj": "o"}),
    "fused": _variant(FUSED, FUSED),
    "separate": _variant(SEPARATE, SEPARATE),
}


def to_naming(weights: Weights, naming: Naming) -> Weights:
    """Our transformer's weights under another solution's names; the inverse of `from_naming`.

    A bias that only the naming has is written as zeros. Raises `UserError` if a bias of the network
    has no place in the naming.
    """
    out: Weights = {}
    for key, value in weights.items():
        block, dot, rest = key.partition(".Attention.")
        if not dot:
            out[key] = value
        if rest != "qkv.weight":
            continue
        for last, names in (("weight", naming.weights), ("bias", naming.biases)):
            fused = weights.get(f"{block}.Attention.qkv.{last}", value.new_zeros(len(value)))
            pieces = dict(zip("qkv", fused.chunk(3), strict=True))
            pieces["o"] = weights[f"{block}.Attention.proj.{last}"]
            if any(pieces[role].any() for role in set("qkvo").difference(*names.values())):
                raise UserError(
                    f"{block}: this variant's attention has no such biases; export to another "
                    "--variant, such as fused or separate"
                )
            for own, rows in names.items():
                joined = torch.cat([pieces[role] for role in rows])
                joined = reordered(joined, STANDARD, naming.axes(own), len(rows), naming.heads)
                parts = joined.chunk(naming.heads) if "*" in own else [joined]
                for number, part in enumerate(parts):
                    key = f"{block}.{own.replace('*', str(number))}"
                    out[key] = turned(part, naming.layout)
    return out


def reordered(value: Tensor, old: str, new: str, count: int, heads: int) -> Tensor:
    """Permute the axes of the rows of ``count`` fused matrices, (count * D, ...)."""
    if old == new or count == 1:
        return value
    sizes = {"r": count, "h": heads, "d": -1}
    parts = value.unflatten(0, [sizes[axis] for axis in old])
    order = [old.index(axis) for axis in new]
    return parts.permute(*order, *range(len(old), parts.ndim)).flatten(0, len(old) - 1)


def turned(value: Tensor, layout: str | None) -> Tensor:
    """Transpose an inputs-first matrix to outputs-first, or back."""
    return value.T if layout == "inputs-first" and value.ndim == 2 else value


def starred(key: str) -> str:
    """The key with list indices replaced by *, such as `heads.*.query.weight`."""
    return NUMBER.sub("*", key, count=1)


def heads_joined(keys: Weights, width: int) -> tuple[Weights, int]:
    """Concatenate tensors of heads, `heads.0.query.weight` (d, D), as `heads.*.query.weight`.

    Returns the tensors and the number of heads, 0 if there is no list of equal heads.
    """
    out: Weights = {}
    lists: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for key, value in keys.items():
        number = NUMBER.search(key)
        if number and value.ndim and len(value) % width:
            lists[starred(key)][int(number[0])] = value
        else:
            out[key] = value
    alike = all(len({head.shape for head in found.values()}) == 1 for found in lists.values())
    counts = {len(found) for found in lists.values()}
    if len(counts) != 1 or not alike:
        return keys, 0
    return out | {k: torch.cat([h[n] for n in sorted(h)]) for k, h in lists.items()}, counts.pop()
