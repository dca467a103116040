"""The discriminator of stage 1, which learns to tell images from reconstructions (VQGAN eq. 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from models import losses
from utils import distributed
from utils.device import Compute, autocast

ADVERSARY_BETAS = (0.5, 0.9)  # of AdamW: it must follow faster than the other networks


class Adversary:
    """A discriminator and its optimiser. Images are (B, 3, H, W) in 0..1."""

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        network = losses.PatchDiscriminator()
        self.network = network.to(compute.device, memory_format=torch.channels_last)
        fused = compute.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), betas=ADVERSARY_BETAS, weight_decay=0.0, fused=fused
        )

    def loss(self, outputs: Tensor) -> Tensor:
        """What reconstructions lose where the discriminator recognises them."""
        return losses.generator_loss(self.network(_signed(outputs)))

    def step(self, images: Tensor, outputs: Tensor, share: float) -> Tensor:
        """Learn from a share of a batch; returns the loss, weighed by the share."""
        with autocast(self.compute.device, self.compute.dtype):
            real, fake = (self.network(_signed(x)) for x in (images, outputs))
            loss = share * losses.discriminator_loss(real, fake)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        distributed.sum_gradients(self.network.parameters())
        self.optimizer.step()
        return loss


def _signed(images: Tensor) -> Tensor:
    """0..1 -> -1..1, what the discriminator sees."""
    return images * 2 - 1
