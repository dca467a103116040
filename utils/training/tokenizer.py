"""Stage 1: train the VQGAN (Esser et al. 2021, section 3.1; spec eq. 2)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from config.errors import StopRequested, UserError
from config.schema import Config, TokenizerConfig, TokenizerTraining
from models.vqgan import VQGAN
from utils.data import augment
from utils.data.datasets import ImageFolder
from utils.io.files import alone_in
from utils.pictures import save_curves
from utils.rng import generator_for, shuffled_batches
from utils.training.runlog import RunLog
from utils.training.state import Resume, clear_run, open_state, save_state
from utils.training.tokenizer_step import TokenizerTrainer
from utils.training.trainer import stop_signals
from utils.training.validate_tokenizer import TokenizerValidation
from utils.weights.store import load_tokenizer, save_weights

CHECK_EVERY = 20  # batches between looks at the loss and the codebook's use
COLLAPSED = 0.1  # share of codes in use below which a codebook counts as collapsed


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
        trainer.start_from(network_to_start_from(start, config))
    elif settings.decoder_only:
        raise UserError(
            "tokenizer.training.decoder_only trains the decoder of given weights; name them with "
            "--tokenizer FILE"
        )
    if state is None:
        clear_run(folder / "state.pt")
    position = trainer.position
    if trainer.finished and not position.batch:
        print(f"{folder}: all {position.epoch} epochs are done")
        return folder / "vqgan.safetensors"
    log = RunLog(folder, config, after_epoch=position.epoch)
    validation = TokenizerValidation(val[: settings.validation_images], config)
    train = train.to(trainer.device)
    with stop_signals() as stopping:
        while not trainer.finished or position.batch:  # also one whose time ran out meanwhile
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


def network_to_start_from(path: Path, config: Config) -> VQGAN:
    """Weights of the network that the config describes, or of one whose kernels are narrower.

    A narrower kernel is laid into the middle of zeros, which changes no output (function-preserving
    growth; Chen et al. 2016, section 2), so a training may widen what a token sees as it goes on.
    """
    found, wanted = load_tokenizer(path, config.tokenizer), config.tokenizer
    for name in TokenizerConfig.model_fields:
        old, new = getattr(found.config, name), getattr(wanted, name)
        wider = name == "encoder_kernels" and all(a <= b for a, b in zip(old, new, strict=True))
        if old != new and not wider:
            raise UserError(f"{path}: {name} is {old}, but the config says {new}")
    network = VQGAN(wanted)
    shapes = {name: weight.shape for name, weight in network.state_dict().items()}
    network.load_state_dict(
        {name: _grown(weight, shapes[name]) for name, weight in found.state_dict().items()}
    )
    return network


def _grown(weight: Tensor, shape: torch.Size) -> Tensor:
    """A weight in the middle of zeros that make it (..., height, width) of this shape."""
    if weight.shape == shape:
        return weight
    margin = (shape[-1] - weight.shape[-1]) // 2
    return F.pad(weight, (margin,) * 4)


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
            numbers = torch.rand(count, augment.NUMBERS_A_VIEW, generator=generator)
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
