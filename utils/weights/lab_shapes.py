"""Infer a network's description (widths, levels, layers) from the shapes of a lab file's tensors.

Shapes do not determine the number of attention heads, dropout or the kind of norm; those come from
the config. All descriptions with the same sequence of layers compute the same function. A
`KeyReport` compares the keys of the file with those of the described network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydantic import ValidationError

from config.errors import UserError
from config.schema import TokenizerConfig, TransformerConfig
from utils.weights.description import Description, network_shapes, shapes_of
from utils.weights.lab_attention import width_of
from utils.weights.lab_extras import IN_BLOCK
from utils.weights.lab_keys import FINAL_NORM, Part
from utils.weights.lab_layouts import Weights
from utils.weights.lab_networks import NAMES_SHOWN

LAB = TokenizerConfig()
LAB_ONLY = {  # what lab transformers have in common; any other value would add weights
    "norm": "post",
    "prior_dim": 0,
    "conditioning": "none",
    "conv_kernel": 0,
}


def describe(part: Part, expected: Description, name: str) -> Description:
    """The network to build for a part: ``expected`` if it fits, else inferred from the shapes.

    ``expected`` also gives what shapes do not determine. It is returned for an invalid part too, so
    that the strict check can report what is wrong. Raises `UserError` if the heads do not divide
    the width.
    """
    kind = TokenizerConfig if isinstance(expected, TokenizerConfig) else TransformerConfig
    known = kind.model_validate(expected.model_dump(include=set(kind.model_fields)))
    if part.naming.heads:  # they divide the file's width, maybe not that of the config
        found = {"num_heads": part.naming.heads, "dim": width_of(part.weights)}
        known = known.model_copy(update=found)
    if network_shapes(known) == shapes_of(part.weights):
        return known
    try:
        if isinstance(known, TokenizerConfig):
            return _tokenizer(part.weights, known)
        return _transformer(part.weights, known, name)
    except (LookupError, StopIteration, TypeError, ValueError, ValidationError):
        return known


def _transformer(weights: Weights, known: TransformerConfig, name: str) -> TransformerConfig:
    num_tokens, dim = weights["pos_emb"].shape
    vocabulary = len(weights["tok_emb.weight"])
    if "bias" in weights:  # of two that differ, it is the lab's
        num_tokens, vocabulary = weights["bias"].shape
    if dim % known.num_heads:
        raise UserError(
            f"{name}: width {dim} does not divide into {known.num_heads} heads; heads cannot be "
            "read off the weights, name transformer.dim and transformer.num_heads in the config"
        )
    mlp = next(value for key, value in weights.items() if key.endswith(".MLP.0.weight"))
    blocks = [int(match[1]) for key in weights if (match := re.match(r"blocks\.(\d+)\.", key))]
    found = {
        "dim": dim,
        "num_tokens": num_tokens,
        "codebook_size": vocabulary - 1,
        "num_layers": 1 + max(blocks),
        "mlp_dim": len(mlp),
        "qkv_bias": any(key.endswith(".Attention.qkv.bias") for key in weights),
    }
    pre = {"norm": "pre"} if known.norm == "pre" and FINAL_NORM in weights else {}
    return TransformerConfig.model_validate(known.model_dump() | found | LAB_ONLY | pre)


def not_followed(description: Description, expected: Description) -> list[str]:
    """A note on settings of ``expected`` that would need weights which the file does not have."""
    if isinstance(description, TokenizerConfig):
        return []
    wanted = {key: getattr(expected, key) for key in LAB_ONLY}
    other = [
        f"transformer.{key}={value}"
        for key, value in wanted.items()
        if value != getattr(description, key)
    ]
    return [f"not followed, as the file has no weights for it: {', '.join(other)}"] if other else []


@dataclass(frozen=True)
class Layer:
    """One numbered layer of an encoder or decoder."""

    letter: str
    """C convolution, R residual block, A attention, S change of resolution, N normalisation."""
    width: int
    """Output channels."""
    kernel: int
    """Kernel size of its convolutions."""


LETTERS = {  # letter: prefix of its tensors, tensors whose first axis is its width
    "R": ("block.", ("block.5.weight", "block.2.weight")),
    "A": ("norm.", ("proj_out.weight", "q.weight")),
    "S": ("conv.", ("conv.weight",)),
    "N": ("gn.", ("gn.weight", "gn.bias")),
    "C": ("", ("weight", "bias")),
}


def _layer(tensors: Weights) -> Layer:
    """Recognise a layer by the names of its tensors."""
    starts = {letter: start for letter, (start, _) in LETTERS.items()}
    letter = next(k for k, start in starts.items() if any(t.startswith(start) for t in tensors))
    weight = next(tensors[key] for key in LETTERS[letter][1] if key in tensors)
    return Layer(letter, len(weight), weight.shape[-1])


def _layers(weights: Weights, half: str, pattern: str) -> tuple[list[Layer], list[Layer]]:
    """All layers of one half, and those of its levels; `ValueError` unless the pattern matches."""
    numbered: dict[int, Weights] = {}
    for key, value in weights.items():
        if match := re.fullmatch(rf"{half}\.model\.(\d+)\.(.+)", key):
            numbered.setdefault(int(match[1]), {})[match[2]] = value
    layers = [_layer(numbered[number]) for number in sorted(numbered)]
    match = re.fullmatch(pattern, "".join(layer.letter for layer in layers))
    if not match:
        raise ValueError(half)
    return layers, layers[slice(*match.span("levels"))]


def _levels(layers: list[Layer], blocks: int) -> list[list[Layer]] | None:
    """Split layers into levels of ``blocks`` equal residual blocks, or None if impossible."""
    levels: list[list[Layer]] = [[]]
    for layer in layers:
        full = len(levels[-1]) == blocks
        if layer.letter == "S":
            if not full:
                return None
            levels[-1].append(layer)
        elif len(levels[-1]) >= blocks:
            levels.append([layer])
        else:
            levels[-1].append(layer)
    equal = all(len({(r.width, r.kernel) for r in level[:blocks]}) == 1 for level in levels)
    return levels if equal and all(len(level) >= blocks for level in levels) else None


def _tokenizer(weights: Weights, known: TokenizerConfig) -> TokenizerConfig:
    encoder, down = _layers(weights, "encoder", r"C(?P<levels>[RS]*)RA?RNC")
    decoder, up = _layers(weights, "decoder", r"CRA?R(?P<levels>(RA?|S)*)NC")
    up = [layer for layer in up if layer.letter != "A"]
    choices = (known.encoder_blocks, LAB.encoder_blocks, 1)
    encoder_blocks = next(n for n in choices if _levels(down, n))
    choices = (known.decoder_blocks, LAB.decoder_blocks, 1)
    decoder_blocks = next(n for n in choices if _levels(up, n))
    down_levels, up_levels = _levels(down, encoder_blocks), _levels(up, decoder_blocks)
    assert down_levels
    assert up_levels
    outward = list(reversed(up_levels))  # from the image to the token grid
    halvings = [i for i, level in enumerate(down_levels) if level[-1].letter == "S"]
    found = {
        "encoder_channels": [encoder[0].width, *(level[0].width for level in down_levels)],
        "encoder_kernels": [level[0].kernel for level in down_levels],
        "encoder_blocks": encoder_blocks,
        "downsample_after": halvings,
        "downsample_kernel": down_levels[halvings[0]][-1].kernel,
        "encoder_attention": any(layer.letter == "A" for layer in encoder),
        "decoder_channels": [level[0].width for level in outward],
        "decoder_blocks": decoder_blocks,
        "upsample_after": [i for i, level in enumerate(outward) if level[-1].letter == "S"][::-1],
        "decoder_attention": any(layer.letter == "A" for layer in decoder),
        "latent_dim": weights["codebook.embedding.weight"].shape[1],
        "codebook_size": len(weights["codebook.embedding.weight"]),
    }
    return TokenizerConfig.model_validate(found)  # norms and codes as in the lab


@dataclass(frozen=True)
class KeyReport:
    """How every key of one network was matched."""

    matched: list[str]
    renamed: dict[str, str]
    """Name here -> name in the file."""
    missing: list[str]
    unexpected: list[str]
    shapes: dict[str, str]
    """Keys of another shape, with the found and the needed one."""

    def problems(self) -> str:
        """Why the file does not fit the network, on one line; empty if it does."""
        groups = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": [f"{key} {text}" for key, text in self.shapes.items()],
        }
        return "; ".join(
            f"{len(names)} keys {what}: {', '.join(names[:NAMES_SHOWN])}"
            + (", ..." if len(names) > NAMES_SHOWN else "")
            for what, names in groups.items()
            if names
        )

    def lines(self) -> list[str]:
        """One line per key, by group."""
        return [
            *(f"matched     {key}" for key in self.matched),
            *(f"renamed     {old} -> {new}" for new, old in self.renamed.items()),
            *(f"missing     {key}" for key in self.missing),
            *(f"unexpected  {key}" for key in self.unexpected),
            *(f"shape       {key}: {text}" for key, text in self.shapes.items()),
        ]


def key_report(part: Part, description: TokenizerConfig | TransformerConfig) -> KeyReport:
    """Compare the keys of a part with those of the network to be loaded."""
    needed, found = network_shapes(description), shapes_of(part.weights)
    both = [key for key in needed if key in found]
    fits = [key for key in both if needed[key] == found[key]]
    return KeyReport(
        matched=[key for key in fits if key not in part.renamed],
        renamed={key: part.renamed[key] for key in fits if key in part.renamed},
        missing=[key for key in needed if key not in found],
        unexpected=[part.sources[key] for key in found if key not in needed],
        shapes={k: f"{found[k]}, needed {needed[k]}" for k in both if needed[k] != found[k]},
    )


def cure(part: Part, description: TokenizerConfig | TransformerConfig) -> str:
    """What to do about keys that do not fit, to append to the problem."""
    if isinstance(description, TokenizerConfig):
        return ""
    if FINAL_NORM in part.weights and description.norm == "post":
        return (
            f"; {part.sources[FINAL_NORM]} is a norm before the head, as pre-norm networks have: "
            "if this is one, --set transformer.norm=pre"
        )
    needed, found = network_shapes(description), shapes_of(part.weights)
    wrong = [key for key in needed.keys() | found if needed.get(key) != found.get(key)]
    is_outside = not all(map(IN_BLOCK.match, wrong))
    return "; outside attention, keys must be the lab's" if is_outside else ""
