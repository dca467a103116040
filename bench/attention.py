"""Attention three ways: PyTorch's kernel, the formula written out, and `fused` as a CPU runs it.

    python -m bench.attention [--quick]

All three get the same q, k and v at the lab's and at cats64's size, with the dropout of the preset,
and take turns; each time is the best of its turns. `repair` is a forward pass, `train` one and its
way back. Kept is what the forward pass leaves for the way back. On a GPU, and in fp32 without
dropout, `fused` is the kernel itself. Last line, JSON: {"lab": {"train_bf16": {"kernel_ms",
"plain_ms", "here_ms", "times_as_fast"}, ..., "kept_mib": {...}}, "cats64": {...}}; milliseconds and
MiB are those of an image and layer, times_as_fast is the kernel's time over ours.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bench.common import report
from config.loading import load_config
from config.schema import TransformerConfig
from models.attention import MultiHeadSelfAttention
from models.cpu_kernels import split_heads
from utils.device import pick_device

ROOT = Path(__file__).resolve().parents[1]

PRESETS = {"lab": ("MaskGit.yml", 8), "cats64": ("cats64.yml", 32)}  # and images of a batch
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TURNS, QUICK_TURNS = 30, 3
MIB = 2**20
Attend = Callable[[Tensor], Tensor]


def sides(network: TransformerConfig, trains: bool) -> dict[str, Attend]:
    """Attention of all heads in each way, (B, N, 3 D) -> (B, N, D)."""
    attention = MultiHeadSelfAttention(
        network.dim, network.num_heads, network.dropout, fused=True
    ).train(trains)

    def whole(attend: Callable[..., Tensor]) -> Attend:
        return lambda qkv: (
            attend(*split_heads(qkv, 3, network.num_heads)).transpose(1, 2).flatten(2)
        )

    here = attention._attend
    return {"kernel": whole(attention._fused), "plain": whole(attention._plain), "here": here}


def best_ms(ways: dict[str, Attend], qkv: Tensor, turns: int, trains: bool) -> dict[str, float]:
    """Best time of an image in milliseconds; the ways take turns."""
    best = dict.fromkeys(ways, float("inf"))
    with torch.inference_mode(not trains):
        for turn in range(turns + 1):
            for name, attend in ways.items():
                began = time.perf_counter()
                out = attend(qkv)
                if trains:
                    out.backward(torch.ones_like(out))
                    qkv.grad = None
                took = (time.perf_counter() - began) / len(qkv) * 1e3
                best[name] = min(best[name], took) if turn else best[name]  # the first warms up
    return best


def kept_mib(attend: Attend, qkv: Tensor) -> float:
    """What the forward pass keeps of an image for the way back, q, k and v included."""
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = tensor, storage.nbytes()  # the tensor, so that none is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend(qkv)
    return sum(size for _, size in kept.values()) / len(qkv) / MIB


def preset_result(file: str, batch: int, turns: int) -> dict[str, dict[str, float]]:
    """All figures of one size."""
    network = load_config(ROOT / "config" / file).transformer
    cells = {}
    torch.manual_seed(0)
    random = torch.randn(batch, network.num_tokens, 3 * network.dim)
    for dtype_name, dtype in DTYPES.items():
        for kind, trains in (("repair", False), ("train", True)):
            qkv = random.to(dtype, copy=True).requires_grad_(trains)
            best = best_ms(sides(network, trains), qkv, turns, trains)
            cell = {f"{name}_ms": round(value, 4) for name, value in best.items()}
            cell["times_as_fast"] = round(best["kernel"] / best["here"], 2)
            cells[f"{kind}_{dtype_name}"] = cell
            print(f"{file:12} {kind:6} {dtype_name} {cell}", flush=True)
    qkv = random.to(torch.bfloat16).requires_grad_()
    ways = sides(network, trains=True)
    cells["kept_mib"] = {name: round(kept_mib(attend, qkv), 2) for name, attend in ways.items()}
    print(f"{file:12} kept, MiB an image and layer in bf16: {cells['kept_mib']}")
    return cells


def main() -> None:
    """Measure both sizes, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few turns, not for reporting")
    quick = parser.parse_args().quick
    if pick_device("auto").type != "cpu":
        parser.error("on a GPU attention: fused is PyTorch's kernel; nothing to compare")
    turns = QUICK_TURNS if quick else TURNS
    result = {name: preset_result(file, batch, turns) for name, (file, batch) in PRESETS.items()}
    report("attention", result, {"turns": turns, "quick": quick})


if __name__ == "__main__":
    main()
