"""Where a training computes, in which type and how compiled; picked once when it starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from config.schema import Config
from models.transformer import BidirectionalTransformer
from utils.device import pick_device, pick_dtype
from utils.distributed import own_device

COMPILER = "inductor"


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


def compile_parts(transformer: BidirectionalTransformer, device: torch.device) -> None:
    """Compile in place, so that names of weights stay: one graph for all blocks, one for the head.

    Whole networks would take longer to compile than short trainings to run. On a CPU the head gets
    another number of places each time (the hidden ones), so it stays as it is.
    """
    for block in transformer.blocks:
        block.compile(dynamic=False, backend=COMPILER)
    if device.type == "cuda":
        transformer.head = torch.compile(transformer.head, dynamic=False, backend=COMPILER)
