"""Rename the tensors of the networks in a lab solution's checkpoint to ours.

A file contains a tokenizer, a transformer, or both (utils/weights/lab_networks.py). Attention is
recognised by its shapes (lab_attention.py), norms and MLPs by the lab's LayerNorm1, LayerNorm2,
MLP.0, MLP.2 or other usual names; all other keys are the same in every solution. A norm before the
head, which pre-norm networks have, is our `final_norm`.

Nothing is dropped silently: an unknown key keeps its name and fails the strict check against the
network; anything that does not belong to a network is listed in `LabFile.notes`.
Letters: D width of the transformer, H width of the MLP.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path

from config.errors import UserError
from utils.weights.description import TOKENIZER, TRANSFORMER
from utils.weights.lab_attention import from_naming
from utils.weights.lab_extras import (
    plain_name,
    plain_values,
    refuse_other_numbers,
    refuse_parts,
    without_extras,
    without_unused,
)
from utils.weights.lab_layouts import KEY, Weights, renamed
from utils.weights.lab_naming import UNUSED, VARIANTS, Naming, Settled, to_naming
from utils.weights.lab_networks import (
    FIRST_WORDS,
    LabNetwork,
    choose,
    find_networks,
    same_weights,
    titles,
)
from utils.weights.lab_questions import ask_activation, ask_heads

PREFIXES = {"vqgan.": TOKENIZER, "transformer.": TRANSFORMER}  # in an exported whole model
UNSETTLED = Settled()
ANY_NORM = "(?:ln|norm|layer_?norm)"
NORM = re.compile(rf"{ANY_NORM}_?(?P<number>[12])", re.IGNORECASE)
LAST_NORM = re.compile(rf"final_?{ANY_NORM}|{ANY_NORM}_?(?:f|final)", re.IGNORECASE)
MLP = re.compile(r"mlp|ffn?|feed_?forward", re.IGNORECASE)
IN_BLOCK = re.compile(r"(?:linear|lin|fc)_?[12]", re.IGNORECASE)  # of an MLP without its own module
FINAL_NORM = "final_norm.weight"  # our key


@dataclass(frozen=True)
class Part:
    """One network of a lab file, under our names."""

    kind: str
    """TOKENIZER or TRANSFORMER."""
    naming: Naming
    """How its attention is named; of a tokenizer always the report's."""
    weights: Weights
    sources: dict[str, str]
    """Names here -> names in the file, prefixes included; several are joined by ' + '."""
    notes: list[str] = field(default_factory=list)
    """What was taken for granted about its blocks."""

    @property
    def renamed(self) -> dict[str, str]:
        """Keys whose names differ by more than the part's prefix."""
        return {own: name for own, name in self.sources.items() if not name.endswith(own)}


@dataclass(frozen=True)
class LabFile:
    """The networks in a checkpoint."""

    name: str
    parts: dict[str, Part]
    notes: list[str] = field(default_factory=list)
    """Wrappers that were taken off and entries that were left out."""

    def part(self, kind: str) -> Part:
        """The tokenizer or the transformer; `UserError` if the file has only the other one."""
        if kind not in self.parts:
            raise UserError(f"{self.name}: contains a {', '.join(self.parts)}, but no {kind}")
        return self.parts[kind]


def read_keys(content: object, name: str, settled: Settled = UNSETTLED) -> LabFile:
    """Split the content of a file called ``name`` into networks, under our names.

    Raises `UserError` if there is no network, more than one of a kind, or a question to the user.
    """
    notes: list[str] = []
    networks = find_networks(content, name, settled, notes)
    parts = {}
    for kind in FIRST_WORDS:
        chosen = choose([n for n in networks if n.kind == kind], settled.entry, name, notes)
        if chosen:
            parts[kind] = _convert(chosen, name, notes, settled)
    if TRANSFORMER in parts:
        said = ask_heads(content, parts[TRANSFORMER].naming, name, settled)
        notes += said
        parts[TRANSFORMER].notes.extend(said)
    if not parts:
        raise UserError(f"{name}: no entry {settled.entry}; found are {titles(networks)}")
    return LabFile(name, parts, notes)


def one_of_each(
    files: list[LabFile], choice: Mapping[str, Path] | None
) -> dict[str, tuple[LabFile, Part]]:
    """Each network with a file that contains it, the chosen one if there is a choice.

    Raises `UserError` for two that differ, without a choice.
    """
    parts: dict[str, tuple[LabFile, Part]] = {}
    for file in files:
        for kind, part in file.parts.items():
            if choice and choice[kind] != Path(file.name):
                file.notes.append(f"its {kind} is left out, as that of {choice[kind]} is taken")
                continue
            first, known = parts.setdefault(kind, (file, part))
            if known is part:
                continue
            if not same_weights(known.weights, part.weights):
                raise UserError(
                    f"{file.name}: a second {kind}, after that of {first.name}; give one of them"
                )
            file.notes.append(f"its {kind} is that of {first.name}")
    return parts


def to_lab(kind: str, weights: Weights, naming: Naming) -> Weights:
    """Rename our weights of one network as a lab solution does; the inverse of `read_keys`."""
    return dict(weights) if kind == TOKENIZER else to_naming(weights, naming)


def _convert(network: LabNetwork, name: str, notes: list[str], settled: Settled) -> Part:
    """Rename and concatenate the keys of blocks, and leave out what is no parameter."""
    refuse_parts(network.weights, name)
    if network.prefix:
        notes.append(f"prefix {network.prefix} taken off {len(network.weights)} keys")
    names = {plain_name(key): network.prefix + key for key in network.weights}
    values = plain_values(network.weights, name)
    weights = {plain_name(key): value for key, value in values.items()}
    if network.kind == TOKENIZER:
        refuse_other_numbers(weights, name)
        return Part(TOKENIZER, VARIANTS["report"], weights, names)
    weights = without_unused(weights, settled.roles, name, notes)
    layers = _other_names(weights)
    ours = _our_keys(weights, layers)
    names = {ours[key]: names[key] for key in weights}
    weights = {ours[key]: value for key, value in weights.items()}
    ask_activation(layers, name, settled)
    taken = _notes_on(layers, FINAL_NORM in weights)
    weights = without_extras(weights, settled, name, notes)
    names = {key: names.get(key, "zeros") for key in weights}
    refuse_other_numbers({names[key]: value for key, value in weights.items()}, name)
    roles = {layer: role for layer, role in settled.roles.items() if role != UNUSED}
    settled = replace(settled, roles=roles)
    naming, weights, names = from_naming(weights, names, name, taken, settled)
    notes += taken
    naming = replace(naming, others={own: theirs for theirs, own in layers.items()})
    return Part(TRANSFORMER, naming, weights, names, taken)


def _other_names(weights: Weights) -> dict[str, str]:
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


def _our_keys(weights: Weights, layers: dict[str, str]) -> dict[str, str]:
    """Keys in the file -> here; a key stays as it is if another tensor has the new name."""
    new = {key: renamed(key, layers) for key in weights}
    return {key: key if name in weights else name for key, name in new.items()}


def _notes_on(layers: dict[str, str], has_final_norm: bool) -> list[str]:
    """What is assumed about layers under other names than the lab's."""
    norms = [theirs for theirs, ours in layers.items() if ours.startswith("LayerNorm")]
    linear = [theirs for theirs, ours in layers.items() if ours.startswith("MLP")]
    notes = []
    if norms and not has_final_norm:
        notes.append(
            f"{', '.join(norms)}: taken as norms after attention and after the MLP (post-norm), "
            "and LN as that of the embeddings; no file specifies it, and such names often mean "
            "pre-norm"
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
