"""What lab files do not specify about their blocks: questions, and notes on what is assumed.

Some public solutions compute something else. They are recognised by the names of attention's
layers, but others may have the same names, so the user is asked. Nor do shapes determine the number
of heads, which a file may state among its settings.
Letters: B batch, N tokens, D width of the transformer, H heads, d = D / H.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from config.errors import UserError
from config.schema import TransformerConfig
from utils.weights.lab_layouts import LAYOUTS, ROOT_OF_WIDTH, Weights, is_bare, starred
from utils.weights.lab_naming import UNUSED, VARIANTS, Naming, Settled, layer_of

FITS = ([1, 3], [1, 1, 2], [1, 1, 1, 1])  # stacked (D, D) matrices in the layers of attention
QUERY_SOFTMAX = re.compile(r"\bself_attention_heads\.\*")  # a list in dome272's MaskGIT
DIMENSIONS_FIRST = "to_qvk"  # AI Summer's layer
ENCODER_LAYER = ("linear1", "linear2")  # the MLP of nn.TransformerEncoderLayer
NORMS = ("LN", "LayerNorm", "final_norm", "Token_Prediction.2")  # our keys begin so
FIRST = re.compile(r"(?<!\d)0$")  # qs.0, the first layer of a list
SHOWN = 4  # tensors in an error line
HEADS = re.compile(r"(?:num_|n_?)(?:attn_|attention_)?heads?|heads")
ASSUMED = TransformerConfig().num_heads  # the lab's, which nobody had to choose
MAX_DEPTH = 5  # of nested settings
BY_WIDTH = "divides scores by √D instead of √d", f"--attention {ROOT_OF_WIDTH}"
BY_HEAD = "reshapes to (B, N, H, 3 d) before it splits", "--attention rows-by-head"
MERGED = "--attention merged-heads"
SOURCES = {  # layers of attention in a block -> what the source computes, the flag that says so
    "Attention.LQ Attention.LK Attention.LV Attention.projection": BY_WIDTH,
    "Attention.queries Attention.keys Attention.values Attention.fc_out": BY_WIDTH,
    "Attention.linear_in Attention.linear_out": BY_HEAD,
    "Attention.generate_qkv Attention.output_linear": BY_HEAD,
    "Attention.attention.W_qkv Attention.linear_proj": BY_HEAD,
    "Attention.qkv_layer Attention.out_proj": (
        "merges heads (B, H, N, d) by reshape(B, N, D)",
        MERGED,
    ),
    "Attention.mul_W_Q Attention.mul_W_K Attention.mul_W_V Attention.mul_W_O": (
        "splits heads by view(B, H, N, d) and multiplies scores by √d",
        MERGED,
    ),
    "Attention.to_qkv Attention.W_o.0": ("splits q, k and v by view(3, B, H, N, d)", MERGED),
    "Attention.transfer_qkv Attention.projection": (
        "merges heads (B, H, N, d) by permute(1, 2, 0, 3)",
        MERGED,
    ),
    "Attention.wq Attention.wk Attention.wv Attention.linear_out": (
        "takes no softmax",
        "--attention no-softmax",
    ),
    "Attention.attention_list.*.q Attention.attention_list.*.k Attention.attention_list.*.v "
    "Attention.out_layer": ("takes the softmax over the queries", "--attention query-softmax"),
    "Attention.attention.W_q Attention.attention.W_k Attention.attention.W_v "
    "Attention.linear_proj": ("has one head", "--set transformer.num_heads=1"),
}


def ask(block: str, matrices: dict[str, int], name: str, settled: Settled) -> None:
    """Raise `UserError` for matrices that sources are known to use in several ways.

    matrices: key -> number of stacked matrices. --attention answers, and --map for `to_qvk`.
    """
    if settled.layout is not None:
        return
    for key, count in matrices.items():
        layer = layer_of(key)
        if is_bare(key):
            raise UserError(
                f"{name}: {block}{key} is a bare parameter; say how it is used with --attention "
                "of utils.weights.import_lab: inputs-first for x @ W, standard for x @ W.T"
            )
        if QUERY_SOFTMAX.search(key):
            raise UserError(
                f"{name}: {block}{layer}: the public solution that names its heads so takes the "
                "softmax over the queries (dim=1), which no file specifies; say with --attention "
                "of utils.weights.import_lab: standard for a softmax over the keys (dim=-1), or "
                "query-softmax, which is refused, as it gives other logits here"
            )
        is_named = layer.rpartition(".")[2].lower() == DIMENSIONS_FIRST
        if is_named and count == 3 and layer not in settled.roles:
            raise UserError(
                f"{name}: {block}{layer}: the public source that names its layer so splits the "
                "rows into (d 3 heads), in the order q, k, v; say so with --attention "
                "dimensions-first of utils.weights.import_lab, or, if the rows are whole matrices "
                f"q, v, k, --map {block}{layer}=qvk"
            )
    _ask_list(block, matrices, name, settled)
    ask_source(block, matrices, name, settled)


def _ask_list(block: str, matrices: dict[str, int], name: str, settled: Settled) -> None:
    """Raise `UserError` for a list of three layers of D rows: q, k and v, or three heads of 3 d."""
    lists: dict[str, list[str]] = defaultdict(list)
    for layer in sorted(layer_of(key) for key in matrices):
        lists[starred(layer)].append(layer)
    for layers in lists.values():
        if settled.heads == len(layers) == 3 and not settled.roles.keys() & set(layers):
            roles = ",".join(f"{block}{layer}={r}" for layer, r in zip(layers, "qkv", strict=True))
            raise UserError(
                f"{name}: {', '.join(block + layer for layer in layers)} are q, k and v, or three "
                "heads with the rows of q, k and v in each, which no file specifies; say --map "
                f"{roles} of utils.weights.import_lab, or save the heads concatenated, as one "
                "layer, for --attention rows-by-head"
            )


def ask_source(block: str, matrices: dict[str, int], name: str, settled: Settled) -> None:
    """Raise `UserError` if a block's layers are called as in one of SOURCES.

    matrices: key -> number of stacked matrices. --attention answers, and the number of heads.
    """
    layers = {layer_of(key) for key in matrices}
    for names, (computes, flag) in SOURCES.items():
        if layers != set(names.split()) or flag == f"--set transformer.num_heads={settled.heads}":
            continue
        option, _, choice = flag.partition(" ")
        is_refused = option == "--attention" and choice not in LAYOUTS
        refused = ", which is refused, as it gives other logits here," if is_refused else ""
        raise UserError(
            f"{name}: {', '.join(block + layer for layer in names.split())}: the public solution "
            f"of these names {computes}, which no file specifies; "
            f"say with utils.weights.import_lab {flag}{refused} or, if this one does not, "
            "--attention standard"
        )


def ask_activation(layers: dict[str, str], name: str, settled: Settled) -> None:
    """Raise `UserError` for an MLP named as in a layer of PyTorch that uses ReLU by default.

    layers: those of norms and MLPs in the file -> here.
    """
    if settled.layout is None and set(ENCODER_LAYER) <= layers.keys():
        raise UserError(
            f"{name}: {', '.join(ENCODER_LAYER)}: nn.TransformerEncoderLayer, which names its MLP "
            "so, uses ReLU unless its activation is given, which no file specifies; say with "
            "--attention of utils.weights.import_lab: standard for GELU, or relu, which is "
            "refused, as it gives other logits here"
        )


def ask_norms(layers: list[str], name: str, settled: Settled) -> None:
    """Raise `UserError` for norms among layers without biases, since RMSNorm has none either."""
    norms = [layer for layer in layers if layer.startswith(NORMS)]
    if norms and settled.layout is None:
        raise UserError(
            f"{name}: {', '.join(norms)}: norms without biases may be RMSNorm, which no file "
            "specifies; say with --attention of utils.weights.import_lab: standard for LayerNorm "
            "with bias=False, or rms-norm, which is refused, as it gives other logits here"
        )


def ask_heads(content: object, naming: Naming, name: str, settled: Settled) -> list[str]:
    """Notes on numbers of heads that a file states, unless one is the number used.

    Raises `UserError` if the number used is only assumed. --attention answers.
    """
    heads = naming.heads or settled.heads
    stated = dict(_stated(content, "", 0))
    if not heads or not stated or heads in stated.values():
        return []
    shown = ", ".join(f"{key} {number}" for key, number in stated.items())
    if heads != ASSUMED or naming.heads or settled.layout is not None:
        return [f"the file says {shown}; taken are {heads} heads"]
    raise UserError(
        f"{name}: the file says {shown}, but transformer.num_heads is {heads}; say --set "
        f"transformer.num_heads={next(iter(stated.values()))} or, if these are not its heads, "
        "--attention standard of utils.weights.import_lab"
    )


def _stated(content: object, path: str, depth: int) -> Iterator[tuple[str, int]]:
    """Key and value of every number of heads in dictionaries and attributes of objects."""
    settings = getattr(content, "attributes", content)
    if not isinstance(settings, dict) or depth > MAX_DEPTH:
        return
    for key, value in settings.items():
        if isinstance(key, str) and HEADS.fullmatch(key) and type(value) is int and value > 0:
            yield f"{path}{key}", value
        yield from _stated(value, f"{path}{key}.", depth + 1)


def no_attention(
    block: str, keys: Weights, fits_turned: bool, counts: list[int], width: int, name: str
) -> UserError:
    """The error for a block without attention; counts: of stacked (D, D) matrices in each layer."""
    shown = [f"{block}{key} {tuple(value.shape)}" for key, value in keys.items()]
    more = ", ..." if len(shown) > SHOWN else ""
    cure = ""
    if any(not Counter(fit) - Counter(counts) for fit in FITS):
        cure = (
            f"; --map {block}LAYER={UNUSED} of utils.weights.import_lab leaves out a layer that "
            "the forward pass does not use"
        )
    if fits_turned:
        cure += "; --attention inputs-first of utils.weights.import_lab turns them"
    return UserError(
        f"{name}: attention is not recognised among {', '.join(shown[:SHOWN])}{more}; allowed are "
        f"linear layers of 3 x {width} rows, or of {width} for each of q, k and v, and an output, "
        f"all of {width} columns{cure}"
    )


def assumed(naming: Naming) -> str:
    """What an import takes for granted about attention."""
    root = "width" if naming.layout == ROOT_OF_WIDTH else "width / heads"
    return f"scores / sqrt({root}), softmax over keys, heads split and merged per token"


def notes_on(naming: Naming, settled: Settled) -> list[str]:
    """What is assumed about attention."""
    notes = []
    output = next(key for key, rows in naming.weights.items() if rows == "o")
    if "o" not in naming.biases.values():
        layer = layer_of(output)
        notes.append(f"{layer} has no bias: zeros, which an export leaves out again")
    for key, roles in naming.weights.items():
        rows = ", ".join(roles)
        how = "" if naming.layout == "standard" else f" ({naming.layout})"
        if len(roles) == 1:
            continue
        if settled.layout is None and "*" not in key:
            notes.append(
                f"{layer_of(key)}: its rows are taken as whole matrices {rows}; import_lab "
                "--attention rows-by-head is for solutions that reshape to "
                f"(B, N, heads, {len(roles)} d) first"
            )
        elif naming not in (VARIANTS["report"], VARIANTS["fused"]):
            notes.append(f"{layer_of(key)}: its rows are taken in the order {rows}{how}")
    first = [layer_of(key) for key, rows in naming.weights.items() if rows != "o"]
    if settled.heads != 1 and all(map(FIRST.search, first)):  # nn.Sequential has such keys as well
        notes.append(f"{', '.join(first)}: if lists of one head, --set transformer.num_heads=1")
    if any("*" in key for key in naming.weights):
        heads = f"{naming.heads} head{'s' * (naming.heads != 1)}"
        notes.append(f"{heads}, counted in {layer_of(next(iter(naming.weights)))}")
    return notes
