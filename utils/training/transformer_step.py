"""The training step of stage 2 and its state (MaskGIT section 3.1).

Shapes: B batch, N tokens, n images.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from config.schema import Config, MaskingConfig
from models.cpu_kernels import dropout_from
from models.masking import token_loss
from models.transformer import BidirectionalTransformer
from utils import distributed
from utils.device import Compute, autocast, rank
from utils.pages import save_loss_curve
from utils.rng import generator_for
from utils.training.optim import (
    EMA,
    add_gradients,
    equal_parts,
    is_large,
    may_share,
    parameter_groups,
    set_learning_rate,
)
from utils.training.state import FINGERPRINT
from utils.training.throughput import training_flops
from utils.training.token_batches import TokenBatch, TokenBatches, Tokens
from utils.training.trainer import Trainer, in_fp32
from utils.training.validate_transformer import val_repairs, validate

DROPOUT_STREAM = 1  # of random numbers, independent of those of token batches


class Objective(nn.Module):
    """The loss as a module, so that DistributedDataParallel sees every forward pass."""

    def __init__(self, transformer: BidirectionalTransformer, masking: MaskingConfig) -> None:
        super().__init__()
        self.transformer, self.masking = transformer, masking

    def forward(
        self, targets: Tensor, inputs: Tensor, token_mask: Tensor, known: Tensor | None = None
    ) -> Tensor:
        return token_loss(self.transformer, targets, token_mask, self.masking, inputs, known)


class TransformerTrainer(Trainer):
    """Transformer, optimiser, averaged weights and the training step of stage 2."""

    section, weights_file, best_metric = "training", "transformer.safetensors", "val_loss"

    def __init__(self, config: Config, tokens: Tokens, compute: Compute) -> None:
        settings, images = config.training, len(tokens.train)
        if compute.dtype == torch.float16 and compute.device.type == "cpu":
            compute = in_fp32(compute)
        super().__init__(config, settings, compute, images=images, accumulate=settings.accumulate)
        self.tokens, self.description = tokens, config.transformer
        self.flops_per_image = training_flops(config.transformer)
        self.shares_batches = may_share(config, self.device, self.world)
        torch.manual_seed(config.seed)
        self.transformer = self._network()
        images_per_step = min(self.batch_size * settings.accumulate, images)
        self.averaged = EMA(self.transformer, settings.ema_half_life, images_per_step)
        if settings.compile:
            self.transformer.compile_parts(self.device)
        self.objective = Objective(self.transformer, config.masking)
        if self.world > 1:  # PyTorch warns of the flag's new name and of strides that do no harm
            warnings.filterwarnings("ignore", "`broadcast_buffers`|Grad strides")
            self.objective = DistributedDataParallel(self.objective, broadcast_buffers=False)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.transformer, settings.weight_decay),
            betas=settings.betas,
            fused=self.device.type == "cuda",  # one kernel for all weights
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.token_batches = TokenBatches(tokens, config, self.device)
        self.parts = {
            "averaged": self.averaged,
            "transformer": self.transformer,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
        }
        self.settings_of_run = self._settings_of_run()

    def _network(self) -> BidirectionalTransformer:
        tokens = self.tokens
        network = BidirectionalTransformer(self.config.transformer)
        if self.settings.init == "codebook":
            network.start_from_codebook(tokens.codes, tokens.frequency())
        elif self.config.transformer.prior_dim:
            network.prior.set_codes(tokens.codes, tokens.frequency())
        network.checkpoint_activations = self.settings.checkpoint_activations
        return network.to(self.device)

    def _settings_of_run(self) -> dict[str, Any]:
        """Everything that the weights depend on."""
        tokens, settings = self.tokens, self.settings_in("transformer", "masking", "training")
        settings["codes of the tokenizer"] = tokens.codes_sha256[:FINGERPRINT]
        settings["tokens of the images"] = tokens.fingerprint()[:FINGERPRINT]
        settings["tokens of the validation images"] = tokens.fingerprint("val")[:FINGERPRINT]
        fill = {"decoding.hole_fill": self.config.decoding.hole_fill}
        return settings if tokens.holed is None else settings | fill

    def start_from(self, network: BidirectionalTransformer) -> None:
        """Start from another network's weights instead of a random initialisation.

        If it was trained for another tokenizer, its prior first gets the codes of this one.
        """
        codes = self.tokens.codes
        if self.config.transformer.prior_dim and not network.prior.has_codes(codes):
            network.prior.set_codes(codes, self.tokens.frequency())
        for own in (self.transformer, self.averaged.module):
            own.load_state_dict(network.state_dict())

    # The step

    def batches(self) -> Iterator[TokenBatch]:
        """Masked batches of the rest of the current epoch."""
        self.transformer.train()
        place = self.position
        image_ids = self.image_ids(generator_for(self.config.seed, place.epoch))
        return self.token_batches.stream(image_ids, place.epoch, place.batch)

    def step(self, batch: TokenBatch) -> None:
        """Forward and backward; the last batch of a group also updates the weights."""
        self.accumulate(batch)
        if self.group_is_full():
            self.take_step()

    def accumulate(self, batch: TokenBatch) -> None:
        """Add the gradient of one batch, divided by the number of batches in its group."""
        place, accumulate = self.position, self.settings.accumulate
        first = place.batch // accumulate * accumulate
        in_group = min(accumulate, self.batches_per_epoch - first)
        key = self.config.seed, place.epoch, place.batch, DROPOUT_STREAM + rank()
        if self.shares_batches:
            loss = self._add_shared(batch, in_group, key)
        else:
            torch.manual_seed(generator_for(*key).initial_seed())
            is_last = place.batch + 1 == first + in_group
            loss = self._backward(batch, in_group, exchange=is_last)
        place.add({"loss": loss})

    def _add_shared(self, batch: TokenBatch, in_group: int, key: tuple[int, ...]) -> Tensor:
        """Add the gradient of a batch whose parts CPU threads compute; key: of their dropout."""

        def losses(rows: slice) -> dict[str, Tensor]:
            part = batch.rows(rows)
            with dropout_from(generator_for(*key, rows.start)):
                loss = self.objective(*part)
            weight = part.weight_in(batch, self.config.masking.loss_on)
            return {"loss": loss * weight * (1 / in_group)}

        parts = equal_parts(len(batch.token_mask), large=is_large(self.config))
        with autocast(self.device, self.dtype):
            sums = add_gradients(losses, parts, self.objective.parameters(), self.device)
        return sums["loss"] * in_group

    def _backward(self, batch: TokenBatch, in_group: int, *, exchange: bool) -> Tensor:
        """Add the gradient of this process's rows; processes exchange at the group's end."""
        own, weight = self._own_share(batch)
        with nullcontext() if exchange or self.world == 1 else self.objective.no_sync():
            with autocast(self.device, self.dtype):
                loss = self.objective(*own) * weight
            # DistributedDataParallel averages over processes, but the losses are to be summed
            self.scaler.scale(loss * self.world / in_group).backward()
        return loss

    def take_step(self) -> None:
        """Set the learning rate, clip, step, and update the averaged weights."""
        set_learning_rate(self.optimizer, self.rate)
        if self.settings.max_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(
                self.transformer.parameters(), self.settings.max_grad_norm
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.averaged.update_parameters(self.transformer)
        self.position.step += 1

    def _own_share(self, batch: TokenBatch) -> tuple[TokenBatch, float | Tensor]:
        """This process's rows of a batch, and the weight of their mean loss in the batch's mean.

        Weighted by scored tokens, the losses of all processes sum to the global batch's mean. A
        process without rows takes one with weight 0. Batches with holes are this process's rows.
        """
        if self.world == 1:
            return batch, 1.0
        loss_on = self.config.masking.loss_on
        if self.tokens.holed is not None:
            rows = self.image_count - self.position.batch * self.batch_size  # of all processes
            scored = batch.scored(loss_on) * (rank() < rows)
            return batch, scored / distributed.total(scored).clamp(min=1)
        own = batch.rows(slice(rank(), None, self.world))
        if not len(own.token_mask):
            return batch.rows(slice(1)), 0.0
        return own, own.weight_in(batch, loss_on)

    # Validation, logging and saving

    def validate(self) -> dict[str, float]:
        network, tokens = self.averaged.module, self.tokens
        return validate(network, tokens.val, self.device, self.dtype, tokens.val_seen)

    def numbers(self) -> dict[str, float]:
        """The epoch's mean loss and its last learning rate."""
        return {"train_loss": self.means().get("loss", 0.0), "learning_rate": self.rate}

    @property
    def saves_now(self) -> bool:
        """Also when pictures are due, which are made from saved weights."""
        return super().saves_now or self._draws_now

    def pictures(self) -> dict[str, Tensor]:
        """Repairs of val images by the weights just saved."""
        return {"repairs": val_repairs(self.config)} if self._draws_now else {}

    @property
    def _draws_now(self) -> bool:
        every = self.settings.pictures_every
        return every > 0 and self.position.epoch % every == 0

    def draw_curves(self, folder: Path, rows: list[dict]) -> None:
        save_loss_curve(folder / "loss_curve.png", rows)

    def notes(self) -> dict[str, str]:
        """Adds the tokenizer that the weights belong to."""
        return {**super().notes(), "codes_sha256": self.tokens.codes_sha256}

    def memory_advice(self) -> dict[str, bool]:
        settings = self.settings
        return {
            f"a training.batch_size below {settings.batch_size} with a training.accumulate above "
            f"{settings.accumulate}, which trains alike": settings.batch_size > 1,
            "training.checkpoint_activations: true": not settings.checkpoint_activations,
            "transformer.attention: fused": self.config.transformer.attention == "plain",
            "precision: bf16": self.config.precision == "fp32",
        }
