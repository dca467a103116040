"""Find the dictionaries of tensors in a checkpoint, and which networks of the lab they contain.

They may be under any key, with any prefix, next to each other on one level or among other modules.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from config.errors import UserError
from utils.weights.description import TOKENIZER, TRANSFORMER
from utils.weights.lab_extras import without_mask_id
from utils.weights.lab_layouts import Weights
from utils.weights.lab_naming import Settled

FIRST_WORDS = {
    TOKENIZER: {"encoder", "decoder", "codebook", "quant_conv", "post_quant_conv"},
    TRANSFORMER: {"pos_emb", "tok_emb", "bias", "blocks", "LN", "Token_Prediction"},
}
KNOWN_WORDS = set().union(*FIRST_WORDS.values()) - {"bias"}  # which any network has
OWN_WORDS = KNOWN_WORDS - {"encoder", "decoder", "blocks"}  # which a ViT or EfficientNet has too
LOSSES = {"loss", "criterion", "discriminator", "lpips", "perceptual_loss"}  # modules of training
MAX_DEPTH = 5  # of nested dictionaries
NAMES_SHOWN = 5  # offending keys in an error line
NEXT_TO = "a lab's networks; --entry{} of utils.weights.import_lab leaves out what is next to one"


class NothingFoundError(UserError):
    """A file without a known network."""


class UnknownKeysError(NothingFoundError):
    """A file of tensors that are those of no known network."""


class NotOpenedError(NothingFoundError):
    """A program, or objects that are not opened, with no known network next to them."""


@dataclass(frozen=True)
class LabNetwork:
    """Tensors of one network, under the file's names."""

    entry: str
    """Keys and prefixes around it, joined by dots; empty for the file itself."""
    kind: str
    weights: Weights
    prefix: str

    @property
    def title(self) -> str:
        """What --entry calls it: the entry, or its kind if it is the file itself."""
        return self.entry or self.kind


def find_networks(
    content: object, name: str, settled: Settled, notes: list[str]
) -> list[LabNetwork]:
    """The networks in the content of a file called ``name``; raises `UserError` if there is none.

    Adds notes on everything else.
    """
    networks = [
        network
        for path, weights in _dictionaries(content, "", notes, 0)
        for network in _networks(weights, path, name, notes, settled)
    ]
    if not networks:
        raise _nothing_found(content, name)
    return networks


def choose(
    networks: list[LabNetwork], entry: str | None, name: str, notes: list[str]
) -> LabNetwork | None:
    """The one network of a kind to use, or None; raises `UserError` if ambiguous."""
    if len(networks) > 1 and entry is not None:
        networks = [n for n in networks if entry in (n.title, *n.title.split("."))]
    if len(networks) > 1 and all(
        same_weights(networks[0].weights, other.weights) for other in networks[1:]
    ):
        notes.append(f"equal {networks[0].kind}s count as one: {titles(networks)}")
        networks = networks[:1]
    if len(networks) > 1:
        raise UserError(
            f"{name}: contains {len(networks)} {networks[0].kind}s: {titles(networks)}; "
            "choose one with --entry of utils.weights.import_lab"
        )
    if networks and entry:
        notes.append(f"--entry {entry}: the {networks[0].kind} of '{networks[0].title}' is taken")
    return networks[0] if networks else None


def same_weights(one: Weights, other: Weights) -> bool:
    """Whether two networks have the same tensors under the same names."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def titles(networks: list[LabNetwork]) -> str:
    """What --entry calls some networks."""
    return ", ".join(network.title for network in networks)


def _dictionaries(
    content: object, path: str, notes: list[str], depth: int
) -> Iterator[tuple[str, Weights]]:
    """Every dictionary with a network's keys, and its path; notes everything else."""
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if not isinstance(content, dict) or depth > MAX_DEPTH:
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    is_network = bool(OWN_WORDS & _words(tensors))
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
) -> Iterator[LabNetwork]:
    """Strip prefixes until the keys are those of one network, or of several side by side."""
    groups: dict[str, Weights] = {"": weights}
    while groups:
        prefix, keys = groups.popitem()
        entry = ".".join(text for text in (path, prefix.rstrip(".")) if text)
        level = _on_level(keys, entry, prefix)
        yield from level
        if not level and not prefix:
            keys = without_mask_id(keys, name, notes)
        own = set().union(*(network.weights for network in level))
        below = _by_first_word({key: value for key, value in keys.items() if key not in own})
        for word, inner in below.items():
            names = [prefix + key for key in keys if key.split(".")[0] == word]
            if all(
                value.numel() == 1 and not value.is_floating_point() for value in inner.values()
            ):
                notes.append(f"left out, a counter: {', '.join(names)}")
            elif KNOWN_WORDS & _words(inner):
                groups[f"{prefix}{word}."] = inner
            elif settled.entry is None:
                known = NEXT_TO.format(f" {level[-1].title}" if level else "")
                raise UserError(_unexpected(name, names, known))
            else:
                notes.append(f"left out, not in an entry: {', '.join(names)}")


def _on_level(keys: Weights, entry: str, prefix: str) -> list[LabNetwork]:
    """The networks whose parts are the first words of the keys, at most one of each kind.

    Whatever is neither another network below these keys nor a loss belongs to the larger one.
    """
    counts = _counts(keys)
    kind = max(counts, key=counts.__getitem__)
    if not counts[kind]:
        return []
    networks = []
    others = {
        word
        for word, inner in _by_first_word(keys).items()
        if word not in FIRST_WORDS[kind]
        and (word.lower() in LOSSES or len(KNOWN_WORDS & _words(inner)) > 1)
    }
    for other in (other for other, count in counts.items() if other != kind and count > 1):
        own = {key: value for key, value in keys.items() if key.split(".")[0] in FIRST_WORDS[other]}
        networks.append(LabNetwork(entry, other, own, prefix))
        others |= FIRST_WORDS[other]
    rest = {key: value for key, value in keys.items() if key.split(".")[0] not in others}
    return [*networks, LabNetwork(entry, kind, rest, prefix)]


def _by_first_word(keys: Weights) -> dict[str, Weights]:
    """First word of the keys -> the tensors below it."""
    below: dict[str, Weights] = defaultdict(dict)
    for key, value in keys.items():
        word = key.split(".")[0]
        below[word][key.removeprefix(f"{word}.")] = value
    return below


def _words(keys: Weights) -> set[str]:
    return {word for key in keys for word in key.split(".")}


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


def _nothing_found(content: object, name: str) -> NothingFoundError:
    """The error that says what the file contains instead of a network."""
    tensors = isinstance(content, dict) and [
        key for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)
    ]
    if not tensors:
        return NothingFoundError(
            f"{name}: expected a dictionary of tensors with their names; "
            "torch.save(model.state_dict(), 'transformer.pt') makes one"
        )
    known = "a lab tokenizer, transformer or whole model"
    return UnknownKeysError(_unexpected(name, tensors, known))


def _unexpected(name: str, keys: list[str], known: str) -> str:
    shown = ", ".join(keys[:NAMES_SHOWN]) + (", ..." if len(keys) > NAMES_SHOWN else "")
    return f"{name}: {len(keys)} unexpected keys: {shown}; known are {known}"
