"""Stage 1: train the VQGAN (Esser et al. 2021, section 3.1; spec eq. 2).

Shapes: B batch, H x W pixels, h x w token grid, C latent channels, M = B h w latents of a batch.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from config.errors import StopRequested, UserError
from config.loading import flat
from config.schema import Config, TokenizerConfig, TokenizerTraining
from models import losses, quantizer
from models.vqgan import VQGAN
from utils import augment
from utils.checkpoint import Resume, load_tokenizer, open_state, save_state, save_weights
from utils.data import ImageFolder
from utils.device import autocast, pick_device, pick_dtype
from utils.lock import alone_in
from utils.loop import Trainer, generator_for, settings_that_count, shuffled_batches, stop_signals
from utils.optim import averaged, learning_rate, parameter_groups, set_learning_rate
from utils.pictures import save_curves
from utils.runlog import RunLog
from utils.validate_tokenizer import TokenizerValidation

CHECK_EVERY = 20  # batches between looks at the loss and the codebook's use
COLLAPSED = 0.1  # share of codes in use below which a codebook counts as collapsed
BETAS = (0.9, 0.95)  # AdamW's averages
ADVERSARIAL_BETAS = (0.5, 0.9)  # the discriminator's, which must follow faster


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
        self.vqgan.codebook.requires_grad_(self.settings.codebook == "loss")
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
        self.perceptual = self._place(losses.perceptual_distance(self.settings.perceptual))
        self.latents_of, self.trunk = self.vqgan.latents, self._trunk
        if self.settings.compile:
            self._compile()
        self.has_codes = False  # until the first batch that is quantised
        super().__init__(
            epochs=self.settings.epochs,
            total_steps=self.settings.epochs * -(-image_count // self.settings.batch_size),
            max_minutes=self.settings.max_minutes,
        )
        if self.settings.warmup_steps >= self.total_steps:
            raise UserError(
                f"tokenizer.training.warmup_steps is {self.settings.warmup_steps}, but the whole "
                f"training has {self.total_steps} steps; lower it or train for more epochs"
            )
        self.chosen = torch.zeros(config.tokenizer.codebook_size, dtype=torch.bool)
        self.chosen = self.chosen.to(self.device)
        settings = settings_that_count(flat(config, "seed", "data", "tokenizer"))
        self.settings_of_run = {**settings, "images": image_count}
        self.mean = torch.tensor(config.data.mean, device=self.device)[:, None, None]
        self.std = torch.tensor(config.data.std, device=self.device)[:, None, None]

    def _place(self, network: torch.nn.Module) -> torch.nn.Module:
        return network.to(self.device, memory_format=torch.channels_last)

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
            outputs, codes = self._quantise_and_decode(latents, generator)
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
        set_learning_rate(self.discriminator_optimizer, rate)

    def _quantise_and_decode(
        self, latents: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Latents -> images in 0..1 and the codes (B, h, w, C); the averages move on the way."""
        if not self.has_codes and self.position.step < self.settings.warmup_steps:
            return self._decode(latents), latents
        codebook, flat = self.vqgan.codebook, latents.detach().flatten(0, 2)
        if self.progress < self.settings.restart_until or not self.has_codes:
            self.codebook_averages.restart(codebook, flat, generator)
            self.has_codes = True
        token_ids = codebook.nearest(latents.detach())
        self.chosen[token_ids.flatten()] = True
        self.codebook_averages.update(flat, token_ids.flatten())
        if self.settings.codebook == "ema":
            self.codebook_averages.move(codebook)
        codes = codebook.lookup(token_ids)
        return self._decode(quantizer.straight_through(latents, codes)), codes

    def _decode(self, latents: Tensor) -> Tensor:
        """(B, h, w, C) -> images in 0..1."""
        decoded = self.vqgan.decoder.model[-1](self.trunk(latents))
        return decoded.float() * self.std + self.mean

    def _trunk(self, latents: Tensor) -> Tensor:
        """The decoder up to its last layer, (B, h, w, C) -> features (B, c, H, W)."""
        codes = self.vqgan.post_quant_conv(latents.permute(0, 3, 1, 2))
        return self.vqgan.decoder.model[:-1](codes)

    def _terms(
        self, images: Tensor, outputs: Tensor, latents: Tensor, codes: Tensor
    ) -> dict[str, tuple[float | Tensor, Tensor]]:
        """Weight and value of each loss term (spec eq. 2)."""
        settings = self.settings
        reconstruction = ((outputs - images) / self.std).abs().mean()
        perceptual = self.perceptual(outputs, images)
        terms: dict[str, tuple[float | Tensor, Tensor]] = {
            "reconstruction": (1.0, reconstruction),
            "perceptual": (settings.perceptual_weight, perceptual),
            "commitment": (settings.commitment_weight, quantizer.commitment_loss(latents, codes)),
        }
        if settings.codebook == "loss":
            terms["codebook"] = (1.0, quantizer.codebook_loss(latents, codes))
        if self.adversarial:
            adversarial = losses.generator_loss(self.discriminator(_signed(outputs)))
            similar = reconstruction + settings.perceptual_weight * perceptual
            last_layer = self.vqgan.decoder.model[-1].weight
            adaptive = losses.adaptive_weight(similar, adversarial, last_layer)
            terms["adversarial"] = (settings.adversarial_weight * adaptive, adversarial)
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


def train_tokenizer(
    config: Config,
    *,
    resume: Resume,
    restart: bool = False,
    allow_config_change: bool = False,
    start: Path | None = None,
) -> Path:
    """Train stage 1 and return the weights file, <run>/tokenizer/vqgan.safetensors.

    A run that is there is gone on with (resume) or overwritten (restart). start gives the weights
    of a run that begins. Raises `UserError` for a run that is neither, for unusable data or weights
    and for a loss that is no longer finite, `StopRequested` after a clean stop.
    """
    with alone_in(config.run / "tokenizer"):
        return _train(config, resume, restart, allow_config_change, start)


def _train(
    config: Config, resume: Resume, restart: bool, allow_config_change: bool, start: Path | None
) -> Path:
    """The training itself, in a folder that no other process writes to."""
    folder, settings = config.run / "tokenizer", config.tokenizer.training
    train, val = (
        ImageFolder(config.data.folder(split), config.data.image_size).images
        for split in ("train", "val")
    )
    trainer = TokenizerTrainer(config, len(train))
    state = open_state(
        folder / "state.pt",
        trainer.settings_of_run,
        resume=resume,
        restart=restart,
        allow_change=allow_config_change,
    )
    if state is not None:
        trainer.load_state_dict(state)
    elif start is not None:
        trainer.start_from(_same_network(start, config))
    position = trainer.position
    if trainer.finished:
        print(f"{folder}: all {position.epoch} epochs are done")
        return folder / "vqgan.safetensors"
    log = RunLog(folder, config, after_epoch=position.epoch)
    validation = TokenizerValidation(val[: settings.validation_images], config)
    train = train.to(trainer.device)
    with stop_signals() as stopping:
        while not trainer.finished:
            _train_epoch(trainer, train, folder, stopping)
            numbers = position.means()
            position.next_epoch()
            if trainer.is_due(settings.validate_every):
                numbers |= validation(trainer.averaged.module)
                log.picture("reconstructions", validation.picture, position.epoch)
            log.epoch(position.epoch, numbers)
            if trainer.is_due(settings.checkpoint_every):
                save_curves(folder / "curves.png", log.rows())
                _save(trainer, folder)
    log.close()
    return folder / "vqgan.safetensors"


def _same_network(path: Path, config: Config) -> VQGAN:
    """Weights to start from, which must be of the network that the config describes."""
    network = load_tokenizer(path, config.tokenizer)
    names = TokenizerConfig.model_fields
    found, wanted = (c.model_dump(include=set(names)) for c in (network.config, config.tokenizer))
    if differing := [name for name in names if found[name] != wanted[name]]:
        name = differing[0]
        raise UserError(f"{path}: {name} is {found[name]}, but the config says {wanted[name]}")
    return network


def _train_epoch(trainer: TokenizerTrainer, train: Tensor, folder: Path, stopping: list) -> None:
    """The rest of the present epoch, with a progress bar."""
    position, settings = trainer.position, trainer.settings
    order = generator_for(trainer.config.seed, position.epoch)
    shown = _Shown(train, settings, order)
    batches = shuffled_batches(len(train), settings.batch_size, order, skip=position.batch)
    total = -(-len(train) // settings.batch_size)
    title = f"epoch {position.epoch + 1}/{settings.epochs}"
    with tqdm(batches, title, total=total, initial=position.batch, dynamic_ncols=True) as bar:
        for batch in bar:
            trainer.step(shown(batch.to(train.device)))
            if position.batch % CHECK_EVERY == 0 or position.batch == total:
                _check(trainer, bar)
            if stopping:
                _save(trainer, folder)
                raise StopRequested(f"stopped in {title}, saved; go on with --resume")
            if trainer.time_share == 1.0:
                break


class _Shown:
    """How the images of an epoch are shown: as they are, mirrored or in an augmented view."""

    def __init__(
        self, images: Tensor, settings: TokenizerTraining, generator: torch.Generator
    ) -> None:
        """images: (n, 3, H, W) uint8 on the device of the training."""
        self.images, count = images, len(images)
        mirrored = torch.rand(count, generator=generator) < (0.5 if settings.mirror else 0.0)
        self.mirrored = mirrored[:, None, None, None].to(images.device)
        self.numbers = None
        if settings.augment:
            augmented = torch.rand(count, generator=generator) < settings.augment
            self.augmented = augmented[:, None, None, None].to(images.device)
            numbers = torch.rand(count, augment.NUMBERS, generator=generator)
            self.numbers = numbers.to(images.device)

    def __call__(self, batch: Tensor) -> Tensor:
        """Images of these numbers (B,), -> (B, 3, H, W) in 0..1."""
        images = self.images[batch]
        shown = torch.where(self.mirrored[batch], images.flip(3), images)
        if self.numbers is not None:
            views = augment.augment(images, self.numbers[batch])
            shown = torch.where(self.augmented[batch], views, shown)
        return shown / 255


def _check(trainer: TokenizerTrainer, bar: tqdm) -> None:
    """Show the running means; stop on a broken loss, warn of a collapsing codebook."""
    means, used = trainer.position.means(), trainer.codes_in_use()
    trainer.require_finite(means.values(), "tokenizer.training.learning_rate")
    if used < COLLAPSED and trainer.position.step > trainer.settings.warmup_steps + CHECK_EVERY:
        bar.write(
            f"codebook collapse: {used:.0%} of the codes in use; encoder and codes drift apart, "
            "raise restart_below or commitment_weight, or lower learning_rate"
        )
    bar.set_postfix({**{k: f"{v:.3f}" for k, v in means.items()}, "codes": f"{used:.0%}"})


def _save(trainer: TokenizerTrainer, folder: Path) -> None:
    """Write the training state and the averaged weights."""
    weights = trainer.averaged.module.state_dict()
    notes = {"epoch": str(trainer.position.epoch), "seed": str(trainer.config.seed)}
    save_weights(folder / "vqgan.safetensors", weights, trainer.config.tokenizer, notes)
    save_state(folder / "state.pt", trainer.state_dict())


def _signed(images: Tensor) -> Tensor:
    """0..1 -> -1..1, what the discriminator sees."""
    return images * 2 - 1
