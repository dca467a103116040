"""Rename the tensors of the networks in a lab solution's checkpoint to ours.

A file contains a tokenizer, a transformer, or both (utils/weights/lab_networks.py). Attention is
recognised by its shapes (lab_attention.py), norms and MLPs also by usual names (lab_blocks.py); all
other keys are the same in every solution.

Nothing is dropped silently: an unknown key keeps its name and fails the strict check against the
network; anything that does not belong to a network is listed in `LabFile.notes`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from config.errors import UserError
from utils.weights.description import TOKENIZER, TRANSFORMER
from utils.weights.lab_attention import from_naming
from utils.weights.lab_blocks import FINAL_NORM, notes_on, other_names, our_keys
from utils.weights.lab_extras import plain_name, refuse_parts, without_extras, without_unused
from utils.weights.lab_layouts import Weights
from utils.weights.lab_naming import UNUSED, VARIANTS, Naming, Settled, to_naming
from utils.weights.lab_networks import FIRST_WORDS, Network, choose, find_networks, titles
from utils.weights.lab_questions import ask_activation

PREFIXES = {"vqgan.": TOKENIZER, "transformer.": TRANSFORMER}  # in an exported whole model
UNSETTLED = Settled()


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
            raise UserError(f"{self.name}: holds a {', '.join(self.parts)}, but no {kind}")
        return self.parts[kind]


def read_keys(content: object, name: str, settled: Settled = UNSETTLED) -> LabFile:
    """Split the content of a file called ``name`` into networks, under our names.

    Raises `UserError` if there is no network, or more than one of a kind.
    """
    notes: list[str] = []
    networks = find_networks(content, name, settled, notes)
    parts = {}
    for kind in FIRST_WORDS:
        chosen = choose([n for n in networks if n.kind == kind], settled.entry, name, notes)
        if chosen:
            parts[kind] = _convert(chosen, name, notes, settled)
    if not parts:
        raise UserError(f"{name}: no entry {settled.entry}; found are {titles(networks)}")
    return LabFile(name, parts, notes)


def to_lab(kind: str, weights: Weights, naming: Naming) -> Weights:
    """Rename our weights of one network as a lab solution does; the inverse of `read_keys`."""
    return dict(weights) if kind == TOKENIZER else to_naming(weights, naming)


def _convert(network: Network, name: str, notes: list[str], settled: Settled) -> Part:
    """Rename and concatenate the keys of blocks, and leave out what is no parameter."""
    refuse_parts(network.weights, name)
    if network.prefix:
        notes.append(f"prefix {network.prefix} taken off {len(network.weights)} keys")
    names = {plain_name(key): network.prefix + key for key in network.weights}
    weights = {plain_name(key): value for key, value in network.weights.items()}
    if network.kind == TOKENIZER:
        return Part(TOKENIZER, VARIANTS["report"], weights, names)
    weights = without_unused(weights, settled.roles, name, notes)
    layers = other_names(weights)
    ours = our_keys(weights, layers)
    names = {ours[key]: names[key] for key in weights}
    weights = {ours[key]: value for key, value in weights.items()}
    ask_activation(layers, name, settled)
    taken = notes_on(layers, FINAL_NORM in weights)
    weights = without_extras(weights, settled, name, notes)
    names = {key: names.get(key, "zeros") for key in weights}
    roles = {layer: role for layer, role in settled.roles.items() if role != UNUSED}
    settled = replace(settled, roles=roles)
    naming, weights, names = from_naming(weights, names, name, taken, settled)
    notes += taken
    naming = replace(naming, others={own: theirs for theirs, own in layers.items()})
    return Part(TRANSFORMER, naming, weights, names, taken)
