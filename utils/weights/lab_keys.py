"""Find the networks in a lab solution's checkpoint and rename their tensors to ours.

A file contains one or more dictionaries of tensors, under any key and with any prefix. Each is a
tokenizer, a transformer, or both. Attention is recognised by its shapes
(utils/weights/lab_attention.py); all other keys are the same in every solution.

Nothing is dropped silently: an unknown key keeps its name and fails the strict check against the
network; anything that does not belong to a network is listed in `LabFile.notes`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from config.errors import UserError
from utils.weights.description import TOKENIZER, TRANSFORMER
from utils.weights.lab_attention import from_naming
from utils.weights.lab_extras import plain_name, refuse_parts, without_extras, without_mask_id
from utils.weights.lab_layouts import Weights
from utils.weights.lab_naming import VARIANTS, Naming, Settled, to_naming

PREFIXES = {"vqgan.": TOKENIZER, "transformer.": TRANSFORMER}  # in an exported whole model
FIRST_WORDS = {
    TOKENIZER: {"encoder", "decoder", "codebook", "quant_conv", "post_quant_conv"},
    TRANSFORMER: {"pos_emb", "tok_emb", "bias", "blocks", "LN", "Token_Prediction"},
}
KNOWN_WORDS = set().union(*FIRST_WORDS.values()) - {"bias"}  # which any network has
MAX_DEPTH = 5  # of nested dictionaries
UNSETTLED = Settled()
NAMES_SHOWN = 5  # offending keys in an error line
BESIDE = "a lab's networks; --entry of utils.weights.import_lab leaves out what is beside one"


class NothingFoundError(UserError):
    """A file without a known network."""


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
    """What was taken for granted about its attention."""

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


@dataclass(frozen=True)
class _Network:
    """Tensors of one network, under the file's names."""

    entry: str
    """Keys and prefixes around it, joined by dots; empty for the file itself."""
    kind: str
    weights: Weights
    prefix: str


def read_keys(content: object, name: str, settled: Settled = UNSETTLED) -> LabFile:
    """Split the content of a file called ``name`` into networks, under our names.

    Raises `UserError` if there is no network, or more than one of a kind.
    """
    notes: list[str] = []
    networks = [
        network
        for path, weights in _dictionaries(content, "", notes, 0)
        for network in _networks(weights, path, name, notes, settled)
    ]
    if not networks:
        raise _nothing_found(content, name)
    parts = {}
    for kind in FIRST_WORDS:
        chosen = _choose([n for n in networks if n.kind == kind], settled.entry, name, notes)
        if chosen:
            parts[kind] = _convert(chosen, name, notes, settled)
    if not parts:
        raise UserError(f"{name}: no entry {settled.entry}; found are {_entries(networks)}")
    return LabFile(name, parts, notes)


def to_lab(kind: str, weights: Weights, naming: Naming) -> Weights:
    """Rename our weights of one network as a lab solution does; the inverse of `read_keys`."""
    return dict(weights) if kind == TOKENIZER else to_naming(weights, naming)


def _dictionaries(
    content: object, path: str, notes: list[str], depth: int
) -> Iterator[tuple[str, Weights]]:
    """Every dictionary with a network's keys, and its path; notes everything else."""
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if not isinstance(content, dict) or depth > MAX_DEPTH:
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    is_network = any(KNOWN_WORDS & set(key.split(".")) for key in tensors)
    if is_network:
        if path:
            notes.append(f"taken out of '{path}'")
        yield path, tensors
    left_out = [] if is_network else [*tensors]
    for key, value in content.items():
        if isinstance(value, Tensor):
            continue
        inner = list(_dictionaries(value, f"{path}.{key}".lstrip("."), notes, depth + 1))
        yield from inner
        if not inner:
            left_out.append(str(key))
    if left_out and depth == 0:
        notes.append(f"left out, no part of a network: {', '.join(left_out)}")


def _networks(
    weights: Weights, path: str, name: str, notes: list[str], settled: Settled
) -> Iterator[_Network]:
    """Strip prefixes until the keys are those of one network, or of several side by side."""
    groups: dict[str, Weights] = {"": weights}
    while groups:
        prefix, keys = groups.popitem()
        counts = _counts(keys)
        kind = max(counts, key=counts.__getitem__)
        if counts[kind]:
            yield _Network(_joined(path, prefix), kind, keys, prefix)
            continue
        if not prefix:
            keys = without_mask_id(keys, name, notes)
        for word in {key.split(".")[0] for key in keys}:
            below = {k: v for k, v in keys.items() if k.split(".")[0] == word}
            inner = {k.removeprefix(f"{word}."): v for k, v in below.items()}
            if all(
                value.numel() == 1 and not value.is_floating_point() for value in inner.values()
            ):
                notes.append(f"left out, a counter: {', '.join(prefix + key for key in below)}")
                continue
            if not any(KNOWN_WORDS & set(key.split(".")) for key in inner):
                if settled.entry is None:
                    raise _unexpected(name, [prefix + key for key in below], BESIDE)
                notes.append(
                    f"left out, not in an entry: {', '.join(prefix + key for key in below)}"
                )
                continue
            groups[f"{prefix}{word}."] = inner


def _counts(keys: Weights) -> dict[str, int]:
    """How many first words of the keys each kind of network knows.

    A word does not count if it is only the name of a network: `encoder` before `encoder.pos_emb`.
    """
    below: dict[str, set[str]] = defaultdict(set)
    for word, *more in (key.split(".") for key in keys):
        below[word] |= {*more[:1]}
    known = FIRST_WORDS.items()
    words = {w for w, inner in below.items() if all(len(inner & first) < 2 for _, first in known)}
    return {kind: len(words & first) for kind, first in known}


def _joined(path: str, prefix: str) -> str:
    return ".".join(text for text in (path, prefix.rstrip(".")) if text)


def _choose(
    networks: list[_Network], entry: str | None, name: str, notes: list[str]
) -> _Network | None:
    """The one network of a kind to use, or None; raises `UserError` if ambiguous."""
    if len(networks) > 1 and entry is not None:
        networks = [n for n in networks if entry in (n.entry, *n.entry.split("."))]
    if len(networks) > 1:
        raise UserError(
            f"{name}: holds {len(networks)} {networks[0].kind}s: {_entries(networks)}; "
            "choose one with --entry of utils.weights.import_lab"
        )
    if networks and entry:
        notes.append(f"--entry {entry}: the {networks[0].kind} of '{networks[0].entry}' is taken")
    return networks[0] if networks else None


def _entries(networks: list[_Network]) -> str:
    return ", ".join(network.entry or "the file itself" for network in networks)


def _convert(network: _Network, name: str, notes: list[str], settled: Settled) -> Part:
    """Rename and concatenate the attention keys."""
    refuse_parts(network.weights, name)
    if network.prefix:
        notes.append(f"prefix {network.prefix} taken off {len(network.weights)} keys")
    names = {plain_name(key): network.prefix + key for key in network.weights}
    weights = {plain_name(key): value for key, value in network.weights.items()}
    if network.kind == TOKENIZER:
        return Part(TOKENIZER, VARIANTS["report"], weights, names)
    weights = without_extras(weights, settled.heads, name, notes)
    names = {key: names[key] for key in weights}
    taken: list[str] = []
    part = Part(TRANSFORMER, *from_naming(weights, names, name, taken, settled), taken)
    notes += taken
    return part


def _nothing_found(content: object, name: str) -> UserError:
    """The error that says what the file contains instead of a network."""
    tensors = isinstance(content, dict) and [
        key for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)
    ]
    if not tensors:
        return NothingFoundError(
            f"{name}: expected a dictionary of tensors with their names; "
            "torch.save(model.state_dict(), 'transformer.pt') makes one"
        )
    return _unexpected(name, tensors, "a lab tokenizer, transformer or whole model")


def _unexpected(name: str, keys: list[str], known: str) -> UserError:
    shown = ", ".join(keys[:NAMES_SHOWN]) + (", ..." if len(keys) > NAMES_SHOWN else "")
    return UserError(f"{name}: {len(keys)} unexpected keys: {shown}; known are {known}")
