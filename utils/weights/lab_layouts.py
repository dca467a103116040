"""How matrices of attention lie in a lab file: fused, by head, inputs first, as 1 x 1 convolutions.

Letters: D width, H heads, d = D / H, r role (q, k, v) in a fused matrix.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

Weights = dict[str, Tensor]

STANDARD = "rhd"
ROOT_OF_WIDTH = "root-of-width"  # scores / √D instead of √d
LAYOUTS = {  # --attention: axes of a fused matrix's rows, outermost first
    "standard": STANDARD,
    "rows-by-head": "hrd",
    "rows-interleaved": "hdr",
    "dimensions-first": "drh",  # in the order q, k, v, whatever the name says
    "inputs-first": STANDARD,  # matrices (inputs, outputs), for x @ W
    ROOT_OF_WIDTH: STANDARD,
}
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
NAME_NUMBER = re.compile(r"\d+(?=[._]|$)")  # of heads in names: q0, head_0
KEY = re.compile(r"(?P<block>(?:blocks\.\d+\.)?)(?P<layer>.+)(?P<last>\.\w+)")
LINEAR = (".weight", "proj_weight")  # endings of matrices in PyTorch's own layers
IN_HEADS = re.compile(r"heads\.\d+\.")


def renamed(key: str, layers: dict[str, str]) -> str:
    """A key with its layer renamed, in any block: `blocks.3.ln1.weight` by {"ln1": ...}."""
    match = KEY.fullmatch(key)
    new = layers.get(match["layer"]) if match else None
    return f"{match['block']}{new}{match['last']}" if match and new else key


def reordered(value: Tensor, old: str, new: str, count: int, heads: int) -> Tensor:
    """Permute the axes of the rows of ``count`` fused matrices, (count * D, ...)."""
    if old == new or count == 1:
        return value
    sizes = {"r": count, "h": heads, "d": -1}
    parts = value.unflatten(0, [sizes[axis] for axis in old])
    order = [old.index(axis) for axis in new]
    return parts.permute(*order, *range(len(old), parts.ndim)).flatten(0, len(old) - 1)


def is_bare(key: str) -> bool:
    """Whether a matrix is a parameter of its own, not that of a layer."""
    return not key.endswith(LINEAR)


def inputs_first(matrices: Iterable[str], layout: str | None) -> set[str]:
    """The matrices that are (inputs, outputs): bare parameters if there are any, else all.

    Layers next to bare parameters are PyTorch's, whose matrices are (outputs, inputs).
    """
    if layout != "inputs-first":
        return set()
    keys = set(matrices)
    return {key for key in keys if is_bare(key)} or keys


def starred(key: str) -> str:
    """The key with list indices replaced by *, such as `heads.*.query.weight`."""
    number = _number(key)
    return f"{key[: number.start()]}*{key[number.end() :]}" if number else key


def _number(key: str) -> re.Match[str] | None:
    return NUMBER.search(key) or NAME_NUMBER.search(key)


def heads_written_out(keys: Weights, width: int) -> tuple[Weights, int]:
    """Repeat matrices (d, d) of q, k and v that all heads share, and their biases, for each head.

    Returns the tensors, with whole matrices (D, D), and the number of heads, 0 if none are shared.
    """
    sides = {k: len(v) for k, v in keys.items() if v.ndim == 2 and len(v) == v.shape[1] < width}
    side = max(sides.values(), default=0)
    if list(sides.values()) != [side] * 3 or side == 0 or width % side:
        return keys, 0
    heads = width // side
    matrices = {key: torch.block_diag(*[keys[key]] * heads) for key in sides}
    biases = keys.keys() & {f"{key.removesuffix('weight')}bias" for key in sides}
    return keys | matrices | {key: keys[key].repeat(heads) for key in biases}, heads


def einsum_matrices(keys: Weights, width: int) -> tuple[Weights, int]:
    """Parameters of an einsum as matrices (inputs, outputs), and the number of heads if d tells.

    (..., D, d) and (D, ..., d), whose other axes are heads, or q, k, v and heads, become
    (D, outputs); a single (H, d, D), which is the output's, becomes (D, D).
    """
    out, sizes = dict(keys), set()
    axes = {key: value for key, value in keys.items() if value.ndim > 2 and is_bare(key)}
    outputs = [k for k, v in axes.items() if v.shape[-1] == width and width not in v.shape[:-1]]
    for key, value in axes.items():
        if width in (len(value), value.shape[-2]):
            inputs = -2 if value.shape[-2] == width else 0
            out[key] = value.movedim(inputs, 0).flatten(1)
            sizes.add(value.shape[-1])
        elif outputs == [key]:
            out[key] = value.flatten(0, -2)
    head = sizes.pop() if len(sizes) == 1 else width
    return out, 0 if head == width or width % head else width // head


def heads_joined(keys: Weights, width: int) -> tuple[Weights, int]:
    """Concatenate tensors of heads, `heads.0.query.weight` (d, D), as `heads.*.query.weight`.

    Returns the tensors and the number of heads, 0 if there is no list of equal heads.
    """
    out: Weights = {}
    lists: dict[str, dict[int, Tensor]] = defaultdict(dict)
    single = _single_head(keys, width)
    for key, value in keys.items():
        number = _number(key)
        if number and value.ndim and (len(value) % width or key in single):
            lists[starred(key)][int(number[0])] = value
        else:
            out[key] = value
    alike = all(len({head.shape for head in found.values()}) == 1 for found in lists.values())
    counts = {len(found) for found in lists.values()}
    if len(counts) != 1 or not alike:
        return keys, 0
    return out | {k: torch.cat([h[n] for n in sorted(h)]) for k, h in lists.items()}, counts.pop()


def _single_head(keys: Weights, width: int) -> list[str]:
    """Keys of a list called heads that contains one head, whose q, k and v have D rows each.

    Its shapes are those of several heads in one matrix.
    """
    found = [key for key in keys if IN_HEADS.search(key)]
    rows = sum(len(keys[key]) for key in found if keys[key].ndim == 2)
    return found if rows == 3 * width and all("heads.0." in key for key in found) else []
