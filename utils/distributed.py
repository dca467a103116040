"""One of the processes that torchrun started, or the only one there is.

Who a process is comes from the variables that torchrun sets (the scorer's fid/process.py), so work
without any exchange, such as repairing a folder, needs no more than `rank` and `world_size`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from fid.process import Place, meet, place
from torch import Tensor, nn

from config.errors import UserError
from utils.io.limits import as_user_error

PATIENCE = timedelta(hours=2)  # with a process that encodes a large folder or validates
GONE = ("Connection closed by peer", "Connection reset by peer", "NCCL communicator was aborted")


def rank() -> int:
    """Number of this process, from 0."""
    return _place().rank


def world_size() -> int:
    """How many processes there are."""
    return _place().world_size


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process, one each on a machine; any other device stays as it is.

    Raises `UserError` for more processes on a machine than it has GPUs.
    """
    if device.type != "cuda" or world_size() == 1:
        return device
    local, gpus = _place().local_rank, torch.cuda.device_count()
    if local >= gpus:
        raise UserError(f"--nproc-per-node: {gpus} GPUs on this machine; allowed are 1 to {gpus}")
    return torch.device("cuda", local)


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Exchange tensors with the other processes within this block: NCCL on GPUs, else Gloo.

    What asks for no GPU by its number, such as pinned memory, is given that of this process.
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
    """Sum of a tensor over all processes, the same on each."""
    return _reduced(tensor, dist.ReduceOp.SUM)


def all_rows(own: Tensor, count: int) -> Tensor:
    """The ``count`` rows of a whole batch, where each process has every world_size-th of them."""
    if not dist.is_initialized():
        return own
    most = -(-count // world_size())
    padded = F.pad(own, (0, 0) * (own.ndim - 1) + (0, most - len(own))).contiguous()
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.stack(parts, 1).flatten(0, 1)[:count]  # row i of process r is row i * size + r


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes, in one exchange."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not dist.is_initialized() or not gradients:
        return
    sums = total(torch.cat([gradient.flatten() for gradient in gradients]))
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, summed in zip(gradients, sums.split(sizes), strict=True):
        gradient.copy_(summed.view(gradient.shape))


def furthest(values: Sequence[float], device: torch.device) -> list[float]:
    """The largest value of any process for each entry, the same on each."""
    if not dist.is_initialized():
        return list(values)
    return _reduced(torch.tensor(values, device=device), dist.ReduceOp.MAX).tolist()


@contextmanager
def main_first() -> Iterator[None]:
    """The main process goes through the block before the others do."""
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
