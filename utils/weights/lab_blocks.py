"""Recognise norms and MLPs under other names than the lab's LayerNorm1, LayerNorm2, MLP.0, MLP.2.

A norm before the head, which pre-norm networks have, is our `final_norm`.
Letters: D width of the transformer, H width of the MLP.
"""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import permutations

from utils.weights.lab_layouts import Weights

KEY = re.compile(r"(?P<block>(?:blocks\.\d+\.)?)(?P<layer>.+)(?P<last>\.\w+)")
ANY_NORM = "(?:ln|norm|layer_?norm)"
NORM = re.compile(rf"{ANY_NORM}_?(?P<number>[12])", re.IGNORECASE)
LAST_NORM = re.compile(rf"final_?{ANY_NORM}|{ANY_NORM}_?(?:f|final)", re.IGNORECASE)
MLP = re.compile(r"mlp|ffn?|feed_?forward", re.IGNORECASE)
IN_BLOCK = re.compile(r"(?:linear|lin|fc)_?[12]", re.IGNORECASE)  # of an MLP without its own module
FINAL_NORM = "final_norm.weight"  # our key


def renamed(key: str, layers: dict[str, str]) -> str:
    """A key with its layer renamed, in any block: `blocks.3.ln1.weight` by {"ln1": ...}."""
    match = KEY.fullmatch(key)
    new = layers.get(match["layer"]) if match else None
    return f"{match['block']}{new}{match['last']}" if match and new else key


def other_names(weights: Weights) -> dict[str, str]:
    """Norms and layers of the MLP in the file -> here, where names differ: {"ln1": "LayerNorm1"}.

    The first block gives the names of all.
    """
    table = weights.get("tok_emb.weight")
    layers: dict[str, dict[str, Weights]] = defaultdict(lambda: defaultdict(dict))
    for match in filter(None, map(KEY.fullmatch, weights)):
        layers[match["block"]][match["layer"]][match["last"]] = weights[match[0]]
    outside = layers.pop("", {})
    if table is None or table.ndim != 2 or not layers:
        return {}
    block = next(iter(layers.values()))
    final = [layer for layer in outside if LAST_NORM.fullmatch(layer)]
    found = _norms(block) | _mlp(block, table.shape[1])
    if len(final) == 1:
        found[final[0]] = "final_norm"
    return {theirs: ours for theirs, ours in found.items() if theirs != ours}


def our_keys(weights: Weights, layers: dict[str, str]) -> dict[str, str]:
    """Keys in the file -> here; a key stays as it is if another tensor has the new name."""
    new = {key: renamed(key, layers) for key in weights}
    return {key: key if name in weights else name for key, name in new.items()}


def notes_on(layers: dict[str, str], has_final_norm: bool) -> list[str]:
    """What is assumed about layers under other names than the lab's."""
    norms = [theirs for theirs, ours in layers.items() if ours.startswith("LayerNorm")]
    linear = [theirs for theirs, ours in layers.items() if ours.startswith("MLP")]
    notes = []
    if norms and not has_final_norm:
        notes.append(
            f"{', '.join(norms)}: taken as norms after attention and after the MLP (post-norm), "
            "and LN as that of the embeddings; no file tells, and such names often mean pre-norm"
        )
    if linear:
        notes.append(f"{', '.join(linear)}: taken as the MLP, with GELU")
    return notes


def _norms(layers: dict[str, Weights]) -> dict[str, str]:
    """E.g. {"ln1": "LayerNorm1", "ln2": "LayerNorm2"}; {} unless there is one of each."""
    matches = filter(None, map(NORM.fullmatch, layers))
    found = {match[0]: f"LayerNorm{match['number']}" for match in matches}
    return found if sorted(found.values()) == ["LayerNorm1", "LayerNorm2"] else {}


def _mlp(layers: dict[str, Weights], width: int) -> dict[str, str]:
    """The linear layers of an MLP, (H, D) then (D, H): {"mlp.fc1": "MLP.0", "mlp.fc2": "MLP.2"}.

    If H is D, a number at the end of the names tells. {} if the MLP contains anything else.
    """
    found = [layer for layer in layers if MLP.fullmatch(layer.split(".")[0])]
    found = found or list(filter(IN_BLOCK.fullmatch, layers))
    matrices = [(layer, layers[layer][".weight"]) for layer in found if ".weight" in layers[layer]]
    if len(found) != 2:
        return {}
    for (first, one), (second, other) in permutations(matrices, 2):
        fits = one.ndim == 2 and one.shape[1] == width and one.T.shape == other.shape
        if fits and (len(one) != width or _precedes(first, second)):
            return {first: "MLP.0", second: "MLP.2"}
    return {}


def _precedes(first: str, second: str) -> bool:
    """Whether names differ only in a number at their ends, and the first's is smaller."""
    (stem, number), (other, larger) = (
        re.fullmatch(r"(.*?)(\d*)", name).groups() for name in (first, second)
    )
    return stem == other and "" not in (number, larger) and int(number) < int(larger)
