"""What the processes of torchrun exchange; a single process exchanges nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from fid.process import DIED, GONE, meet
from torch import Tensor, nn

from config.errors import StopRequested, UserError
from utils.device import is_main, world_size
from utils.io.messages import as_user_error

PATIENCE = timedelta(hours=2)  # timeout while a process encodes a large folder or validates


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the process group within this block, with NCCL on GPUs, else Gloo.

    Also sets the current CUDA device, which pinned memory and the like use. After an error NCCL's
    group is left to the end of the process: destroying it would wait for the other processes, which
    wait for this one; only a stop is one of all.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    if world_size() == 1:
        yield
        return
    with as_user_error():
        meet("nccl" if device.type == "cuda" else "gloo", PATIENCE)
    may_leave = device.type != "cuda"
    try:
        yield
        may_leave = True
    except StopRequested:
        may_leave = True
        raise
    except RuntimeError as error:
        if not any(text in str(error) for text in GONE):
            raise
        raise UserError(DIED) from error
    finally:
        if may_leave:
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
def main_first(device: torch.device) -> Iterator[None]:
    """Rank 0 executes the block first, then the others."""
    if not is_main():
        furthest([0.0], device)  # waits for rank 0; NCCL's barrier would print a warning
    yield
    if is_main():
        furthest([0.0], device)


def _reduced(tensor: Tensor, operation: dist.ReduceOp) -> Tensor:
    if not dist.is_initialized():
        return tensor
    reduced = tensor.clone()
    dist.all_reduce(reduced, operation)
    return reduced
