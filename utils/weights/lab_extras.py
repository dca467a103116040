"""What a lab solution stores besides its parameters, and parameters of shapes that broadcast.

Only tensors that provably do not change the logits are left out; each with a note. Biases that a
solution does not have become zeros.
"""

from __future__ import annotations

import re
from math import isclose

import torch
from torch import Tensor

from config.errors import UserError
from utils.weights.lab_layouts import ROOT_OF_WIDTH, Weights
from utils.weights.lab_naming import UNUSED, Roles, Settled, layer_of
from utils.weights.lab_questions import ask_norms

IN_BLOCK = re.compile(r"blocks\.\d+\.(?!LayerNorm|MLP)")
TOLERANCE = 2e-3  # relative, of a factor in half precision
WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
BIASED = re.compile(
    r"(?P<block>(?:blocks\.\d+\.)?)(?P<layer>LayerNorm[12]|MLP\.[02]|LN|final_norm|"
    r"Token_Prediction\.[02])\.(?P<last>weight|bias)"
)
PARTS = {  # keys of weights that are computed from several tensors: how to save them whole
    r"\.parametrizations\.|\.weight_(g|v|orig|u)$": "torch.nn.utils.parametrize."
    "remove_parametrizations, or remove_weight_norm",
    r"\.zero_point$": "undoing the quantisation, in float32",
}


def plain_name(key: str) -> str:
    """A key without the parts that torch.compile, nn.Embedding and nn.TransformerEncoder insert."""
    own = ".".join(word for word in key.split(".") if word not in WRAPPERS)
    own = re.sub(r"^blocks\.layers\.", "blocks.", own)
    return "pos_emb" if own == "pos_emb.weight" else own


def refuse_parts(weights: Weights, name: str) -> None:
    """Raise `UserError` if weights are stored in parts, such as by weight norm."""
    for pattern, cure in PARTS.items():
        if found := next(filter(re.compile(pattern).search, weights), None):
            raise UserError(f"{name}: {found} is only a part of a weight; save again after {cure}")


def plain_values(weights: Weights, name: str) -> Weights:
    """The tensors, with floats of 8 bits as float32; raises `UserError` for any that is not dense.

    PyTorch neither joins nor compares floats of 8 bits.
    """
    for key, value in weights.items():
        if value.layout != torch.strided or value.is_meta:
            raise UserError(
                f"{name}: {key} is a {value.layout} tensor on {value.device}; allowed are dense "
                "tensors with values"
            )
    short = {k for k, value in weights.items() if value.is_floating_point() and value.itemsize == 1}
    return {key: value.float() if key in short else value for key, value in weights.items()}


def refuse_other_numbers(weights: Weights, name: str) -> None:
    """Raise `UserError` for parameters of whole or complex numbers, such as quantised ones."""
    for key, value in weights.items():
        is_known = value.is_floating_point() or value.dtype == torch.bool  # a mask's, refused later
        if value.numel() > 1 and not is_known:
            raise UserError(
                f"{name}: {key} has values of {value.dtype}; allowed are floating-point numbers"
            )


def without_unused(weights: Weights, roles: Roles, name: str, notes: list[str]) -> Weights:
    """Drop layers that --map calls unused, in every block; raises `UserError` if none has one."""
    unused = {layer for layer, role in roles.items() if role == UNUSED}
    layers = {key: layer_of(re.sub(r"^blocks\.\d+\.", "", key)) for key in weights}
    if missing := unused.difference(layers.values()):
        raise UserError(f"{name}: --map names {', '.join(sorted(missing))}, which no block has")
    if unused:
        shown = ", ".join(sorted(unused))
        notes.append(f"left out, also of exports, as --map calls it unused: {shown}")
    return {key: value for key, value in weights.items() if layers[key] not in unused}


def without_mask_id(weights: Weights, name: str, notes: list[str]) -> Weights:
    """Drop the buffer with the mask token's id if it is the last id, as ours is."""
    outside = {k: v for k, v in weights.items() if not (IN_BLOCK.search(k) or v.is_meta)}
    single = (key for key, value in outside.items() if value.numel() == 1)
    key = next((key for key in single if "mask" in key.split(".")[-1]), None)
    if key is None:
        return weights
    table = next((w for k, w in weights.items() if k.endswith("tok_emb.weight") and w.ndim), None)
    found, last = weights[key], None if table is None else len(table) - 1
    if found.item() != last:
        raise UserError(f"{name}: {key} is {found.tolist()}; allowed is the last id, {last}")
    notes.append(f"left out: {key}, since {last} is the mask's id here as well")
    return {k: value for k, value in weights.items() if k != key}


def without_extras(weights: Weights, settled: Settled, name: str, notes: list[str]) -> Weights:
    """A transformer's parameters, with the position's axes and biases as ours.

    Raises `UserError` for a factor of attention that other numbers of heads would need.
    """
    weights = without_mask_id(weights, name, notes)
    table = weights.get("tok_emb.weight")
    kept: Weights = {}
    left_out: dict[str, list[str]] = {}
    heads = 1 if settled.layout == ROOT_OF_WIDTH else settled.heads  # of the factor, 0 if unknown
    for key, value in weights.items():
        if reason := _reason(key, value, table) or _factor(key, value, weights, heads, name):
            left_out.setdefault(reason, []).append(key)
        else:
            kept[key] = value
    notes += [f"left out, {reason}: {', '.join(keys)}" for reason, keys in left_out.items()]
    kept |= _zeros(kept, name, notes, settled)
    return kept | _broadcast(kept)


def _zeros(weights: Weights, name: str, notes: list[str], settled: Settled) -> Weights:
    """Zeros for biases outside attention that no block has: `bias=False`, or a head without."""
    layers = [match for match in map(BIASED.fullmatch, weights) if match]
    biased = {match["layer"] for match in layers if match["last"] == "bias"}
    found: Weights = {}
    names = []
    for match in layers:
        value = weights[match[0]]
        if match["layer"] not in biased and value.ndim:
            found[f"{match['block']}{match['layer']}.bias"] = value.new_zeros(len(value))
            names.append(match["layer"])
    names = list(dict.fromkeys(names))  # each layer once, not of each block
    ask_norms(names, name, settled)
    table = weights.get("tok_emb.weight")
    if table is not None and "pos_emb" in weights and "bias" not in weights:
        found["bias"] = table.new_zeros(())
        names.append("the head")
    if found:
        notes.append(f"{', '.join(names)}: no bias: zeros, which an export contains")
    return found


def _reason(key: str, value: Tensor, table: Tensor | None) -> str | None:
    """Why a tensor does not matter, or None."""
    whole = not value.is_floating_point()
    if whole and value.numel() > 1 and value.flatten().equal(torch.arange(value.numel())):
        return "numbers of the positions"
    if IN_BLOCK.match(key) and "mask" in key.split(".")[-1] and value.ndim > 1 and value.all():
        return "a mask that hides nothing" if len(value.unique()) == 1 else None
    if key != "tok_emb.weight" and table is not None and value.shape == table.shape:
        return "equal to tok_emb.weight" if value.equal(table) else None
    return None


def _factor(key: str, value: Tensor, weights: Weights, heads: int, name: str) -> str | None:
    """A reason if a number within attention is the usual factor of its scores; None if no number.

    That is the root of a head's width or its inverse; the forward pass tells which is meant.
    """
    is_number = IN_BLOCK.match(key) and value.is_floating_point() and value.numel() == 1
    is_mask = "mask" in key.split(".")[-1]  # a score of what is hidden, such as masked_bias
    table = weights.get("tok_emb.weight")
    if not is_number or is_mask or not heads or table is None or table.ndim != 2:
        return None
    found, width = value.item(), table.shape[1]
    allowed = [(width / heads) ** power for power in (-0.5, 0.5)]
    if any(isclose(found, usual, rel_tol=TOLERANCE) for usual in allowed):
        return "the factor of the scores, as here"
    meant = width * min(found, 1 / found) ** 2 if found > 0 else 0
    is_divisor = 0 < round(meant) < width and width % round(meant) == 0  # width itself: a 1.0
    fits = is_divisor and abs(meant - round(meant)) < 0.05
    cure = f"; of {round(meant)} heads it is: --set transformer.num_heads={round(meant)}"
    if round(meant) == 1:
        cure += f", or, of several, --attention {ROOT_OF_WIDTH} of utils.weights.import_lab"
    usual = " or ".join(f"{number:.4g}" for number in allowed)
    raise UserError(
        f"{name}: {key} is {found:.4g}; allowed is the factor of the scores of {heads} heads, "
        f"{usual}{cure if fits else ''}"
    )


def _broadcast(weights: Weights) -> Weights:
    """pos_emb as (N, D) and bias as (N, K + 1), from any shape that broadcasts to it."""
    found: Weights = {}
    position, table = weights.get("pos_emb"), weights.get("tok_emb.weight")
    if position is None or table is None or not position.ndim or not table.ndim:
        return found
    if position.ndim == 3 and len(position) == 1:  # (1, N, D)
        found["pos_emb"] = position[0]
    shape = len(found.get("pos_emb", position)), len(table)
    bias = weights.get("bias")
    if bias is not None:
        rows = bias[0] if bias.ndim == 3 and len(bias) == 1 else bias
        sizes = (1, 1, *rows.shape)[-2:]
        fits = all(size in (1, own) for size, own in zip(sizes, shape, strict=True))
        found["bias"] = rows.expand(shape).clone() if rows.ndim < 3 and fits else rows
    return found
