"""Codebook updates and the discriminator of stage 1.

Shapes: B batch, h x w token grid, C latent channels, M = B h w latents of a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from config.schema import TokenizerTraining
from models import losses
from models.quantizer import Codebook, CodebookAverages
from utils import distributed
from utils.device import Compute, autocast, is_main

COLLAPSED = 0.1  # a codebook with a smaller share of codes in use counts as collapsed
ADVERSARY_BETAS = (0.5, 0.9)  # of AdamW: the discriminator must adapt faster than the VQGAN


class Codes:
    """Quantises latents, restarts unused codes and tracks codes in use.

    All processes gather the latents of the global batch, so their codebooks stay equal.
    """

    def __init__(self, codebook: Codebook, settings: TokenizerTraining) -> None:
        self.codebook, self.settings, weight = codebook, settings, codebook.embedding.weight
        averages = CodebookAverages(codebook, settings.codebook_decay, settings.restart_below)
        self.averages = averages.to(weight.device)
        self.placed = False  # until the first quantised batch initialises the codes
        self.chosen = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)

    def adopt(self, latents: int) -> None:
        """Keep trained codes; latents: number of latents per batch."""
        self.averages.adopt(self.codebook, latents)
        self.placed = True

    def quantise(
        self, latents: Tensor, count: int, restarting: bool, generator: torch.Generator
    ) -> Tensor:
        """Codes of latents, (B, h, w, C) each; updates the averages with all ``count`` images.

        restarting: whether unused codes are moved onto latents, as all are at first.
        """
        flat = distributed.all_rows(latents.detach(), count).flatten(0, 2)  # (M, C)
        if restarting or not self.placed:
            self.averages.restart(self.codebook, flat, generator)
            self.placed = True
        token_ids = self.nearest(latents)
        self.averages.update(flat, distributed.all_rows(token_ids, count).flatten())
        if self.settings.codebook == "ema":
            self.averages.move(self.codebook)
        return self.codebook.lookup(token_ids)

    def nearest(self, latents: Tensor) -> Tensor:
        """Token ids of latents, (B, h, w, C) -> (B, h, w); marks them as in use."""
        token_ids = self.codebook.nearest(latents.detach())
        self.chosen[token_ids.flatten()] = True
        return token_ids

    def lookup(self, token_ids: Tensor) -> Tensor:
        """Codes of tokens, (B, h, w) -> (B, h, w, C); marks them as in use."""
        self.chosen[token_ids.flatten()] = True
        return self.codebook.lookup(token_ids)

    def remark(self, may_warn: bool) -> str:
        """Share of codes in use, for the progress bar; the main process warns of a collapse."""
        used = self.in_use()
        if used < COLLAPSED and may_warn and is_main():
            tqdm.write(
                f"codebook collapse: {used:.0%} of the codes in use; encoder and codes drift "
                "apart, raise restart_below or commitment_weight, or lower learning_rate"
            )
        return f"codes {used:.0%}"

    def in_use(self) -> float:
        """Share of the codes chosen since the last call, over all processes; a collective call."""
        share = (distributed.total(self.chosen.float()) > 0).float().mean().item()
        self.chosen.zero_()
        return share


class Adversary:
    """The discriminator, its optimiser and losses (VQGAN eq. 7).

    Images are (B, 3, H, W) in 0..1.
    """

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        network = losses.PatchDiscriminator()
        self.network = network.to(compute.device, memory_format=torch.channels_last)
        fused = compute.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), betas=ADVERSARY_BETAS, weight_decay=0.0, fused=fused
        )

    def loss(self, outputs: Tensor) -> Tensor:
        """Adversarial loss of reconstructions."""
        return losses.generator_loss(self.network(_signed(outputs)))

    def step(self, images: Tensor, outputs: Tensor, share: float) -> Tensor:
        """One optimiser step on a share of a batch; returns the loss, weighted by the share."""
        with autocast(self.compute.device, self.compute.dtype):
            real, fake = (self.network(_signed(x)) for x in (images, outputs))
            loss = share * losses.discriminator_loss(real, fake)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        distributed.sum_gradients(self.network.parameters())
        self.optimizer.step()
        return loss


def _signed(images: Tensor) -> Tensor:
    """0..1 -> -1..1, the discriminator's input range."""
    return images * 2 - 1
