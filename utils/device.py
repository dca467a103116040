"""Where to compute: the place of this process among torchrun's, its device and dtype.

Rank and world size come from torchrun's environment variables (the scorer's fid/process.py), so
work without communication, such as repairing a folder, needs no process group.
"""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from fid.process import Ranks, own_ranks
from torch import Tensor, nn

from config.errors import UserError
from config.schema import Config
from models.parallel import workers
from utils.io.messages import as_user_error

AMPERE = (8, 0)  # compute capability from which on bf16 is not emulated


def rank() -> int:
    """Rank of this process, from 0."""
    return _ranks().rank


def world_size() -> int:
    """Number of processes."""
    return _ranks().world_size


def is_main() -> bool:
    """Whether this is rank 0, which writes files and prints."""
    return rank() == 0


def own_device(device: torch.device) -> torch.device:
    """This process's GPU, by local rank; any other device is returned unchanged.

    Raises `UserError` if a machine has more processes than GPUs.
    """
    if device.type != "cuda" or world_size() == 1:
        return device
    local, gpus = _ranks().local_rank, torch.cuda.device_count()
    if local >= gpus:
        raise UserError(f"--nproc-per-node: {gpus} GPUs on this machine; allowed are 1 to {gpus}")
    return torch.device("cuda", local)


def _ranks() -> Ranks:
    with as_user_error():
        return own_ranks()


@dataclass(frozen=True)
class Compute:
    """A device and the dtype of its matrix products."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, config: Config) -> Compute:
        """Device and dtype of a config; under torchrun, this process's own GPU."""
        device = own_device(pick_device(config.device))
        return cls(device, pick_dtype(config.precision, device))


def pick_device(name: str) -> torch.device:
    """``auto`` takes CUDA if there is one, else the CPU. Raises `UserError` for a missing GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(f"device {name}: {found} CUDA devices found; use --device cpu or auto")
    return device


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Type of matrix products; ``auto`` is bf16 where the hardware has it, else fp16 or fp32."""
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision != "auto":
        return named[precision]
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= AMPERE
        return torch.bfloat16 if native else torch.float16
    has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if has_bf16() else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Autocast to ``dtype`` within this context; disabled for fp32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def cast_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Round the weights of matrix products once, as autocast does in every forward pass.

    Autocast takes a quarter of a forward pass of the released transformer for that on a CPU.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, copied without blocking the host."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware that a result computed on a device depends on."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
        "machine": platform.machine(),
        "gpu": gpu,
        "threads": str(torch.get_num_threads()),
        "workers": str(workers()),  # that share the images of a CPU, one thread each
    }
