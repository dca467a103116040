"""Names and memory layout of the tensors in the blocks of a lab file.

Matrices may be fused, whole or by head, with outputs or inputs first; q, k, v and the output are
recognised by their names. A layer may stack several of them: `to_qkv` all three, `to_kv` two.
Ambiguous names are an error that lists the candidates; --map of import_lab resolves it.
Letters: D width, H heads, d = D / H, r role (q, k, v) in a fused matrix.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import takewhile

import torch

from config.errors import UserError
from utils.weights.lab_layouts import (
    LAYOUTS,
    NUMBER,
    ROOT_OF_WIDTH,
    STANDARD,
    Weights,
    inputs_first,
    renamed,
    reordered,
)

Roles = dict[str, str]  # layer or key without its block, e.g. attn.a -> q, k, v, o, or several
UNUSED = "unused"  # as a role: the forward pass does not use the layer

ROLE_WORDS = {"q": "q|que|qry|quer(y|ie)", "k": "k|key", "v": "v|val|value", "o": "o|out|output"}
AROUND = "w|b|fc|to|lin|linear|proj|projection|layer|dense|weight|bias|matrix|embed"
QKV_ORDERS = {3: re.compile("qkv|qvk|kqv|kvq|vqk|vkq"), 2: re.compile("qk|kq|qv|vq|kv|vk")}
LAYER = re.compile(r"(?P<layer>.+?)[._](?P<last>weight|bias)")


@dataclass(frozen=True)
class Settled:
    """The user's answers to ambiguities in a file."""

    entry: str | None = None
    """Which of several networks of one kind to use."""
    roles: Roles = field(default_factory=dict)
    """Roles of attention layers with ambiguous names."""
    layout: str | None = None
    """One of LAYOUTS; None: standard, unless names make it doubtful (lab_questions.py)."""
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
    convolutions: dict[str, int] = field(default_factory=dict)
    """Weights of 1 x 1 convolutions -> number of their axes of size 1."""
    others: dict[str, str] = field(default_factory=dict)
    """Norms and layers of the MLP here -> there, where names differ: {"LayerNorm1": "ln1"}."""

    @property
    def title(self) -> str:
        """Name of the variant, or of the layers of attention."""
        attention = replace(self, others={})
        known = (name for name, naming in VARIANTS.items() if naming == attention)
        return next(known, ", ".join(map(layer_of, self.weights)))

    def as_text(self) -> str:
        """JSON, as stored in a header."""
        return json.dumps(vars(self))

    def axes(self, key: str) -> str:
        """Axes of a tensor's rows; a list of heads is ordered by head."""
        return LAYOUTS["rows-by-head" if "*" in key else self.layout]

    @property
    def query_factor(self) -> float:
        """What q is multiplied by here: q kᵀ / √D = (q / √H) kᵀ / √d."""
        return self.heads**-0.5 if self.layout == ROOT_OF_WIDTH else 1.0

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
    turned = inputs_first(naming.weights, naming.layout)
    for key, value in weights.items():
        block, dot, rest = key.partition(".Attention.")
        if not dot:
            out[renamed(key, naming.others)] = value
        if rest != "qkv.weight":
            continue
        for last, names in (("weight", naming.weights), ("bias", naming.biases)):
            fused = weights.get(f"{block}.Attention.qkv.{last}", value.new_zeros(len(value)))
            pieces = dict(zip("qkv", fused.chunk(3), strict=True))
            pieces["q"] = pieces["q"] / naming.query_factor
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
                    part = part.T if own in turned else part
                    out[key] = part[(..., *[None] * naming.convolutions.get(own, 0))]
    return out


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
    if not set("qkv") & set("".join(found.values())):
        found |= _of_a_list(left) or _alike(left)
        left = [layer for layer in layers if layer not in found]
    roles = set(ROLE_WORDS).difference(*found.values())
    if len(left) == len(roles) == 1:
        found[left[0]] = roles.pop()
    complete = sorted("".join(found.values())) == sorted(ROLE_WORDS)
    if not complete or any(len(found[layer]) != count for layer, count in layers.items()):
        raise _undecided(block, layers, name, "names do not tell q, k, v and output apart")
    return {key: found[layer_of(key)] for key in matrices}


def _of_a_list(layers: list[str]) -> Roles:
    """Roles in a list whose name gives their order, such as `qkv.0` to `qkv.2`."""
    lists: dict[str, list[str]] = defaultdict(list)
    for layer in sorted(layers):
        lists[NUMBER.sub("*", layer)].append(layer)
    for name, members in lists.items():
        if len(members) == 3 and (order := _named_order(name, 3)):
            return dict(zip(members, order, strict=True))
    return {}


def _alike(layers: list[str]) -> Roles:
    """Roles of three names that differ in nothing but a q, k and v, such as `xq`, `xk`, `xv`."""
    for name in layers:
        for at in (match.start() for match in re.finditer("[qQ]", name)):
            letters = "QKV" if name[at] == "Q" else "qkv"
            three = [f"{name[:at]}{letter}{name[at + 1 :]}" for letter in letters]
            if set(three) <= set(layers):
                return dict(zip(three, "qkv", strict=True))
    return {}


def order_of(layer: str, count: int) -> str:
    """Row order of a fused layer by its name, searched from the end; qkv if three are unnamed."""
    return _named_order(layer, count) or ("qkv" if count == 3 else "")


def _named_order(layer: str, count: int) -> str:
    if count not in QKV_ORDERS:
        return ""
    parts = layer.lower().split(".")
    for start in reversed(range(len(parts))):
        text = "".join(parts[start:]).replace("_", "")
        for word, letter in (("quer(y|ies)", "q"), ("keys?", "k"), ("val(ue)?s?", "v")):
            text = re.sub(word, letter, text)
        if match := QKV_ORDERS[count].search(text):
            return match[0]
    return ""


def _common_parts(layers: list[str]) -> int:
    """Number of leading dotted parts that all layers share, such as the attention's name."""
    columns = zip(*(layer.split(".")[:-1] for layer in layers), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def words_of(parts: list[str]) -> set[str]:
    """Words of a layer's name, e.g. toQ.linear -> to, q, toq, linear."""
    name = "_".join(parts)
    split = re.sub(r"([a-z])([A-Z])", r"\1_\2", name)
    return {word.lower() for word in re.split(r"[_\d*]+", f"{name}_{split}") if word}


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
