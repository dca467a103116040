"""Attention of a lab solution, recognised by what its tensors are, whatever they are called.

Within a block, all but LayerNorm1, LayerNorm2 and MLP is attention: layers whose rows make up
(4D, D), for example one (3D, D) or three (D, D), and one (D, D) for the output. Which rows are q,
k or v only the names say, and how they lie only the user (lab_layouts.py). Here the layers are
`Attention.qkv` and `Attention.proj`; an output without bias gets a zero bias.

Letters: D width of the transformer.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from config.errors import UserError
from utils.weights.lab_layouts import (
    LAYOUTS,
    STANDARD,
    Settled,
    Weights,
    heads_joined,
    members,
    reordered,
    turned,
)
from utils.weights.lab_names import (
    ROLE_WORDS,
    Roles,
    layer_of,
    order_of,
    roles_of,
    says,
    words_of,
)

OTHER_LAYERS = ("LayerNorm1.", "LayerNorm2.", "MLP.")
LINEAR = (".weight", "proj_weight")  # ends of matrices that PyTorch's layers own
SHOWN = 4  # tensors in an error line


@dataclass(frozen=True)
class Naming:
    """Keys of attention within a block -> which of q, k, v and o (the output) their rows are."""

    weights: Roles
    """E.g. {"Attention.qkv.weight": "qkv", "Attention.proj.weight": "o"}."""
    biases: Roles
    """Likewise; what stands nowhere has no bias."""
    layout: str = "standard"
    """One of LAYOUTS."""
    heads: int = 0
    """Their number, where the layout or a list of heads (`heads.*.query.weight`) asks for it."""

    @property
    def title(self) -> str:
        """Name of the variant, or the layers."""
        known = (name for name, naming in VARIANTS.items() if naming == self)
        return next(known, ", ".join(map(layer_of, self.weights)))

    def as_text(self) -> str:
        """JSON, as a header keeps it."""
        return json.dumps(vars(self))

    def axes(self, key: str) -> str:
        """Axes of a tensor's rows; those of a list of heads lie by head."""
        return LAYOUTS["rows-by-head" if "*" in key else self.layout]

    @classmethod
    def from_text(cls, text: str) -> Naming:
        """The opposite of `as_text`."""
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


def from_naming(
    weights: Weights, sources: dict[str, str], name: str, notes: list[str], settled: Settled
) -> tuple[Naming, Weights, dict[str, str]]:
    """The naming that a transformer's blocks share, its weights under our names, and the sources.

    A block that differs from the others keeps its keys, which the strict check then names.
    Raises `UserError` where no block has attention's shapes, or names leave it open which layer
    is which.
    """
    blocks, width = _attention(weights), _width(weights)
    if not blocks or width is None:
        return VARIANTS["report"], weights, sources
    recognised = {block: _recognise(block, keys, width, name, settled)
                  for block, keys in blocks.items()}  # fmt: skip
    namings = {block: naming for block, naming in recognised.items() if naming is not None}
    if not namings:
        raise _no_attention(*next(iter(blocks.items())), width, name)
    counts = Counter(map(repr, namings.values()))
    naming = max(namings.values(), key=lambda found: (counts[repr(found)], len(found.biases)))
    out, found_in = dict(weights), dict(sources)
    for block in (block for block, found in namings.items() if found == naming):
        keys = _laid_out(blocks[block], width, settled.layout)
        joined = _joined(keys, naming)
        old = naming.weights.keys() | naming.biases.keys()
        if any(key in keys.keys() - old for key, _, _ in joined):
            continue
        for key in (own for listed in old for own in members(listed, blocks[block])):
            del out[block + key], found_in[block + key]
        for key, value, used in joined:
            out[block + key] = value
            found_in[block + key] = (
                " + ".join(sources.get(block + k, block + k) for k in used) or "zeros"
            )
    _note(naming, notes)
    return naming, out, found_in


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


def _joined(keys: Weights, naming: Naming) -> list[tuple[str, Tensor, list[str]]]:
    """Our keys of a block's attention, with their values and the keys that they come from."""
    found = []
    for last, names in (("weight", naming.weights), ("bias", naming.biases)):
        pieces: Weights = {}
        for key, rows in names.items():
            axes = naming.axes(key)
            value = reordered(keys[key], axes, STANDARD, len(rows), naming.heads)
            pieces |= dict(zip(rows, value.chunk(len(rows)), strict=True))
        used = [key for key, rows in names.items() if rows != "o"]
        zeros = next(iter(keys.values())).new_zeros(_rows(keys, naming))
        if used:  # the network has biases here only if one of the layers does
            fused = torch.cat([pieces.get(role, zeros) for role in "qkv"])
            found.append((f"Attention.qkv.{last}", fused, used))
        output = [key for key, rows in names.items() if rows == "o"]
        found.append((f"Attention.proj.{last}", pieces.get("o", zeros), output))
    return found


def _rows(keys: Weights, naming: Naming) -> int:
    """D, from the output's matrix."""
    return len(keys[next(key for key, rows in naming.weights.items() if rows == "o")])


def _attention(weights: Weights) -> dict[str, Weights]:
    """Prefix of each block, e.g. `blocks.0.` -> its keys that are neither norm nor MLP."""
    blocks: dict[str, Weights] = defaultdict(dict)
    for key, value in weights.items():
        match = re.fullmatch(r"(blocks\.\d+\.)(.+)", key)
        if match and not match[2].startswith(OTHER_LAYERS):
            blocks[match[1]][match[2]] = value
    return blocks


def _width(weights: Weights) -> int | None:
    table = weights.get("tok_emb.weight", weights.get("pos_emb"))
    return None if table is None or table.ndim != 2 else table.shape[1]


def _laid_out(keys: Weights, width: int, layout: str | None) -> Weights:
    """A block's tensors with outputs first, and those of single heads joined."""
    return heads_joined({key: turned(value, layout) for key, value in keys.items()}, width)


def _recognise(
    block: str, found: Weights, width: int, name: str, settled: Settled
) -> Naming | None:
    """The naming of one block, or None if its tensors are no attention of this width."""
    keys = _laid_out(found, width, settled.layout)
    matrices = {
        key: len(value) // width
        for key, value in keys.items()
        if value.ndim == 2 and value.shape[1] == width and len(value) % width == 0
    }
    heads = {len(members(key, found)) for key in matrices if "*" in key}
    if sorted(matrices.values()) not in ([1, 3], [1, 1, 2], [1, 1, 1, 1]) or len(heads) > 1:
        return None
    bare = [key for key in matrices if not key.endswith(LINEAR)]
    if bare and settled.layout is None:
        raise UserError(
            f"{name}: {block}{bare[0]} is a bare parameter; say how it is used with --attention "
            "of utils.weights.import_lab: inputs-first for x @ W, standard for x @ W.T"
        )
    layout = settled.layout or "standard"
    if LAYOUTS[layout] != STANDARD:
        heads.add(settled.heads)
        if len(heads) > 1 or width % settled.heads:
            raise UserError(
                f"{name}: width {width} by head needs the number of heads, "
                f"but transformer.num_heads is {settled.heads}"
            )
    weights = roles_of(block, matrices, name, settled.roles)
    biases = _biases(keys, weights, width)
    return Naming(_sorted(weights), _sorted(biases), layout, max(heads, default=0))


def _biases(keys: Weights, weights: Roles, width: int) -> Roles:
    """Biases -> roles: of the layers, and those that stand apart, such as q_bias."""
    found, apart = {}, []
    layers = {layer_of(key): rows for key, rows in weights.items()}
    for key, value in keys.items():
        layer = layer_of(key)
        named = key.endswith("bias") or "b" in words_of([layer.split(".")[-1]])
        if not named or value.ndim != 1 or len(value) % width:
            continue
        if len(layers.get(layer, "")) == len(value) // width:
            found[key] = layers[layer]
        elif not any(layer_of(other) == layer and other != key for other in keys):
            apart.append(key)
    for key in apart:
        rows = order_of(key, len(keys[key]) // width) or "".join(
            role for role in ROLE_WORDS if says(role, words_of([layer_of(key).split(".")[-1]]))
        )
        is_free = not set(rows) & set("".join(found.values()))
        if len(rows) == len(keys[key]) // width and is_free:
            found[key] = rows
    return found


def _sorted(names: Roles) -> Roles:
    return dict(sorted(names.items(), key=lambda item: "qkvo".index(item[1][0])))


def _no_attention(block: str, keys: Weights, width: int, name: str) -> UserError:
    shown = [f"{block}{key} {tuple(value.shape)}" for key, value in keys.items()]
    more = ", ..." if len(shown) > SHOWN else ""
    return UserError(
        f"{name}: attention is not recognised among {', '.join(shown[:SHOWN])}{more}; allowed are "
        f"linear layers of 3 x {width} rows, or of {width} for each of q, k and v, and an output, "
        f"all of {width} columns; --map of utils.weights.import_lab names them, and --attention "
        "inputs-first turns them"
    )


def _note(naming: Naming, notes: list[str]) -> None:
    """Name what is not as in the report."""
    output = next(key for key, rows in naming.weights.items() if rows == "o")
    if "o" not in naming.biases.values():
        layer = layer_of(output)
        notes.append(f"{layer} has no bias: zeros, which an export leaves out again")
    for key, rows in naming.weights.items():
        if len(rows) > 1 and key not in VARIANTS["report"].weights:
            how = f" ({naming.layout})" if naming.layout != "standard" else ""
            notes.append(f"{layer_of(key)}: its rows are taken in the order {', '.join(rows)}{how}")
    if any("*" in key for key in naming.weights):
        notes.append(f"{naming.heads} heads, counted in {layer_of(next(iter(naming.weights)))}")
