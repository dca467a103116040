"""Public solutions that compute something else, recognised by the names of attention's layers.

Other solutions may have the same names, and no file tells, so the user is asked.
Letters: B batch, N tokens, D width, H heads, d = D / H.
"""

from __future__ import annotations

from config.errors import UserError
from utils.weights.lab_layouts import LAYOUTS, ROOT_OF_WIDTH
from utils.weights.lab_naming import Settled, layer_of

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
            f"of these names {computes}, which no file tells; say with utils.weights.import_lab "
            f"{flag}{refused} or, if this one does not, --attention standard"
        )
