"""Attention of a lab solution, recognised by what its tensors are, whatever they are called.

Within a block, all but LayerNorm1, LayerNorm2 and MLP is attention: one matrix (3D, D), or three
(D, D), and one (D, D) for the output. Which of four equal shapes is q, k or v only the names say.
Here the layers are `Attention.qkv` and `Attention.proj`; an output without bias gets a zero bias.

Letters: D width of the transformer.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from config.errors import UserError

Weights = dict[str, Tensor]
Roles = dict[str, str]  # layer without its block, e.g. attn.a -> q, k, v, o, or qkv in any order

OTHER_LAYERS = ("LayerNorm1.", "LayerNorm2.", "MLP.")
ROLE_WORDS = {"q": "q|quer(y|ie)", "k": "k|key", "v": "v|val|value", "o": "o|out|output"}
AROUND = "w|fc|to|lin|linear|proj|projection|layer|dense|weight|matrix|embed"
ORDERS = re.compile("qkv|qvk|kqv|kvq|vqk|vkq")
LAYER = re.compile(r"(?P<layer>.+?)(?P<separator>[._])(?P<last>weight|bias)")


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


def from_naming(
    weights: Weights, sources: dict[str, str], name: str, notes: list[str], roles: Roles | None
) -> tuple[Naming, Weights, dict[str, str]]:
    """The naming that a transformer's blocks share, its weights under our names, and the sources.

    A block that differs from the others keeps its keys, which the strict check then names.
    Raises `UserError` where names leave it open which layer is which.
    """
    blocks, width = _attention(weights), _width(weights)
    namings = {
        block: naming
        for block, keys in blocks.items()
        if (naming := _recognise(block, keys, width, name, roles)) is not None
    }
    if not namings:
        return VARIANTS["report"], weights, sources
    counts = Counter(map(repr, namings.values()))
    naming = max(namings.values(), key=lambda found: (counts[repr(found)], len(found.biased)))
    out, found_in = dict(weights), dict(sources)
    for block in (block for block, found in namings.items() if found == naming):
        joined = _joined(blocks[block], naming)
        old = {key for _, _, used in joined for key in used}
        if any(key in blocks[block].keys() - old for key, _, _ in joined):
            continue
        for key in old:
            del out[block + key], found_in[block + key]
        for key, value, used in joined:
            out[block + key] = value
            found_in[block + key] = " + ".join(sources[block + k] for k in used) or "zeros"
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


def _joined(keys: Weights, naming: Naming) -> list[tuple[str, Tensor, list[str]]]:
    """Our keys of a block's attention, with their values and the keys that they come from."""

    def read(layer: str, last: str) -> tuple[Tensor, list[str]]:
        start = f"{layer}{naming.separators.get(layer, '.')}"
        weight = keys[f"{start}weight"]
        if last == "bias" and layer not in naming.biased:
            return weight.new_zeros(len(weight)), []
        return keys[f"{start}{last}"], [f"{start}{last}"]

    found = []
    for last in ("weight", "bias"):
        pieces: dict[str, Tensor] = {}
        used: list[str] = []
        for layer, rows in naming.inputs.items():
            value, names = read(layer, last)
            used += names
            pieces |= dict(zip(rows, value.chunk(len(rows)), strict=True))
        if used:  # the network has biases here only if one of the layers does
            found.append((f"Attention.qkv.{last}", torch.cat([pieces[r] for r in "qkv"]), used))
        found.append((f"Attention.proj.{last}", *read(naming.output, last)))
    return found


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


def _recognise(
    block: str, keys: Weights, width: int | None, name: str, roles: Roles | None
) -> Naming | None:
    """The naming of one block, or None if its tensors are no attention of this width."""
    parsed = [(match, keys[key].shape) for key in keys if (match := LAYER.fullmatch(key))]
    matrices = {
        match["layer"]: shape[0]
        for match, shape in parsed
        if match["last"] == "weight" and len(shape) == 2 and shape[1] == width
    }
    if width is None or sorted(matrices.values()) not in ([width, 3 * width], [width] * 4):
        return None
    found = _roles(block, matrices, name, roles or {})
    parsed = [(match, shape) for match, shape in parsed if match["layer"] in matrices]
    separators = {m["layer"]: m["separator"] for m, _ in parsed if m["separator"] != "."}
    biased = frozenset(
        match["layer"]
        for match, shape in parsed
        if match["last"] == "bias" and tuple(shape) == (matrices[match["layer"]],)
    )
    inputs = {layer: rows for layer, rows in found.items() if rows != "o"}
    output = next(layer for layer, rows in found.items() if rows == "o")
    ordered = dict(sorted(inputs.items(), key=lambda item: "qkv".find(item[1])))
    return Naming(ordered, output, biased, separators)


def _roles(block: str, matrices: dict[str, int], name: str, given: Roles) -> Roles:
    """Layer -> q, k, v or o, or the order of all three."""
    if unknown := given.keys() - matrices.keys():
        raise _undecided(block, matrices, name, f"--map names {', '.join(sorted(unknown))}")
    if len(matrices) == 2:
        fused, output = sorted(matrices, key=lambda layer: -matrices[layer])
        order = ORDERS.search(re.sub("[._]", "", fused.lower()))
        return {fused: given.get(fused, order[0] if order else "qkv"), output: "o"}
    layers = [layer for layer in matrices if layer not in given]
    around = _common_parts(list(matrices))
    words = {layer: _words(layer.split(".")[around:]) for layer in layers}
    found = {role: layer for layer, role in given.items()}
    for role in (role for role in ROLE_WORDS if role not in found):
        hits = [
            layer for layer in layers if layer not in found.values() and _says(role, words[layer])
        ]
        if len(hits) == 1:
            found[role] = hits[0]
    left = [layer for layer in matrices if layer not in found.values()]
    if len(left) == 1 and len(found) == 3:
        found[next(role for role in ROLE_WORDS if role not in found)] = left[0]
    if len(found) < 4:
        raise _undecided(block, matrices, name, "names do not tell q, k, v and output apart")
    return {layer: role for role, layer in found.items()}


def _common_parts(layers: list[str]) -> int:
    """How many parts between dots all layers begin with, such as the name of the attention."""
    columns = zip(*(layer.split(".")[:-1] for layer in layers), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _words(parts: list[str]) -> set[str]:
    """Words of a layer's name, e.g. toQ.linear -> to, q, toq, linear."""
    name = "_".join(parts)
    split = re.sub(r"([a-z])([A-Z])", r"\1_\2", name)
    return {word.lower() for word in re.split(r"[_\d]+", f"{name}_{split}") if word}


def _says(role: str, words: set[str]) -> bool:
    pattern = rf"({AROUND})?({ROLE_WORDS[role]})s?({AROUND})?"
    return any(re.fullmatch(pattern, word) for word in words)


def _undecided(block: str, matrices: dict[str, int], name: str, why: str) -> UserError:
    layers = [f"{block}{layer}" for layer in matrices]
    letters = "qkvo" if len(layers) == 4 else ("qkv", "o")
    example = ",".join(f"{a}={b}" for a, b in zip(layers, letters, strict=True))
    return UserError(
        f"{name}: {why}; candidates are {', '.join(layers)}; say which is which, e.g. "
        f"utils.weights.import_lab --map {example}"
    )


def _note(naming: Naming, notes: list[str]) -> None:
    """Name what is not as in the report."""
    if naming.output not in naming.biased:
        notes.append(f"{naming.output} has no bias: zeros, which an export leaves out again")
    for layer, rows in naming.inputs.items():
        if len(rows) == 3 and rows != "qkv":
            notes.append(f"{layer}: its rows are taken in the order {', '.join(rows)}, as named")
        elif len(rows) == 3 and not ORDERS.search(re.sub("[._]", "", layer.lower())):
            notes.append(f"{layer}: its rows are taken in the order q, k, v; else give --map")
