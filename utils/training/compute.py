"""Where a training computes and its type of matrix products, picked once when it starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from config.schema import Config
from utils.device import pick_device, pick_dtype
from utils.distributed import own_device


@dataclass(frozen=True)
class Compute:
    """A device and a type."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, config: Config) -> Compute:
        """What a config asks for; under torchrun the GPU is this process's own."""
        device = own_device(pick_device(config.device))
        return cls(device, pick_dtype(config.precision, device))
