"""Key names of a lab solution's checkpoint, and what the same tensors are called here.

A file holds a tokenizer, a transformer, or both behind the prefixes `vqgan.` and `transformer.`.
Only attention is named differently from solution to solution:

    variant   keys under blocks.i.Attention.                          here
    report    qkv.weight, proj.*                                      the same
    fused     qkv.weight, qkv.bias, proj.*                            the same, qkv_bias: true
    separate  query.*, key.*, value.* and output_layer.*              joined to qkv.*; proj.*

Nothing is dropped silently: a key that is not known keeps its name, and then fails the strict check
against the network; what is left out on purpose is told in `LabFile.notes`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from config.errors import UserError

TOKENIZER, TRANSFORMER = "tokenizer", "transformer"
PREFIXES = {"vqgan.": TOKENIZER, "transformer.": TRANSFORMER}
FIRST_WORDS = {
    TOKENIZER: {"encoder", "decoder", "codebook", "quant_conv", "post_quant_conv"},
    TRANSFORMER: {"pos_emb", "tok_emb", "bias", "blocks", "LN", "Token_Prediction"},
}
REPORT, FUSED, SEPARATE = "report", "fused", "separate"
VARIANTS = (REPORT, FUSED, SEPARATE)
QUERY_KEY_VALUE, OUTPUT = ("query", "key", "value"), "output_layer"  # names of variant separate
MASK_ID = "mask_token_tensor"  # a whole model may keep the mask's id as a buffer

WRAPPERS = ("state_dict", "model_state_dict", "model")  # entries that may hold the tensors
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and torch.compile
BESIDE_WEIGHTS = {  # entries of a training checkpoint that no network computes with
    *("epoch", "step", "global_step", "iteration", "seed", "lr", "config", "args"),
    *("loss", "best_loss", "train_loss", "val_loss"),
    *("optimizer", "optimizer_state_dict", "scaler"),
    *("scheduler", "scheduler_state_dict", "lr_scheduler"),
}
NAMES_SHOWN = 5  # offending keys in an error line

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """One network of a lab file, under the names that it has here."""

    kind: str
    """TOKENIZER or TRANSFORMER."""
    variant: str
    """How its attention is named, one of VARIANTS; of a tokenizer always REPORT."""
    weights: Weights
    sources: dict[str, str]
    """Names here -> names in the file, prefixes included; several are joined by ' + '."""

    @property
    def renamed(self) -> dict[str, str]:
        """The keys whose name differs by more than the prefix of the part."""
        return {own: name for own, name in self.sources.items() if not name.endswith(own)}


@dataclass(frozen=True)
class LabFile:
    """What a checkpoint holds."""

    name: str
    parts: dict[str, Part]
    notes: list[str] = field(default_factory=list)
    """Wrappers that were taken off and entries that were left out."""

    def part(self, kind: str) -> Part:
        """The tokenizer or the transformer; `UserError` if the file holds only the other one."""
        if kind not in self.parts:
            raise UserError(f"{self.name}: holds a {', '.join(self.parts)}, but no {kind}")
        return self.parts[kind]


def read_keys(content: object, name: str) -> LabFile:
    """Sort what a `.pt` file named ``name`` holds into networks under their names here.

    Raises `UserError` for anything but tensors, unknown entries, or keys of no known network.
    """
    notes: list[str] = []
    weights = _unwrap(content, name, notes)
    groups: dict[str, dict[str, str]] = {}  # kind -> key without prefix -> key in the file
    if any(key.startswith(tuple(PREFIXES)) for key in weights):
        _check_mask_id(weights, name, notes)
        unknown = [key for key in weights if not key.startswith(tuple(PREFIXES))]
        if unknown:
            raise _unexpected(name, unknown, f"{' and '.join(PREFIXES)} and {MASK_ID}")
        for prefix, kind in PREFIXES.items():
            keys = [key for key in weights if key.startswith(prefix)]
            if keys:
                notes.append(f"prefix {prefix} taken off {len(keys)} keys")
                groups[kind] = {key.removeprefix(prefix): key for key in keys}
    else:
        groups[_kind(weights, name)] = {key: key for key in weights}
    parts = {}
    for kind, names in groups.items():
        own = {key: weights[source] for key, source in names.items()}
        names = dict(zip(_without_wrapper_prefix(own, notes), names.values(), strict=True))
        parts[kind] = _convert(kind, {key: weights[names[key]] for key in names}, names)
    return LabFile(name, parts, notes)


def to_lab(kind: str, weights: Weights, variant: str) -> Weights:
    """Our weights of one network under the names of a lab solution; the opposite of `read_keys`.

    A variant with biases gets zeros where the network has none, which is the same function.
    Raises `UserError` where the report's variant would have to lose biases.
    """
    if kind == TOKENIZER:
        return dict(weights)
    out: Weights = {}
    for key, value in weights.items():
        head, _, last = key.rpartition(".")
        block, _, layer = head.rpartition(".")
        if not block.endswith(".Attention"):
            out[key] = value
        elif layer == "qkv":
            if last == "bias" and variant == REPORT:
                raise UserError(
                    f"{key}: the report's attention has no such biases; "
                    f"export to the variant {FUSED} or {SEPARATE}"
                )
            out |= _qkv_to_lab(f"{block}.", last, value, variant)
            if last == "weight" and f"{head}.bias" not in weights and variant != REPORT:
                out |= _qkv_to_lab(f"{block}.", "bias", value.new_zeros(len(value)), variant)
        else:
            out[f"{block}.{OUTPUT if variant == SEPARATE else layer}.{last}"] = value
    return out


def _qkv_to_lab(block: str, last: str, value: Tensor, variant: str) -> Weights:
    if variant != SEPARATE:
        return {f"{block}qkv.{last}": value}
    parts = zip(QUERY_KEY_VALUE, value.chunk(3), strict=True)
    return {f"{block}{name}.{last}": part.clone() for name, part in parts}


def _unwrap(content: object, name: str, notes: list[str]) -> Weights:
    """The dictionary of tensors inside known wrappers."""
    while isinstance(content, dict):
        wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), dict)), None)
        beside = [key for key in content if key in BESIDE_WEIGHTS]
        unknown = [str(key) for key in content if key != wrapper and key not in beside]
        if wrapper is None:
            content = {key: content[key] for key in content if key not in beside}
        elif unknown:
            raise _unexpected(name, unknown, f"'{wrapper}' and what goes with training")
        if beside:
            notes.append(f"left out, no part of a network: {', '.join(beside)}")
        if wrapper is None:
            break
        notes.append(f"taken out of '{wrapper}'")
        content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(map(_is_entry, content.items())):
        raise UserError(f"{name}: expected a dictionary of tensors")
    return dict(zip(_without_wrapper_prefix(content, notes), content.values(), strict=True))


def _is_entry(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _without_wrapper_prefix(weights: Weights, notes: list[str]) -> list[str]:
    """The keys in their order, without the prefixes that wrapped modules give to all of them."""
    keys = list(weights)
    while prefix := next((p for p in WRAPPER_PREFIXES if all(k.startswith(p) for k in keys)), None):
        notes.append(f"prefix {prefix} taken off {len(keys)} keys")
        keys = [key.removeprefix(prefix) for key in keys]
    return keys


def _check_mask_id(weights: Weights, name: str, notes: list[str]) -> None:
    """Take the buffer with the mask's id out, if it says what this network takes for granted."""
    if MASK_ID not in weights:
        return
    found = weights.pop(MASK_ID)
    table = weights.get("transformer.tok_emb.weight")
    last = None if table is None else len(table) - 1
    if found.numel() != 1 or found.item() != last:
        raise UserError(f"{name}: {MASK_ID} is {found.tolist()}; allowed is the last id, {last}")
    notes.append(f"left out: {MASK_ID}, since {last} is the mask's id here as well")


def _kind(weights: Weights, name: str) -> str:
    """Which network most keys belong to."""
    first = Counter(key.split(".")[0] for key in weights)
    counts = {kind: sum(first[word] for word in words) for kind, words in FIRST_WORDS.items()}
    kind = max(counts, key=counts.__getitem__)
    if not counts[kind]:
        raise _unexpected(name, list(weights), "a lab tokenizer, transformer or whole model")
    return kind


def _convert(kind: str, weights: Weights, names: dict[str, str]) -> Part:
    """Rename and join the keys of attention; whatever does not fit keeps its name."""
    if kind == TOKENIZER:
        return Part(kind, REPORT, weights, names)
    out, sources, variant = dict(weights), dict(names), REPORT
    for key in weights:
        match = re.fullmatch(rf"(blocks\.\d+\.Attention\.)(query|{OUTPUT})\.(weight|bias)", key)
        if not match:
            variant = FUSED if key.endswith(".Attention.qkv.bias") else variant
            continue
        block, layer, last = match.groups()
        old = [key] if layer == OUTPUT else [f"{block}{n}.{last}" for n in QUERY_KEY_VALUE]
        new = f"{block}{'proj' if layer == OUTPUT else 'qkv'}.{last}"
        if new in out or len({weights[k].shape if k in weights else None for k in old}) > 1:
            continue  # stays under a name that the strict check will name
        variant = SEPARATE
        out[new] = torch.cat([out.pop(k) for k in old])
        sources[new] = " + ".join(sources.pop(k) for k in old)
    return Part(kind, variant, out, sources)


def _unexpected(name: str, keys: list[str], known: str) -> UserError:
    shown = ", ".join(keys[:NAMES_SHOWN]) + (", ..." if len(keys) > NAMES_SHOWN else "")
    return UserError(f"{name}: {len(keys)} unexpected keys: {shown}; known are {known}")
