"""Attention three ways: PyTorch's kernel, the formula written out, and `fused` on a CPU.

    python -m bench.attention [--quick] [--presets lab cats64]

All use the same q, k and v and the preset's dropout, and run in turns; each time is the best over
the turns. `repair` is a forward pass, `train` forward and backward, kept the memory saved for
backward. On a GPU, and in fp32 without dropout, `fused` is the kernel.
Last line, JSON: {"lab": {"train_bf16": {"kernel_ms", "plain_ms", "here_ms", "times_as_fast"}, ...,
"kept_mib": {...}}, "cats64": {...}}; milliseconds and MiB are per image and layer, times_as_fast
is the kernel's time over ours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor

from bench import common
from bench.common import DTYPES, MIB, Figures
from config.schema import TransformerConfig
from models.attention import MultiHeadSelfAttention
from models.cpu_kernels import split_heads
from utils.cli import keep_freed_memory
from utils.device import pick_device

BATCH = {"lab": 8, "cats64": 32}
TURNS, QUICK_TURNS = 30, 2  # the first warms up
Attend = Callable[[Tensor], Tensor]


def main() -> None:
    keep_freed_memory()
    parser = common.parser_of(__doc__, has_presets=True)
    args = parser.parse_args()
    if pick_device("auto").type != "cpu":
        parser.error("on a GPU attention: fused is PyTorch's kernel; nothing to compare")
    turns = QUICK_TURNS if args.quick else TURNS
    result = {preset: preset_result(preset, turns) for preset in args.presets}
    common.report("attention", result, {"turns": turns}, args.quick)


def preset_result(preset: str, turns: int) -> dict[str, Figures]:
    """All figures of one size."""
    network = common.preset(preset).transformer
    torch.manual_seed(0)
    random, cells = torch.randn(BATCH[preset], network.num_tokens, 3 * network.dim), {}
    for (name, dtype), kind in product(DTYPES.items(), ("repair", "train")):
        trains = kind == "train"
        qkv = random.to(dtype, copy=True).requires_grad_(trains)
        calls = {
            way: partial(common.mean_seconds, partial(once, attend, qkv, trains), 1)
            for way, attend in ways(network, trains).items()
        }
        found = common.in_turns(calls, turns)
        best = {way: min(times[1:]) / len(qkv) * 1e3 for way, times in found.items()}
        cell = {f"{way}_ms": round(ms, 4) for way, ms in best.items()}
        cells[f"{kind}_{name}"] = cell | {"times_as_fast": round(best["kernel"] / best["here"], 2)}
    qkv = random.to(torch.bfloat16).requires_grad_()
    kept = {way: kept_mib(attend, qkv) for way, attend in ways(network, trains=True).items()}
    return cells | {"kept_mib": kept}


def ways(network: TransformerConfig, trains: bool) -> dict[str, Attend]:
    """Each implementation of multi-head attention, (B, N, 3 D) -> (B, N, D)."""
    sizes = (network.dim, network.num_heads, network.dropout)
    attention = MultiHeadSelfAttention(*sizes, fused=True).train(trains)

    def whole(attend: Callable[..., Tensor], qkv: Tensor) -> Tensor:
        return attend(*split_heads(qkv, 3, network.num_heads)).transpose(1, 2).flatten(2)

    kernel, plain = (partial(whole, how) for how in (attention._fused, attention._plain))
    return {"kernel": kernel, "plain": plain, "here": attention._attend}


def once(attend: Attend, qkv: Tensor, trains: bool) -> None:
    """A forward pass, in training followed by backward."""
    with torch.inference_mode(not trains):
        out = attend(qkv)
    if trains:
        out.backward(torch.ones_like(out))
        qkv.grad = None


def kept_mib(attend: Attend, qkv: Tensor) -> float:
    """Memory per image saved for backward, q, k and v included."""
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = tensor, storage.nbytes()  # a freed address could be reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend(qkv)
    return round(sum(size for _, size in kept.values()) / len(qkv) / MIB, 2)


if __name__ == "__main__":
    main()
