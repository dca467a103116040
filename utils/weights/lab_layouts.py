"""How the tensors of one attention lie in a lab file: whole or by head, outputs or inputs first.

Letters: D width, H heads, d = D / H. In a fused matrix, r counts q, k and v.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from utils.weights.lab_names import Roles

Weights = dict[str, Tensor]

STANDARD = "rhd"
LAYOUTS = {  # --attention: axes of a fused matrix's rows, the outermost first
    "standard": STANDARD,
    "rows-by-head": "hrd",
    "rows-interleaved": "hdr",
    "inputs-first": STANDARD,  # matrices (inputs, outputs), as x @ W takes them
}
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class Settled:
    """What the user says about a file where it leaves a doubt."""

    entry: str | None = None
    """Which of several networks of one kind is meant."""
    roles: Roles = field(default_factory=dict)
    """Of attention layers whose names do not say them."""
    layout: str | None = None
    """One of LAYOUTS; None stands for standard, unless matrices are bare parameters."""
    heads: int = 0


def reordered(value: Tensor, old: str, new: str, count: int, heads: int) -> Tensor:
    """Rows of ``count`` fused matrices, (count * D, ...), in another order of their axes."""
    if old == new or count == 1:
        return value
    sizes = {"r": count, "h": heads, "d": -1}
    parts = value.unflatten(0, [sizes[axis] for axis in old])
    order = [old.index(axis) for axis in new]
    return parts.permute(*order, *range(len(old), parts.ndim)).flatten(0, len(old) - 1)


def turned(value: Tensor, layout: str | None) -> Tensor:
    """A matrix with its outputs first, or back."""
    return value.T if layout == "inputs-first" and value.ndim == 2 else value


def starred(key: str) -> str:
    """The key that stands for a list, such as `heads.*.query.weight`."""
    return NUMBER.sub("*", key, count=1)


def members(key: str, keys: Weights) -> list[str]:
    """The keys of a file that a key stands for: itself, or those of the heads in order."""
    found = [other for other in keys if starred(other) == key] if "*" in key else [key]
    return sorted(found, key=lambda other: [int(n) for n in NUMBER.findall(other)])


def heads_joined(keys: Weights, width: int) -> Weights:
    """Tensors of single heads, `heads.0.query.weight` (d, D), joined as `heads.*.query.weight`."""
    out: Weights = {}
    lists: dict[str, Weights] = defaultdict(dict)
    for key, value in keys.items():
        of_head = NUMBER.search(key) and value.ndim and len(value) % width
        (lists[starred(key)] if of_head else out)[key] = value
    for key, found in lists.items():
        alike = len({value.shape for value in found.values()}) == 1
        values = [found[name] for name in members(key, found)]
        out |= {key: torch.cat(values)} if alike else found
    return out
