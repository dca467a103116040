"""Names and memory layout of the attention tensors in a lab file.

Matrices may be fused, whole or by head, with outputs or inputs first; q, k, v and the output are
recognised by their names. A layer may stack several of them: `to_qkv` all three, `to_kv` two.
Ambiguous names are an error that lists the candidates; --map of import_lab resolves it.
Letters: D width, H heads, d = D / H, r role (q, k, v) in a fused matrix.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import Tensor

from config.errors import UserError

Weights = dict[str, Tensor]
Roles = dict[str, str]  # layer or key without its block, e.g. attn.a -> q, k, v, o, or several

ROLE_WORDS = {"q": "q|quer(y|ie)", "k": "k|key", "v": "v|val|value", "o": "o|out|output"}
AROUND = "w|b|fc|to|lin|linear|proj|projection|layer|dense|weight|bias|matrix|embed"
ORDERS = {3: re.compile("qkv|qvk|kqv|kvq|vqk|vkq"), 2: re.compile("qk|kq|qv|vq|kv|vk")}
LAYER = re.compile(r"(?P<layer>.+?)[._](?P<last>weight|bias)")

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


def roles_of(block: str, matrices: dict[str, int], name: str, given: Roles) -> Roles:
    """Key -> which of q, k, v and o its rows are. matrices: key -> number of stacked matrices."""
    layers = {layer_of(key): count for key, count in matrices.items()}
    if unknown := given.keys() - layers.keys():
        raise _undecided(block, layers, name, f"--map names {', '.join(sorted(unknown))}")
    found = dict(given)
    for layer, count in layers.items():
        if layer not in found and (order := order_of(layer, count)):
            found[layer] = order
    around = _common_parts(list(layers))
    words = {layer: words_of(layer.split(".")[around:]) for layer in layers}
    for role in (role for role in ROLE_WORDS if role not in "".join(found.values())):
        hits = [layer for layer in layers if layer not in found and says(role, words[layer])]
        if len(hits) == 1 and layers[hits[0]] == 1:
            found[hits[0]] = role
    left = [layer for layer in layers if layer not in found]
    roles = set(ROLE_WORDS).difference(*found.values())
    if len(left) == len(roles) == 1:
        found[left[0]] = roles.pop()
    complete = sorted("".join(found.values())) == sorted(ROLE_WORDS)
    if not complete or any(len(found[layer]) != count for layer, count in layers.items()):
        raise _undecided(block, layers, name, "names do not tell q, k, v and output apart")
    return {key: found[layer_of(key)] for key in matrices}


def order_of(layer: str, count: int) -> str:
    """Row order of a fused layer by its name, searched from the end; qkv if three are unnamed."""
    if count not in ORDERS:
        return ""
    parts = layer.lower().split(".")
    for start in reversed(range(len(parts))):
        text = "".join(parts[start:]).replace("_", "")
        for word, letter in (("quer(y|ies)", "q"), ("keys?", "k"), ("val(ue)?s?", "v")):
            text = re.sub(word, letter, text)
        if match := ORDERS[count].search(text):
            return match[0]
    return "qkv" if count == 3 else ""


def _common_parts(layers: list[str]) -> int:
    """Number of leading dotted parts that all layers share, such as the attention's name."""
    columns = zip(*(layer.split(".")[:-1] for layer in layers), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def words_of(parts: list[str]) -> set[str]:
    """Words of a layer's name, e.g. toQ.linear -> to, q, toq, linear."""
    name = "_".join(parts)
    split = re.sub(r"([a-z])([A-Z])", r"\1_\2", name)
    return {word.lower() for word in re.split(r"[_\d]+", f"{name}_{split}") if word}


def says(role: str, words: set[str]) -> bool:
    pattern = rf"({AROUND})?({ROLE_WORDS[role]})s?({AROUND})?"
    return any(re.fullmatch(pattern, word) for word in words)


def layer_of(key: str) -> str:
    match = LAYER.fullmatch(key)
    return match["layer"] if match else key


def _undecided(block: str, layers: dict[str, int], name: str, why: str) -> UserError:
    letters = iter("qkvo")
    example = ",".join(
        f"{block}{layer}={''.join(next(letters) for _ in range(count))}"
        for layer, count in sorted(layers.items(), key=lambda item: -item[1])
    )
    candidates = ", ".join(f"{block}{layer}" for layer in layers)
    return UserError(
        f"{name}: {why}; candidates are {candidates}; say which is which, e.g. "
        f"utils.weights.import_lab --map {example}"
    )
