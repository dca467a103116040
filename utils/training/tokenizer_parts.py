"""Codebook updates, discriminator and loss of stage 1 (the report's eq. 2).

Shapes: B batch, H x W pixels, h x w token grid, C latent channels, M = B h w latents of a batch.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from config.schema import Config, TokenizerTraining
from models import losses, quantizer
from models.quantizer import Codebook, CodebookAverages
from models.vqgan import VQGAN
from utils import distributed
from utils.device import Compute, autocast, cast_weights, is_main

COLLAPSED = 0.1  # a codebook with a smaller share of codes in use counts as collapsed
Terms: TypeAlias = dict[str, tuple[float | Tensor, Tensor]]  # weight and value of each loss
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
        """Token ids (B, h, w) of latents (B, h, w, C) of a batch of ``count`` images.

        Updates the averages. restarting: whether unused codes are moved onto latents, as all are
        at first.
        """
        flat = distributed.all_rows(latents, count).flatten(0, 2)  # (M, C)
        if restarting or not self.placed:
            self.averages.restart(self.codebook, flat, generator)
            self.placed = True
        token_ids = self.mark(self.codebook.nearest(latents))
        self.averages.update(flat, distributed.all_rows(token_ids, count).flatten())
        if self.settings.codebook == "ema":
            self.averages.move(self.codebook)
        return token_ids

    def mark(self, token_ids: Tensor) -> Tensor:
        """The same token ids (...), marked as in use."""
        self.chosen[token_ids.flatten()] = True
        return token_ids

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


class ImagePart(NamedTuple):
    """Some images of a batch, whose loss is computed at once."""

    share: float  # of the batch
    images: Tensor  # (B, 3, H, W) in 0..1
    latents: Tensor | None  # (B, h, w, C), where the encoder trains
    token_ids: Tensor | None  # (B, h, w); None during the warm-up
    holes: Tensor | None  # (B, H, W) bool, for a decoder with conditioning, and
    known: Tensor | None  # (B, 4, H, W) of `known_pixels`


class TokenizerLoss:
    """The loss of images whose latents and tokens are known."""

    def __init__(
        self, vqgan: VQGAN, adversary: Adversary, config: Config, compute: Compute
    ) -> None:
        self.vqgan, self.adversary, device = vqgan, adversary, compute.device
        self.settings = config.tokenizer.training
        perceptual = losses.EfficientNetDistance(self.settings.perceptual_size)
        self.perceptual = perceptual.to(device, memory_format=torch.channels_last)
        cast_weights(self.perceptual, compute.dtype)
        self.mean = torch.tensor(config.data.mean, device=device)[:, None, None]
        self.std = torch.tensor(config.data.std, device=device)[:, None, None]
        self.trunk = self._trunk
        self.adversarial = False  # whether the discriminator judges, too
        self.outputs = torch.empty(0)  # of the last images, (B, 3, H, W) in 0..1

    def compile(self) -> None:
        """Compile the networks; their parameters keep their names.

        The decoder's last layer stays outside: the adaptive weight needs its gradient alone.
        """
        torch._functorch.config.donated_buffer = False  # the adaptive weight walks graphs twice
        self.trunk = torch.compile(self._trunk, dynamic=False)
        self.perceptual.compile(dynamic=False)
        self.adversary.network.compile(dynamic=False)

    def normalised(self, images: Tensor) -> Tensor:
        """Images in 0..1 as the networks see them, (B, 3, H, W)."""
        return (images - self.mean) / self.std

    def __call__(self, part: ImagePart) -> dict[str, Tensor]:
        """The part's share of the batch's loss and of each of its terms."""
        latents = codes = part.latents
        if part.token_ids is not None:
            codes = self.vqgan.codebook.lookup(part.token_ids)
            latents = codes if latents is None else latents
        outputs = self._decode(quantizer.straight_through(latents, codes), part.known)
        self.outputs = outputs.detach()
        terms = self._terms(part, outputs, latents, codes)
        loss = sum(weight * value for weight, value in terms.values())
        values = {name: value for name, (_, value) in terms.items()}
        return {name: part.share * value for name, value in {"loss": loss, **values}.items()}

    def _decode(self, latents: Tensor, known: Tensor | None) -> Tensor:
        """(B, h, w, C), and (B, 4, H, W) for a decoder with conditioning -> images in 0..1."""
        decoded = self.vqgan.decoder.model[-1](self.trunk(latents, known))
        return decoded.float() * self.std + self.mean

    def _trunk(self, latents: Tensor, known: Tensor | None) -> Tensor:
        """The decoder up to its last layer, (B, h, w, C) -> features (B, c, H, W)."""
        codes = self.vqgan.post_quant_conv(latents.permute(0, 3, 1, 2))
        return self.vqgan.decoder.trunk(codes, known)

    def _terms(self, part: ImagePart, outputs: Tensor, latents: Tensor, codes: Tensor) -> Terms:
        settings = self.settings
        reconstruction, perceptual = losses.similarity(
            self.perceptual, outputs, part.images, self.std, part.holes
        )
        terms: Terms = {
            "reconstruction": (1.0, reconstruction),
            "perceptual": (settings.perceptual_weight, perceptual),
        }
        if not settings.decoder_only:
            terms |= self._codebook_terms(latents, codes)
        if self.adversarial:
            adversarial = self.adversary.loss(outputs)
            similar = reconstruction + settings.perceptual_weight * perceptual
            last_layer = self.vqgan.decoder.model[-1].weight
            adaptive = losses.adaptive_weight(
                similar, adversarial, last_layer, lambda g: distributed.total(part.share * g)
            )
            terms["adversarial"] = (settings.adversarial_weight * adaptive, adversarial)
        return terms

    def _codebook_terms(self, latents: Tensor, codes: Tensor) -> Terms:
        """Commitment loss and perhaps codebook loss (van den Oord et al. 2017, eq. 3)."""
        commitment = quantizer.commitment_loss(latents, codes)
        terms = {"commitment": (self.settings.commitment_weight, commitment)}
        if self.settings.codebook == "loss":
            terms["codebook"] = (1.0, quantizer.codebook_loss(latents, codes))
        return terms
