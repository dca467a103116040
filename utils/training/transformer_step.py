"""What a step of stage 2 changes, and the step (MaskGIT section 3.1).

Shapes: B batch, N tokens, n images, V views, H variants with a hole.
"""

from __future__ import annotations

import hashlib
import math
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from config.errors import UserError
from config.loading import flat
from config.schema import Config, MaskingConfig
from models.maskgit import token_loss
from models.transformer import BidirectionalTransformer
from models.vqgan import VQGAN
from utils import distributed
from utils.data.datasets import ImageFolder
from utils.data.holed_images import HoledImages, Seen, validation_views
from utils.device import autocast, pick_device, pick_dtype
from utils.rng import generator_for
from utils.tokens.batches import TokenBatch, TokenBatches
from utils.tokens.cache import PLAIN_VIEWS, cached_holes, cached_tokens
from utils.training.optim import averaged, learning_rate, parameter_groups, set_learning_rate
from utils.training.trainer import Trainer, settings_that_count
from utils.weights.store import codes_fingerprint, load_tokenizer

COMPILER = "inductor"
AGREE_EVERY = 10  # steps between exchanges of several GPUs about stopping
FINGERPRINT = 12  # hexadecimal digits that stand for what a run was begun with
DROPOUT_STREAM = 1  # random numbers that have nothing in common with those of token_batches


@dataclass(frozen=True)
class Tokens:
    """What stage 2 learns from; the tokenizer itself is not part of it."""

    train: np.ndarray  # (n, V, N) uint16: images, their mirror images and augmented views
    val: np.ndarray  # (m, 2, N)
    codes: Tensor  # (K, C)
    codes_sha256: str  # of the tokenizer that they belong to
    holes: np.ndarray | None = None  # (n, H, N) uint16: variants with a hole, if any are shown
    holed: HoledImages | None = None  # the training images, for a transformer with conditioning
    val_seen: Seen | None = None  # the validation images with holes, likewise

    def frequency(self) -> Tensor:
        """Share of each code in the training images, none of them 0, (K,) like the codes."""
        plain = self.train[:, :PLAIN_VIEWS].ravel()
        counts = torch.from_numpy(np.bincount(plain, minlength=len(self.codes))).double() + 1
        return (counts / counts.sum()).to(self.codes.dtype)

    def fingerprint(self) -> str:
        """SHA-256 of what is trained on, by which a resumed run knows its images."""
        digest = hashlib.sha256(np.ascontiguousarray(self.train))
        if self.holes is not None:
            digest.update(np.ascontiguousarray(self.holes))
        return digest.hexdigest()


def load_tokens(config: Config) -> Tokens:
    """Cached tokens of both splits and the codes of the config's tokenizer.

    Raises `UserError` for codes of another width than the transformer's prior has.
    """
    vqgan = load_tokenizer(config.tokenizer_weights, config.tokenizer)
    found, wanted = vqgan.config.latent_dim, config.transformer.prior_dim
    if wanted not in (0, found):
        raise UserError(
            f"{config.tokenizer_weights}: latent_dim is {found}, but transformer.prior_dim is "
            f"{wanted}; allowed are 0 and {found}"
        )
    device = distributed.own_device(pick_device(config.device))
    cache, codes = config.data.token_cache, vqgan.codebook.vectors().cpu()
    fingerprint = codes_fingerprint(vqgan.codebook.embedding.weight)
    train, val = (cached_tokens(vqgan, config.data, s, cache, device) for s in ("train", "val"))
    holes, count = None, config.training.validation_images
    if config.transformer.conditioning == "pixels":
        holed, val_seen = _holed(config, vqgan, device)
        return Tokens(train, val[:count], codes, fingerprint, None, holed, val_seen)
    if config.masking.hole_share > 0:
        holes = cached_holes(vqgan, config.data, config.decoding.hole_fill, cache, device)
    return Tokens(train, val[:count], codes, fingerprint, holes)


def _holed(config: Config, vqgan: VQGAN, device: torch.device) -> tuple[HoledImages, Seen]:
    """Training images to punch holes into, and validation images that have theirs."""
    train, val = (
        ImageFolder(config.data.folder(split), config.data.image_size).images
        for split in ("train", "val")
    )
    val = val[: config.training.validation_images]
    seen = validation_views(HoledImages(val, PLAIN_VIEWS, vqgan, config, device))
    return HoledImages(train, config.data.views, vqgan, config, device), seen


class Objective(nn.Module):
    """The loss as a module, so that DistributedDataParallel sees every forward pass."""

    def __init__(self, transformer: BidirectionalTransformer, masking: MaskingConfig) -> None:
        super().__init__()
        self.transformer, self.masking = transformer, masking

    def forward(
        self, targets: Tensor, inputs: Tensor, token_mask: Tensor, known: Tensor | None = None
    ) -> Tensor:
        return token_loss(self.transformer, targets, token_mask, self.masking, inputs, known)


def compile_parts(transformer: BidirectionalTransformer, device: torch.device) -> None:
    """Compile in place, so that names of weights stay: one graph for all blocks, one for the head.

    Whole networks would take longer to compile than short trainings to run. On a CPU the head gets
    another number of places each time (the hidden ones), so it stays as it is.
    """
    for block in transformer.blocks:
        block.compile(dynamic=False, backend=COMPILER)
    if device.type == "cuda":
        transformer.head = torch.compile(transformer.head, dynamic=False, backend=COMPILER)


class TransformerTrainer(Trainer):
    """Everything that a step of stage 2 changes, and the step.

    Several processes (utils/distributed.py) hold equal trainers. Each is given whole batches and
    draws their masks, then computes on its own share of the rows, so that all of them together do
    what a single one would do with batches that are so many times as large.
    """

    # without a half-life, averages are the weights themselves, which are loaded last then
    kept = ("averaged", "transformer", "optimizer", "scaler")

    def __init__(self, config: Config, tokens: Tokens) -> None:
        self.config, self.settings, self.tokens = config, config.training, tokens
        self.device = distributed.own_device(pick_device(config.device))
        self.dtype = pick_dtype(config.precision, self.device)
        self.world = distributed.world_size()
        torch.manual_seed(config.seed)
        self.transformer = BidirectionalTransformer(config.transformer)
        if self.settings.init == "codebook":
            self.transformer.start_from_codebook(tokens.codes, tokens.frequency())
        elif config.transformer.prior_dim:
            self.transformer.prior.set_codes(tokens.codes, tokens.frequency())
        self.transformer.to(self.device)
        self.transformer.checkpoint_activations = self.settings.checkpoint_activations
        a_step = min(self.world * self.settings.images_a_step, len(tokens.train))
        self.averaged = averaged(self.transformer, self.settings.ema_half_life, a_step)
        if self.settings.compile:
            compile_parts(self.transformer, self.device)
        self.objective = Objective(self.transformer, config.masking)
        if self.world > 1:
            self.objective = DistributedDataParallel(self.objective, broadcast_buffers=False)
        groups = parameter_groups(self.transformer, self.settings.weight_decay)
        self.fused = self.device.type == "cuda"  # one kernel for all weights
        self.optimizer = torch.optim.AdamW(groups, betas=self.settings.betas, fused=self.fused)
        scaled = self.device.type == "cuda" and self.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.batches = TokenBatches(
            tokens.train,
            tokens.holes,
            config.masking,
            mirror=self.settings.mirror,
            seed=config.seed,
            device=self.device,
            holed=tokens.holed,
        )
        self.batch_size = self.world * self.settings.batch_size
        super().__init__(
            epochs=self.settings.epochs,
            batches=math.ceil(len(tokens.train) / self.batch_size),
            accumulate=self.settings.accumulate,
            max_minutes=self.settings.max_minutes,
        )
        self.require_warm_up("training.warmup_steps", self.settings.warmup_steps)
        settings = flat(config, "seed", "data", "transformer", "masking", "training")
        settings = settings_that_count(settings)
        settings["training.batch_size"] = self.batch_size  # of all processes together
        extra = {"images": len(tokens.train), "precision": str(self.dtype)}
        extra |= {"codes of the tokenizer": tokens.codes_sha256[:FINGERPRINT]}
        extra |= {"tokens of the images": tokens.fingerprint()[:FINGERPRINT]}
        if tokens.holes is not None or tokens.holed is not None:
            extra["decoding.hole_fill"] = config.decoding.hole_fill
        self.settings_of_run = {**settings, **extra}

    def start_from(self, network: BidirectionalTransformer) -> None:
        """Begin with the weights of another network instead of fresh ones.

        If it belongs to another tokenizer, its prior is first given the codes of this one.
        """
        codes = self.tokens.codes
        if self.config.transformer.prior_dim and not network.prior.has_codes(codes):
            network.prior.set_codes(codes, self.tokens.frequency())
        for own in (self.transformer, self.averaged.module):
            own.load_state_dict(network.state_dict())

    def accumulate(self, batch: TokenBatch) -> None:
        """Add the gradient of one batch, divided by the number of batches of its group.

        Processes exchange gradients at the last batch of a group alone.
        """
        group = self.position.batch // self.settings.accumulate
        start = group * self.settings.accumulate
        in_group = min(self.settings.accumulate, self.batches_per_epoch - start)
        key = (self.config.seed, self.position.epoch, self.position.batch)
        stream = DROPOUT_STREAM + distributed.rank()
        torch.manual_seed(generator_for(*key, stream).initial_seed())
        own, weight = self._own_share(batch)
        last = self.position.batch + 1 == start + in_group
        with nullcontext() if last or self.world == 1 else self.objective.no_sync():
            with autocast(self.device, self.dtype):
                loss = self.objective(*own) * weight
            # DistributedDataParallel takes the mean over processes of what is a sum
            self.scaler.scale(loss * self.world / in_group).backward()
        self.position.add({"loss": loss})

    def _own_share(self, batch: TokenBatch) -> tuple[TokenBatch, float | Tensor]:
        """This process's rows of a batch, and what their mean loss weighs in the mean of all.

        Weighed by scored tokens, the losses of all processes sum up to the whole batch's mean. A
        process without a row takes one that weighs nothing.
        """
        if self.world == 1:
            return batch, 1.0
        own, whole = batch.rows(slice(distributed.rank(), None, self.world)), batch.token_mask
        if not len(own.token_mask):
            return batch.rows(slice(1)), 0.0
        if self.config.masking.loss_on == "all":
            return own, len(own.token_mask) / len(whole)
        return own, own.token_mask.sum() / whole.sum().clamp(min=1)

    def mean_loss(self) -> float:
        """Mean loss of the present epoch so far, over all processes, which must all ask."""
        own = self.position.sums.get("loss", torch.zeros(())).to(self.device)
        return float(distributed.total(own)) / max(1, self.position.batch)

    def agree(self, stopping: bool) -> bool:
        """Note the time that is used up; whether any process was told to stop."""
        found = distributed.furthest([self.limit.share, float(stopping)], self.device)
        self.time_share = found[0]
        return found[1] > 0

    def may_agree(self) -> bool:
        """Whether all processes ask now, which would make several GPUs wait at each step."""
        if self.world == 1 or self.device.type == "cpu":
            return True
        epoch_ends = self.position.batch == self.batches_per_epoch
        return self.position.step % AGREE_EVERY == 0 or epoch_ends

    def group_is_full(self) -> bool:
        """Whether the optimiser should step now; the last group of an epoch may be shorter."""
        done = self.position.batch
        return done % self.settings.accumulate == 0 or done == self.batches_per_epoch

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return learning_rate(
            self.settings.learning_rate,
            self.position.step,
            schedule=self.settings.lr_schedule,
            warmup=self.settings.warmup_steps,
            total=self.total_steps,
            time_share=self.time_share,
            drop_steps=self.settings.lr_step_epochs * self.steps_per_epoch,
            drop_factor=self.settings.lr_step_factor,
        )

    def take_step(self) -> None:
        """Set the learning rate, clip, step, and let the averaged weights follow."""
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
