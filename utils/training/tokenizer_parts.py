"""What stage 1 trains besides the VQGAN itself: its codebook, and the discriminator.

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
from utils.device import Compute, autocast

COLLAPSED = 0.1  # share of codes in use below which a codebook counts as collapsed
ADVERSARY_BETAS = (0.5, 0.9)  # of AdamW: it must follow faster than the other networks


class Codes:
    """Quantises latents, restarts unused codes and counts those in use.

    All processes know the latents of the whole batch, so their codebooks stay equal.
    """

    def __init__(self, codebook: Codebook, settings: TokenizerTraining) -> None:
        self.codebook, self.settings, weight = codebook, settings, codebook.embedding.weight
        averages = CodebookAverages(codebook, settings.codebook_decay, settings.restart_below)
        self.averages = averages.to(weight.device)
        self.placed = False  # until the first batch that is quantised puts them onto its latents
        self.chosen = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)

    def adopt(self, latents: int) -> None:
        """Take over trained codes; latents: how many a batch has."""
        self.averages.adopt(self.codebook, latents)
        self.placed = True

    def quantise(
        self, latents: Tensor, count: int, restarting: bool, generator: torch.Generator
    ) -> Tensor:
        """Codes of latents, (B, h, w, C) each; the averages follow all ``count`` images.

        restarting: whether unused codes move onto latents, as all do at first.
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
        """Token ids of latents, (B, h, w, C) -> (B, h, w), noted as codes in use."""
        token_ids = self.codebook.nearest(latents.detach())
        self.chosen[token_ids.flatten()] = True
        return token_ids

    def lookup(self, token_ids: Tensor) -> Tensor:
        """Codes of tokens, (B, h, w) -> (B, h, w, C), noted as codes in use."""
        self.chosen[token_ids.flatten()] = True
        return self.codebook.lookup(token_ids)

    def remark(self, may_warn: bool) -> str:
        """What the progress bar says of them; the main process warns where their use collapses."""
        used = self.in_use()
        if used < COLLAPSED and may_warn and distributed.is_main():
            tqdm.write(
                f"codebook collapse: {used:.0%} of the codes in use; encoder and codes drift "
                "apart, raise restart_below or commitment_weight, or lower learning_rate"
            )
        return f"codes {used:.0%}"

    def in_use(self) -> float:
        """Share of the codes that were chosen since the last call, asked of all processes."""
        share = (distributed.total(self.chosen.float()) > 0).float().mean().item()
        self.chosen.zero_()
        return share


class Adversary:
    """The discriminator learns to tell images from reconstructions (VQGAN eq. 7).

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
