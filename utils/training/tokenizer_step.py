"""One step of stage 1, and all that it changes (Esser et al. 2021, section 3.1; spec eq. 2).

Shapes: B batch, H x W pixels, h x w token grid, C latent channels, M = B h w latents of a batch.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

from config.loading import flat
from config.schema import Config
from models import losses, quantizer
from models.vqgan import VQGAN
from utils.device import autocast, pick_device, pick_dtype
from utils.rng import generator_for
from utils.training.optim import averaged, learning_rate, parameter_groups, set_learning_rate
from utils.training.trainer import Trainer, settings_that_count

BETAS = (0.9, 0.95)  # AdamW's averages
ADVERSARIAL_BETAS = (0.5, 0.9)  # the discriminator's, which must follow faster
Terms: TypeAlias = dict[str, tuple[float | Tensor, Tensor]]  # weight and value of each loss


class TokenizerTrainer(Trainer):
    """Everything that a step of stage 1 changes, and the step."""

    kept = (
        "vqgan",
        "averaged",
        "codebook_averages",
        "optimizer",
        "discriminator",
        "discriminator_optimizer",
    )

    def __init__(self, config: Config, image_count: int) -> None:
        self.config, self.settings = config, config.tokenizer.training
        self.device = pick_device(config.device)
        self.dtype = pick_dtype(config.precision, self.device)
        if self.dtype == torch.float16:  # its small gradients would need scaling; fp32 does not
            self.dtype = torch.float32
        torch.manual_seed(config.seed)
        self.vqgan = self._place(VQGAN(config.tokenizer))
        self._freeze()
        self.averaged = averaged(self.vqgan, self.settings.ema_half_life, self.settings.batch_size)
        self.codebook_averages = self._place(
            quantizer.CodebookAverages(
                self.vqgan.codebook, self.settings.codebook_decay, self.settings.restart_below
            )
        )
        fused = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.vqgan, 0.0), betas=BETAS, fused=fused
        )
        self.discriminator = self._place(losses.PatchDiscriminator())
        self.discriminator_optimizer = torch.optim.AdamW(
            self.discriminator.parameters(),
            betas=ADVERSARIAL_BETAS,
            weight_decay=0.0,
            fused=fused,
        )
        self.perceptual = self._place(
            losses.perceptual_distance(self.settings.perceptual, self.settings.perceptual_size)
        )
        self.latents_of, self.trunk = self.vqgan.latents, self._trunk
        if self.settings.compile:
            self._compile()
        self.has_codes = False  # until the first batch that is quantised
        super().__init__(
            epochs=self.settings.epochs,
            batches=math.ceil(image_count / self.settings.batch_size),
            max_minutes=self.settings.max_minutes,
        )
        self.require_warm_up("tokenizer.training.warmup_steps", self.settings.warmup_steps)
        self.chosen = torch.zeros(config.tokenizer.codebook_size, dtype=torch.bool)
        self.chosen = self.chosen.to(self.device)
        settings = settings_that_count(flat(config, "seed", "data", "tokenizer"))
        self.settings_of_run = {**settings, "images": image_count, "precision": str(self.dtype)}
        self.mean = torch.tensor(config.data.mean, device=self.device)[:, None, None]
        self.std = torch.tensor(config.data.std, device=self.device)[:, None, None]

    def _place(self, network: torch.nn.Module) -> torch.nn.Module:
        return network.to(self.device, memory_format=torch.channels_last)

    def _freeze(self) -> None:
        """Leave out of the training what moves by averages, or all that tokens depend on."""
        whole = not self.settings.decoder_only
        self.vqgan.encoder.requires_grad_(whole)
        self.vqgan.quant_conv.requires_grad_(whole)
        self.vqgan.codebook.requires_grad_(whole and self.settings.codebook == "loss")

    def _compile(self) -> None:
        """Compile the networks; their parameters keep their names.

        The decoder's last layer stays outside: the adaptive weight needs its gradient alone.
        """
        torch._functorch.config.donated_buffer = False  # the adaptive weight walks graphs twice
        self.latents_of, self.trunk = (
            torch.compile(part, dynamic=False) for part in (self.vqgan.latents, self._trunk)
        )
        self.perceptual.compile(dynamic=False)
        self.discriminator.compile(dynamic=False)

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.has_codes = bool(self.codebook_averages.use.any())

    def start_from(self, network: VQGAN) -> None:
        """Begin with the weights of another network instead of fresh ones."""
        for own in (self.vqgan, self.averaged.module):
            own.load_state_dict(network.state_dict())
        latents = self.settings.batch_size * self.config.transformer.num_tokens
        self.codebook_averages.adopt(self.vqgan.codebook, latents)
        self.has_codes = True

    def step(self, images: Tensor) -> None:
        """One optimiser step on images (B, 3, H, W), 0..1; the losses go into the position."""
        generator = generator_for(self.config.seed, self.position.epoch, self.position.batch)
        self.time_share = self.limit.share
        self._set_rates()
        with autocast(self.device, self.dtype):
            latents = self.latents_of((images - self.mean) / self.std)  # (B, h, w, C)
            codes = self._quantise(latents, generator)
            outputs = self._decode(quantizer.straight_through(latents, codes))
            terms = self._terms(images, outputs, latents, codes)
        loss = sum(weight * value for weight, value in terms.values())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.vqgan.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()
        named = {name: value for name, (_, value) in terms.items()}
        if self.adversarial:
            named["discriminator"] = self._discriminator_step(images, outputs.detach())
        self.averaged.update_parameters(self.vqgan)
        self.position.step += 1
        self.position.add({"loss": loss, **named})

    @property
    def adversarial(self) -> bool:
        """Whether the discriminator plays a part yet."""
        started = self.progress >= self.settings.adversarial_start
        return self.settings.adversarial_weight > 0 and started

    def codes_in_use(self) -> float:
        """Share of the codes that were chosen since the last call."""
        share = self.chosen.float().mean().item()
        self.chosen.zero_()
        return share

    def _set_rates(self) -> None:
        rate = learning_rate(
            self.settings.learning_rate,
            self.position.step,
            schedule=self.settings.lr_schedule,
            warmup=self.settings.warmup_steps,
            total=self.total_steps,
            time_share=self.time_share,
        )
        set_learning_rate(self.optimizer, rate)
        set_learning_rate(self.discriminator_optimizer, rate * self.settings.adversarial_rate)

    def _quantise(self, latents: Tensor, generator: torch.Generator) -> Tensor:
        """Codes of latents, (B, h, w, C) each; the averages move on the way.

        Before the warm-up ends, nothing is quantised and latents stand for their codes.
        """
        codebook, settings = self.vqgan.codebook, self.settings
        if settings.decoder_only:
            return codebook.lookup(self._tokens(latents))
        if not self.has_codes and self.position.step < settings.warmup_steps:
            return latents
        flat = latents.detach().flatten(0, 2)
        if self.progress < settings.restart_until or not self.has_codes:
            self.codebook_averages.restart(codebook, flat, generator)
            self.has_codes = True
        token_ids = self._tokens(latents)
        self.codebook_averages.update(flat, token_ids.flatten())
        if settings.codebook == "ema":
            self.codebook_averages.move(codebook)
        return codebook.lookup(token_ids)

    def _tokens(self, latents: Tensor) -> Tensor:
        """Token ids of latents, (B, h, w, C) -> (B, h, w), noted as codes in use."""
        token_ids = self.vqgan.codebook.nearest(latents.detach())
        self.chosen[token_ids.flatten()] = True
        return token_ids

    def _decode(self, latents: Tensor) -> Tensor:
        """(B, h, w, C) -> images in 0..1."""
        decoded = self.vqgan.decoder.model[-1](self.trunk(latents))
        return decoded.float() * self.std + self.mean

    def _trunk(self, latents: Tensor) -> Tensor:
        """The decoder up to its last layer, (B, h, w, C) -> features (B, c, H, W)."""
        codes = self.vqgan.post_quant_conv(latents.permute(0, 3, 1, 2))
        return self.vqgan.decoder.model[:-1](codes)

    def _terms(self, images: Tensor, outputs: Tensor, latents: Tensor, codes: Tensor) -> Terms:
        """Weight and value of each loss term (spec eq. 2)."""
        settings = self.settings
        reconstruction = ((outputs - images) / self.std).abs().mean()
        perceptual = self.perceptual(outputs, images)
        terms: Terms = {
            "reconstruction": (1.0, reconstruction),
            "perceptual": (settings.perceptual_weight, perceptual),
        }
        if not settings.decoder_only:
            terms |= self._codebook_terms(latents, codes)
        if self.adversarial:
            adversarial = losses.generator_loss(self.discriminator(_signed(outputs)))
            similar = reconstruction + settings.perceptual_weight * perceptual
            last_layer = self.vqgan.decoder.model[-1].weight
            adaptive = losses.adaptive_weight(similar, adversarial, last_layer)
            terms["adversarial"] = (settings.adversarial_weight * adaptive, adversarial)
        return terms

    def _codebook_terms(self, latents: Tensor, codes: Tensor) -> Terms:
        """What keeps encoder and codes together (van den Oord et al. 2017, eq. 3)."""
        commitment = quantizer.commitment_loss(latents, codes)
        terms = {"commitment": (self.settings.commitment_weight, commitment)}
        if self.settings.codebook == "loss":
            terms["codebook"] = (1.0, quantizer.codebook_loss(latents, codes))
        return terms

    def _discriminator_step(self, images: Tensor, outputs: Tensor) -> Tensor:
        """Teach the discriminator to tell images from outputs; returns its loss."""
        with autocast(self.device, self.dtype):
            real, fake = (self.discriminator(_signed(x)) for x in (images, outputs))
            loss = losses.discriminator_loss(real, fake)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.discriminator_optimizer.step()
        return loss


def _signed(images: Tensor) -> Tensor:
    """0..1 -> -1..1, what the discriminator sees."""
    return images * 2 - 1
