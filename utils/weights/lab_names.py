"""Recognise q, k, v and the output among attention layers by their names.

A layer may stack several of them: `to_qkv` all three, `to_kv` two. Ambiguous names are an error
that lists the candidates; --map of import_lab resolves it.
"""

from __future__ import annotations

import re
from itertools import takewhile

from config.errors import UserError

Roles = dict[str, str]  # layer or key without its block, e.g. attn.a -> q, k, v, o, or several

ROLE_WORDS = {"q": "q|quer(y|ie)", "k": "k|key", "v": "v|val|value", "o": "o|out|output"}
AROUND = "w|b|fc|to|lin|linear|proj|projection|layer|dense|weight|bias|matrix|embed"
ORDERS = {3: re.compile("qkv|qvk|kqv|kvq|vqk|vkq"), 2: re.compile("qk|kq|qv|vq|kv|vk")}
LAYER = re.compile(r"(?P<layer>.+?)[._](?P<last>weight|bias)")


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
