"""The training step of stage 1 and its state (Esser et al. 2021, section 3.1; the report's eq. 2).

Shapes: B batch, H x W pixels, h x w token grid, C latent channels, M = B h w latents of a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config.schema import Config
from models.parallel import parallel_map
from models.vqgan import VQGAN, full_fp32
from utils import distributed
from utils.device import Compute, autocast, moved, rank
from utils.pages import save_curves
from utils.rng import generator_for
from utils.training.optim import (
    EMA,
    add_gradients,
    equal_parts,
    may_share_images,
    parameter_groups,
    set_learning_rate,
)
from utils.training.state import FINGERPRINT
from utils.training.throughput import tokenizer_flops
from utils.training.tokenizer_parts import Adversary, Codes, ImagePart, TokenizerLoss
from utils.training.trainer import LOOK_EVERY, Trainer, in_fp32
from utils.training.validate_tokenizer import TokenizerValidation, require_two

BETAS = (0.9, 0.95)  # AdamW's averages


class TokenizerTrainer(Trainer):
    """VQGAN, discriminator, optimisers, averaged weights and the training step of stage 1."""

    section, weights_file = "tokenizer.training", "vqgan.safetensors"
    best_metric = "frechet_efficientnet"

    def __init__(self, config: Config, images: Tensor, val: Tensor, compute: Compute) -> None:
        """images, val: (n, 3, H, W) uint8."""
        if compute.dtype == torch.float16:
            compute = in_fp32(compute)
        super().__init__(config, config.tokenizer.training, compute, images=len(images))
        self.images, self.val = images.to(self.device), val[: self.settings.validation_images]
        require_two(self.val)
        self.description = config.tokenizer
        self.flops_per_image = tokenizer_flops(
            config.tokenizer, config.data.image_size, self.settings.decoder_only
        )
        torch.manual_seed(config.seed)
        self._make_networks()
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.vqgan, 0.0), betas=BETAS, fused=self.device.type == "cuda"
        )
        self.parts = {
            "vqgan": self.vqgan,
            "averaged": self.averaged,
            "codebook_averages": self.codes.averages,
            "optimizer": self.optimizer,
            "discriminator": self.adversary.network,
            "discriminator_optimizer": self.adversary.optimizer,
        }
        self.share = 1.0  # of the batch, that this process computes
        self.shares_batches = may_share_images(self.settings, self.device, self.world)
        self.settings_of_run = self._settings_of_run(images)

    def _make_networks(self) -> None:
        """Initialise all networks; their order determines their random numbers."""
        settings = self.settings
        self.vqgan = self._place(VQGAN(self.config.tokenizer))
        self._freeze()
        self.images_per_step = min(self.batch_size, self.image_count)
        self.averaged = EMA(self.vqgan, settings.ema_half_life, self.images_per_step)
        self.codes = Codes(self.vqgan.codebook, settings)
        self.adversary = Adversary(self.compute)
        self.loss = TokenizerLoss(self.vqgan, self.adversary, self.config, self.compute)
        self.holed = None
        if self.config.tokenizer.conditioned:
            from utils.training.holed import HoledBatches  # few runs see pixels

            self.holed = HoledBatches(self.config, self.compute, settings.sampled_share)
        self.latents_of = self.vqgan.latents
        if settings.compile:
            self.latents_of = torch.compile(self.vqgan.latents, dynamic=False)
            self.loss.compile()

    def _settings_of_run(self, images: Tensor) -> dict[str, Any]:
        """Everything that the weights depend on; a transformer by its weights, not by its path."""
        settings = self.settings_in("tokenizer")
        del settings["tokenizer.training.transformer"]
        for name, pixels in (("images", images), ("validation images", self.val)):
            digest = hashlib.sha256(pixels.cpu().contiguous().numpy()).hexdigest()
            settings[f"pixels of the {name}"] = digest[:FINGERPRINT]
        return settings | (self.holed.settings() if self.holed else {})

    def _place(self, network: torch.nn.Module) -> torch.nn.Module:
        return network.to(self.device, memory_format=torch.channels_last)

    def _freeze(self) -> None:
        """Freeze a codebook that follows averages; for decoder_only, all that tokens depend on."""
        whole = not self.settings.decoder_only
        self.vqgan.encoder.requires_grad_(whole)
        self.vqgan.quant_conv.requires_grad_(whole)
        self.vqgan.codebook.requires_grad_(whole and self.settings.codebook == "loss")

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.codes.placed = bool(self.codes.averages.use.any())

    def start_from(self, network: VQGAN) -> None:
        """Start from another network's weights instead of a random initialisation."""
        for own in (self.vqgan, self.averaged.module):
            own.load_state_dict(network.state_dict())
        self.codes.adopt(latents=self.images_per_step * self.config.transformer.num_tokens)

    def batches(self) -> Iterator[Tensor]:
        """Batches of the rest of the current epoch, half mirrored, (B, 3, H, W) in 0..1."""
        order = generator_for(self.config.seed, self.position.epoch)
        share = 0.5 if self.settings.mirror else 0.0
        mirrored = moved(torch.rand(self.image_count, generator=order) < share, self.device)
        for ids in self.image_ids(order):
            ids = moved(ids, self.device)
            images = self.images[ids]
            yield torch.where(mirrored[ids, None, None, None], images.flip(3), images) / 255

    def step(self, images: Tensor) -> None:
        """One optimiser step on images (B, 3, H, W) in 0..1; adds the losses to the position."""
        generator = generator_for(self.config.seed, self.position.epoch, self.position.batch)
        for optimizer in (self.optimizer, self.adversary.optimizer):
            set_learning_rate(optimizer, self.rate)
        count, (images, rows) = len(images), self._own_share(images)
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.dtype):
            parts = self._parts(images, rows, count, generator)
            self.loss.adversarial = self.adversarial
            sums = add_gradients(self.loss, parts, self.vqgan.parameters(), self.device)
        distributed.sum_gradients(self.vqgan.parameters())
        torch.nn.utils.clip_grad_norm_(self.vqgan.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()
        if self.adversarial:
            sums["discriminator"] = self.adversary.step(images, self.loss.outputs, self.share)
        self.averaged.update_parameters(self.vqgan)
        self.position.step += 1
        self.position.add(sums)

    def _parts(
        self, images: Tensor, rows: range, count: int, generator: torch.Generator
    ) -> list[ImagePart]:
        """This process's images (b, 3, H, W) of a batch of ``count``, with their latents and codes.

        One part, or several that CPU threads share.
        """
        slices = equal_parts(len(images)) if self.shares_batches else [slice(None)]

        def split(x: Tensor | None) -> list:
            return [None if x is None else x[part] for part in slices]

        shares = [self.share * len(part) / len(images) for part in split(images)]
        if self.holed:
            holes, known, token_ids = self.holed(self.vqgan, images, rows, generator)
            self.codes.mark(token_ids)
            made = split(None), split(token_ids), split(holes), split(known)
        else:
            normalised = split(self.loss.normalised(images))
            # a frozen encoder makes the tokens that repairs see, whatever the run's dtype
            with full_fp32(self.device) if self.settings.decoder_only else nullcontext():
                latents = parallel_map(self.latents_of, normalised, self.device)  # (b, h, w, C)
            token_ids = self._quantise(torch.cat(latents).detach(), count, generator)
            made = latents, split(token_ids), split(None), split(None)
        return list(map(ImagePart, shares, split(images), *made))

    def _own_share(self, images: Tensor) -> tuple[Tensor, range]:
        """This process's rows of a batch, or one row of weight 0, and their indices."""
        own = range(len(images))[rank() :: self.world]
        self.share, own = len(own) / len(images), own or range(1)
        return images[own.start : own.stop : self.world], own

    @property
    def adversarial(self) -> bool:
        """Whether the adversarial term is already in use."""
        started = self.progress >= self.settings.adversarial_start
        return self.settings.adversarial_weight > 0 and started

    def _quantise(self, latents: Tensor, count: int, generator: torch.Generator) -> Tensor | None:
        """Token ids (b, h, w) of latents (b, h, w, C), of a batch of ``count`` images.

        None until the warm-up ends: latents are decoded unquantised.
        """
        settings = self.settings
        if settings.decoder_only:
            return self.codes.mark(self.vqgan.codebook.nearest(latents))
        if not self.codes.placed and self.position.step < settings.warmup_steps:
            return None
        restarting = self.progress < settings.restart_until
        return self.codes.quantise(latents, count, restarting, generator)

    @cached_property
    def validation(self) -> TokenizerValidation:
        return TokenizerValidation(self.val, self.config, self.device, self.dtype)

    def validate(self) -> dict[str, float]:
        return self.validation(self.averaged.module)

    def pictures(self) -> dict[str, Tensor]:
        is_due = self.is_due(self.settings.validate_every)
        return {"reconstructions": self.validation.picture} if is_due else {}

    def progress_text(self) -> list[str]:
        late = self.position.step > self.settings.warmup_steps + LOOK_EVERY
        return [self.codes.remark(may_warn=late)]

    def draw_curves(self, folder: Path, rows: list[dict]) -> None:
        save_curves(folder / "curves.png", rows)

    def memory_advice(self) -> dict[str, bool]:
        size = self.settings.batch_size
        fewer = {f"a tokenizer.training.batch_size below {size}": size > 1}
        return {**fewer, "precision: bf16": self.config.precision == "fp32"}
