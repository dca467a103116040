"""Distributed processes started by torchrun, or a single process without it.

Rank and world size come from torchrun's environment variables (the scorer's fid/torchrun.py), so
work without communication, such as repairing a folder, needs no process group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from fid.torchrun import Place, meet, place
from torch import Tensor, nn

from config.errors import UserError
from utils.io.messages import as_user_error

PATIENCE = timedelta(hours=2)  # timeout while a process encodes a large folder or validates
GONE = ("Connection closed by peer", "Connection reset by peer", "NCCL communicator was aborted")


def rank() -> int:
    """Rank of this process, from 0."""
    return _place().rank


def world_size() -> int:
    """Number of processes."""
    return _place().world_size


def is_main() -> bool:
    """Whether this is rank 0, which writes files and prints."""
    return rank() == 0


def own_device(device: torch.device) -> torch.device:
    """This process's GPU, by local rank; any other device is returned unchanged.

    Raises `UserError` if a machine has more processes than GPUs.
    """
    if device.type != "cuda" or world_size() == 1:
        return device
    local, gpus = _place().local_rank, torch.cuda.device_count()
    if local >= gpus:
        raise UserError(f"--nproc-per-node: {gpus} GPUs on this machine; allowed are 1 to {gpus}")
    return torch.device("cuda", local)


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the process group within this block, with NCCL on GPUs, else Gloo.

    Also sets the current CUDA device, which pinned memory and the like use.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    if world_size() == 1:
        yield
        return
    with as_user_error():
        meet("nccl" if device.type == "cuda" else "gloo", PATIENCE)
    try:
        yield
    except RuntimeError as error:
        if not any(text in str(error) for text in GONE):
            raise
        raise UserError("another process of this run died; start all of them again") from error
    finally:
        dist.destroy_process_group()


def total(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all processes, on each of them."""
    return _reduced(tensor, dist.ReduceOp.SUM)


def all_rows(own: Tensor, count: int) -> Tensor:
    """Gather a batch of ``count`` rows of which each process has every world_size-th one."""
    if not dist.is_initialized():
        return own
    most = -(-count // world_size())
    padded = F.pad(own, (0, 0) * (own.ndim - 1) + (0, most - len(own))).contiguous()
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.stack(parts, 1).flatten(0, 1)[:count]  # row i of process r is row i * size + r


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes, in one all-reduce."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not dist.is_initialized() or not gradients:
        return
    sums = total(torch.cat([gradient.flatten() for gradient in gradients]))
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, summed in zip(gradients, sums.split(sizes), strict=True):
        gradient.copy_(summed.view(gradient.shape))


def furthest(values: Sequence[float], device: torch.device) -> list[float]:
    """Elementwise maximum over all processes, on each of them."""
    if not dist.is_initialized():
        return list(values)
    return _reduced(torch.tensor(values, device=device), dist.ReduceOp.MAX).tolist()


@contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 executes the block first, then the others."""
    if dist.is_initialized() and not is_main():
        dist.barrier()
    yield
    if dist.is_initialized() and is_main():
        dist.barrier()


def _place() -> Place:
    with as_user_error():
        return place()


def _reduced(tensor: Tensor, operation: dist.ReduceOp) -> Tensor:
    if not dist.is_initialized():
        return tensor
    reduced = tensor.clone()
    dist.all_reduce(reduced, operation)
    return reduced
