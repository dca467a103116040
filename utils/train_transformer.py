"""Stage 2: train the transformer by masked visual token modelling (MaskGIT section 3.1).

Shapes: B batch, N tokens, n images of a split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from config.errors import DivergedError, StopRequested, UserError
from config.loading import flat
from config.schema import Config
from models.maskgit import masked_token_loss
from models.transformer import BidirectionalTransformer
from utils.checkpoint import (
    Resume,
    State,
    codes_fingerprint,
    load_tokenizer,
    load_transformer,
    open_state,
    save_state,
    save_weights,
)
from utils.device import autocast, pick_device, pick_dtype
from utils.loop import Position, TimeLimit, generator_for, shuffled_batches, stop_signals
from utils.optim import averaged, learning_rate, parameter_groups, set_learning_rate
from utils.pictures import save_loss_curve
from utils.runlog import RunLog
from utils.token_cache import AS_IS, MIRRORED, as_token_ids, cached_tokens
from utils.validate_transformer import validate

LAST, BEST = "transformer.safetensors", "best.safetensors"
COMPILER = "inductor"
CHECK_EVERY = 20  # batches between looks at the loss
MASK_STREAM, DROPOUT_STREAM = 0, 1  # random numbers of a batch that have nothing in common
KEPT = ("transformer", "averaged", "optimizer", "scaler")
FREE = ("checkpoint_every", "validate_every", "max_minutes")  # may differ in a resumed run


@dataclass(frozen=True)
class Tokens:
    """What stage 2 learns from; the tokenizer itself is not part of it."""

    train: np.ndarray  # (n, 2, N) uint16: images and their mirror images
    val: np.ndarray
    codes: Tensor  # (K, C)

    def counts(self) -> Tensor:
        """How often the training images use each code, (K,) float64."""
        return torch.from_numpy(np.bincount(self.train.ravel(), minlength=len(self.codes))).double()


class TransformerTrainer:
    """Everything that a step of stage 2 changes, and the step."""

    def __init__(self, config: Config, tokens: Tokens) -> None:
        self.config, self.settings = config, config.training
        self.device = pick_device(config.device)
        self.dtype = pick_dtype(config.precision, self.device)
        torch.manual_seed(config.seed)
        self.transformer = BidirectionalTransformer(config.transformer)
        if self.settings.init == "codebook":
            self.transformer.start_from_codebook(tokens.codes, tokens.counts())
        self.transformer.to(self.device)
        self.transformer.checkpoint_activations = self.settings.checkpoint_activations
        self.averaged = averaged(
            self.transformer, self.settings.ema_half_life, self.settings.images_a_step
        )
        if self.settings.compile:
            for block in self.transformer.blocks:  # in place, so that their names stay
                block.compile(dynamic=False, backend=COMPILER)
        groups = parameter_groups(self.transformer, self.settings.weight_decay)
        self.fused = self.device.type == "cuda"  # one kernel for all weights
        self.optimizer = torch.optim.AdamW(groups, betas=self.settings.betas, fused=self.fused)
        scaled = self.device.type == "cuda" and self.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.position = Position()
        self.limit = TimeLimit(self.settings.max_minutes)
        self.batches_per_epoch = -(-len(tokens.train) // self.settings.batch_size)
        self.steps_per_epoch = -(-self.batches_per_epoch // self.settings.accumulate)
        self.total_steps = self.settings.epochs * self.steps_per_epoch
        self.codes_sha256 = codes_fingerprint(tokens.codes)
        settings = flat(config, "seed", "data", "transformer", "masking", "training")
        for key in FREE:
            del settings[f"training.{key}"]
        extra = {"images": len(tokens.train), "codes": self.codes_sha256}
        self.settings_of_run = {**settings, **extra}

    def state_dict(self) -> dict:
        """All that a resume needs."""
        self.position.seconds = self.limit.spent
        state = {name: getattr(self, name).state_dict() for name in KEPT}
        return {**state, "position": vars(self.position), "settings": self.settings_of_run}

    def load_state_dict(self, state: dict) -> None:
        for group in state["optimizer"]["param_groups"]:
            group["fused"] = self.fused  # of this machine, not of the one that saved
        for name in KEPT:
            getattr(self, name).load_state_dict(state[name])
        self.position = Position(**state["position"])
        self.limit = TimeLimit(self.settings.max_minutes, self.position.seconds)

    def start_from(self, network: BidirectionalTransformer) -> None:
        """Begin with the weights of another network instead of fresh ones."""
        for own in (self.transformer, self.averaged.module):
            own.load_state_dict(network.state_dict())

    def accumulate(self, token_ids: Tensor) -> None:
        """Add the gradient of one batch (B, N), divided by the number of batches of its group."""
        group = self.position.batch // self.settings.accumulate
        start = group * self.settings.accumulate
        in_group = min(self.settings.accumulate, self.batches_per_epoch - start)
        key = (self.config.seed, self.position.epoch, self.position.batch)
        torch.manual_seed(generator_for(*key, DROPOUT_STREAM).initial_seed())
        masks = generator_for(*key, MASK_STREAM)
        with autocast(self.device, self.dtype):
            loss = masked_token_loss(self.transformer, token_ids, self.config.masking, masks)
        self.scaler.scale(loss / in_group).backward()
        self.position.add({"loss": loss})

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
            time_share=self.limit.share,
            drop_steps=self.settings.lr_step_epochs * self.steps_per_epoch,
            drop_factor=self.settings.lr_step_factor,
        )

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or the time is used up."""
        return self.position.epoch >= self.settings.epochs or self.limit.share == 1.0

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


def starting_point(config: Config, path: Path) -> tuple[Config, BidirectionalTransformer]:
    """Weights to start from, and the config of a run that trains a network like theirs."""
    start = load_transformer(path, config.transformer)
    like = start.config.model_dump(exclude={"dropout", "attention"})
    section = config.transformer.model_copy(update=like)
    return config.model_copy(update={"transformer": section}), start


def train_transformer(
    config: Config,
    *,
    resume: Resume,
    restart: bool = False,
    allow_config_change: bool = False,
    from_epoch: int | None = None,
    start: BidirectionalTransformer | None = None,
    after_epoch: Callable[[int, float], None] | None = None,
    tokens: Tokens | None = None,
    watch: Callable[[TransformerTrainer], None] | None = None,
) -> Path:
    """Train stage 2 and return the weights file, <run>/transformer/transformer.safetensors.

    It holds the averaged weights of the last epoch; best.safetensors beside it those of the lowest
    validation loss.
    With a time limit, the epoch in which it runs out is cut short and the run is finished.
    A run that is there is gone on with (resume) or overwritten (restart). from_epoch is the epoch
    that a resumed checkpoint must stand after. start gives the weights of a run that begins.
    after_epoch is told the epoch and the loss of each validation, and may raise to end the
    training. tokens are what to learn from, where they are not the config's; watch is shown the
    trainer before the first step and after each, and may raise as well. Raises `UserError` for a
    run that is neither, for unusable data and for a loss that is no longer finite, `StopRequested`
    after a clean stop.
    """
    section = config.transformer.model_copy(update={"weights": None})  # the run makes its own
    config = config.model_copy(update={"transformer": section})
    folder, settings = config.run / "transformer", config.training
    tokens = tokens or load_tokens(config)
    trainer = TransformerTrainer(config, tokens)
    state = open_state(
        folder / "state.pt",
        trainer.settings_of_run,
        resume=resume,
        restart=restart,
        allow_change=allow_config_change,
    )
    if resume and from_epoch is not None:
        _check_epoch(folder, state, from_epoch)
    if state is not None:
        trainer.load_state_dict(state)
    elif start is not None:
        trainer.start_from(start)
    position, finished = trainer.position, trainer.finished
    if finished:
        print(f"{folder}: all {position.epoch} epochs are done")
        return folder / LAST
    log = RunLog(folder, config, after_epoch=position.epoch)
    with stop_signals() as stopping:
        if watch is not None:
            watch(trainer)
        while not finished:
            _train_epoch(trainer, tokens.train, folder, stopping, watch)
            numbers = {"train_loss": position.means()["loss"], "learning_rate": trainer.rate}
            position.next_epoch()
            finished = trainer.finished
            if validating := position.epoch % settings.validate_every == 0 or finished:
                average = trainer.averaged.module
                numbers |= validate(average, tokens.val, trainer.device, trainer.dtype)
                numbers |= _keep_best(trainer, folder, numbers["val_loss"])
            log.epoch(position.epoch, numbers)
            if position.epoch % settings.checkpoint_every == 0 or finished:
                save_loss_curve(folder / "loss_curve.png", log.rows())
                _save(trainer, folder)
            if validating and after_epoch is not None:
                after_epoch(position.epoch, numbers["val_loss"])
    log.close()
    print(f"last weights: {folder / LAST}, epoch {position.epoch}")
    print(f"best weights: {folder / BEST}, epoch {position.best_epoch}, {position.best_loss:.4f}")
    return folder / LAST


def _check_epoch(folder: Path, state: State | None, epoch: int) -> None:
    """Refuse to go on from another place than the user believes."""
    found = "there is none" if state is None else f"it stands after epoch {_epochs_done(state)}"
    if state is None or _epochs_done(state) != epoch:
        raise UserError(
            f"{folder / 'state.pt'}: asked for a checkpoint after epoch {epoch}; {found}"
        )


def _epochs_done(state: State) -> int:
    """Epochs that a training state has finished."""
    return state["position"]["epoch"]


def load_tokens(config: Config) -> Tokens:
    """Cached tokens of both splits and the codes of the config's tokenizer."""
    vqgan = load_tokenizer(config.tokenizer_weights, config.tokenizer)
    cache, device = config.data.root / "token_cache", pick_device(config.device)
    train, val = (cached_tokens(vqgan, config.data, s, cache, device) for s in ("train", "val"))
    return Tokens(train, val[: config.training.validation_images], vqgan.codebook.vectors().cpu())


def _train_epoch(
    trainer: TransformerTrainer,
    train: np.ndarray,
    folder: Path,
    stopping: list[int],
    watch: Callable[[TransformerTrainer], None] | None,
) -> None:
    """The rest of the present epoch, with a progress bar."""
    position, settings = trainer.position, trainer.settings
    trainer.transformer.train()
    order = generator_for(trainer.config.seed, position.epoch)
    views = torch.full((len(train),), AS_IS)
    if settings.mirror:
        views = torch.randint(AS_IS, MIRRORED + 1, (len(train),), generator=order)
    batches = shuffled_batches(len(train), settings.batch_size, order, skip=position.batch)
    title, total = f"epoch {position.epoch + 1}/{settings.epochs}", trainer.batches_per_epoch
    with tqdm(batches, title, total, initial=position.batch, dynamic_ncols=True) as bar:
        for batch in bar:
            rows = train[batch.numpy(), views[batch].numpy()]
            trainer.accumulate(as_token_ids(rows, trainer.device))
            if position.batch % CHECK_EVERY == 0 or position.batch == total:
                _check(trainer, bar)
            if not trainer.group_is_full():
                continue
            trainer.take_step()
            if watch is not None:
                watch(trainer)
            if stopping:
                _save(trainer, folder)
                raise StopRequested(f"stopped in {title}, saved; go on with --resume")
            if trainer.limit.share == 1.0:
                break


def _check(trainer: TransformerTrainer, bar: tqdm) -> None:
    """Show the running loss; stop when it is no longer finite."""
    position, loss = trainer.position, trainer.position.means()["loss"]
    if not np.isfinite(loss):
        raise DivergedError(
            f"epoch {position.epoch + 1}, batch {position.batch}: the loss is no longer finite; "
            "the last checkpoint is kept, lower training.learning_rate"
        )
    bar.set_postfix(loss=f"{loss:.4f}")


def _save(trainer: TransformerTrainer, folder: Path) -> None:
    """Write the averaged weights and the training state."""
    _save_average(trainer, folder / LAST)
    save_state(folder / "state.pt", trainer.state_dict())


def _keep_best(trainer: TransformerTrainer, folder: Path, val_loss: float) -> dict[str, float]:
    """Write the averaged weights if none had a lower loss; what to log about the best ones."""
    position = trainer.position
    if val_loss < position.best_loss:
        position.best_loss, position.best_epoch = val_loss, position.epoch
        _save_average(trainer, folder / BEST)
    return {"best_val_loss": position.best_loss, "best_epoch": position.best_epoch}


def _save_average(trainer: TransformerTrainer, path: Path) -> None:
    """Write the averaged weights with what is to be known about them."""
    notes = {"epoch": str(trainer.position.epoch), "seed": str(trainer.config.seed)}
    notes["codes_sha256"] = trainer.codes_sha256  # of the tokenizer that it belongs to
    save_weights(path, trainer.averaged.module.state_dict(), trainer.config.transformer, notes)
