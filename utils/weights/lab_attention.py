"""Recognise a lab solution's attention layers by tensor shapes, independent of their names.

Everything in a block except LayerNorm1, LayerNorm2 and MLP is attention: layers with (4D, D) rows
in total, for example one (3D, D) or three (D, D), and one (D, D) for the output. Names tell which
rows are q, k or v (lab_naming.py), and the user tells their layout (lab_questions.py). Our layers
are `Attention.qkv` and `Attention.proj`; an output without bias gets a zero bias.

Letters: D width of the transformer.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace

import torch
from torch import Tensor

from config.errors import UserError
from utils.weights.lab_layouts import (
    LAYOUTS,
    ROOT_OF_WIDTH,
    STANDARD,
    Weights,
    einsum_matrices,
    heads_joined,
    heads_written_out,
    inputs_first,
    reordered,
    starred,
)
from utils.weights.lab_naming import (
    ROLE_WORDS,
    VARIANTS,
    Naming,
    Roles,
    Settled,
    layer_of,
    order_of,
    roles_of,
    says,
    words_of,
)
from utils.weights.lab_questions import FITS, ask, no_attention, notes_on

OTHER_LAYERS = ("LayerNorm1.", "LayerNorm2.", "MLP.")
BARE_BIAS = re.compile(r"b(ias)?_?[qkvo]+", re.IGNORECASE)  # bq, bias_qkv


def from_naming(
    weights: Weights, sources: dict[str, str], name: str, notes: list[str], settled: Settled
) -> tuple[Naming, Weights, dict[str, str]]:
    """The common naming of a transformer's blocks, the weights under our names, and their sources.

    A block that differs from the others keeps its keys, for the strict check to report. Raises
    `UserError` if no block has attention's shapes, or if layer names are ambiguous.
    """
    width = width_of(weights)
    blocks = {
        block: _whole(keys, width, settled.layout)
        for block, keys in _attention(weights).items()
        if width
    }
    if not blocks:
        return VARIANTS["report"], weights, sources
    recognised = {b: _recognise(b, *found, width, name, settled) for b, found in blocks.items()}
    namings = {block: naming for block, naming in recognised.items() if naming is not None}
    if not namings:
        block, (keys, _) = next(iter(blocks.items()))
        turned, _ = _whole(_attention(weights)[block], width, "inputs-first")
        fits_turned = _counts(turned, width) in FITS
        raise no_attention(block, keys, fits_turned, _counts(keys, width), width, name)
    naming = max(namings.values(), key=lambda found: len(found.biases))
    out, found_in = dict(weights), dict(sources)
    alike = [block for block, found in namings.items() if found == naming]
    for block in alike:
        _rename(block, blocks[block][0], naming, out, found_in)
    notes += notes_on(naming, settled)
    file = _attention(weights)[alike[0]]
    notes += _notes_on_shapes(file, naming, width)
    convolutions = {
        known: value.ndim - 2
        for key, value in file.items()
        for known in {key, starred(key)} & naming.weights.keys()
        if _squeezed(value).ndim < value.ndim
    }
    return replace(naming, convolutions=convolutions), out, found_in


def _notes_on_shapes(file: Weights, naming: Naming, width: int) -> list[str]:
    """Which of a block's tensors an export writes in other shapes."""
    flat = {key: _squeezed(file[key]) for key in naming.weights if key in file}
    shared = ", ".join(layer_of(k) for k, v in flat.items() if v.ndim == 2 and len(v) < width)
    einsum = ", ".join(key for key, value in flat.items() if value.ndim > 2)
    notes = []
    if shared:
        notes.append(f"{shared}: shared by {naming.heads} heads; exports contain each head's")
    if einsum:
        what = f"those of {naming.heads} heads" if naming.heads else "whole matrices"
        notes.append(f"{einsum}: taken as {what}; exports contain matrices for x @ W")
    return notes


def _rename(
    block: str, keys: Weights, naming: Naming, weights: Weights, sources: dict[str, str]
) -> None:
    """Rename a block's attention to our names, unless another tensor already has one of them."""
    old = naming.weights.keys() | naming.biases.keys()
    joined = _joined(keys, naming)
    if any(key in keys.keys() - old for key, _, _ in joined):
        return
    origin = dict(sources)
    for key in [key for key in weights if key.startswith(block)]:
        if {key.removeprefix(block), starred(key.removeprefix(block))} & old:
            del weights[key], sources[key]
    for key, value, used in joined:
        weights[block + key] = value
        names = [origin.get(block + name, block + name) for name in used]
        sources[block + key] = " + ".join(names) or "zeros"


def _joined(keys: Weights, naming: Naming) -> list[tuple[str, Tensor, list[str]]]:
    """Our keys of a block's attention, with their values and source keys."""
    found = []
    width = next(len(keys[key]) for key, rows in naming.weights.items() if rows == "o")
    for last, names in (("weight", naming.weights), ("bias", naming.biases)):
        pieces: Weights = {}
        for key, rows in names.items():
            axes = naming.axes(key)
            value = reordered(keys[key], axes, STANDARD, len(rows), naming.heads)
            pieces |= dict(zip(rows, value.chunk(len(rows)), strict=True))
        if "q" in pieces:
            pieces["q"] = pieces["q"].float() * naming.query_factor
        used = [key for key, rows in names.items() if rows != "o"]
        zeros = next(iter(keys.values())).new_zeros(width)
        if used:  # no bias at all unless one of the layers has one
            fused = torch.cat([pieces.get(role, zeros) for role in "qkv"])
            found.append((f"Attention.qkv.{last}", fused, used))
        output = [key for key, rows in names.items() if rows == "o"]
        found.append((f"Attention.proj.{last}", pieces.get("o", zeros), output))
    return found


def _attention(weights: Weights) -> dict[str, Weights]:
    """Prefix of each block, e.g. `blocks.0.` -> its keys outside norms and MLP."""
    blocks: dict[str, Weights] = defaultdict(dict)
    for key, value in weights.items():
        match = re.fullmatch(r"(blocks\.\d+\.)(.+)", key)
        if match and not match[2].startswith(OTHER_LAYERS):
            blocks[match[1]][match[2]] = value
    return blocks


def width_of(weights: Weights) -> int | None:
    """Width D of a transformer by its table of tokens or positions; None without any."""
    table = weights.get("tok_emb.weight", weights.get("pos_emb"))
    return None if table is None or table.ndim != 2 else table.shape[1]


def _whole(keys: Weights, width: int, layout: str | None) -> tuple[Weights, int]:
    """A block's tensors with whole matrices as in `nn.Linear`, also of 1 x 1 convolutions.

    Returns them, and the number of heads if the shapes or a list of heads tell, else 0.
    """
    flat, heads = heads_written_out({k: _squeezed(value) for k, value in keys.items()}, width)
    if layout == "inputs-first":
        flat, counted = einsum_matrices(flat, width)
        heads = heads or counted
    matrices = [key for key, value in flat.items() if value.ndim == 2 and width in value.shape]
    turned = inputs_first(matrices, layout)
    whole = {key: value.T if key in turned else value for key, value in flat.items()}
    return (whole, heads) if heads else heads_joined(whole, width)


def _squeezed(value: Tensor) -> Tensor:
    ones = value.ndim > 2 and set(value.shape[2:]) == {1}
    return value.flatten(1) if ones else value


def _recognise(
    block: str, keys: Weights, heads: int, width: int, name: str, settled: Settled
) -> Naming | None:
    """The naming of one block, or None if its tensors are not attention of this width."""
    matrices = _matrices(keys, width)
    if sorted(matrices.values()) not in FITS:
        return None
    ask(block, matrices, name, settled)
    layout = settled.layout or "standard"
    if layout == ROOT_OF_WIDTH or LAYOUTS[layout] != STANDARD:
        heads = heads or settled.heads
    if heads and width % heads:
        raise UserError(f"{name}: width {width} does not divide into {heads} heads; name "
                        "transformer.num_heads in the config")  # fmt: skip
    fused = [layer_of(key) for key, count in matrices.items() if count == 3]
    named = dict.fromkeys(fused, "qkv") if layout == "dimensions-first" else {}
    weights = roles_of(block, matrices, name, named | settled.roles)
    return Naming(_sorted(weights), _sorted(_biases(keys, weights, width)), layout, heads)


def _matrices(keys: Weights, width: int) -> dict[str, int]:
    """Key of each stack of (D, D) matrices -> their number."""
    return {
        key: len(value) // width
        for key, value in keys.items()
        if value.ndim == 2 and value.shape[1] == width and len(value) % width == 0
    }


def _counts(keys: Weights, width: int) -> list[int]:
    """How many (D, D) matrices each layer stacks, sorted."""
    return sorted(_matrices(keys, width).values())


def _biases(keys: Weights, weights: Roles, width: int) -> Roles:
    """Biases -> roles: biases of the layers, and separate ones such as q_bias."""
    found: Roles = {}
    layers = {layer_of(key): rows for key, rows in weights.items()}
    for key, value in keys.items():
        layer = layer_of(key)
        own = layer.split(".")[-1]
        words = words_of([own])
        is_bias = key.endswith("bias") or "b" in words or BARE_BIAS.fullmatch(own)
        if value.ndim != 1 or not is_bias:
            continue
        rows, count = layers.get(layer, ""), len(value) // width
        if not rows and not any(layer_of(other) == layer and other != key for other in keys):
            said = "".join(role for role in ROLE_WORDS if says(role, words))
            rows = order_of(key, count) or said
        if len(rows) * width == len(value) and not set(rows) & set("".join(found.values())):
            found[key] = rows
    return found


def _sorted(names: Roles) -> Roles:
    return dict(sorted(names.items(), key=lambda item: "qkvo".index(item[1][0])))
