"""Stage 2: train the transformer by masked visual token modelling (MaskGIT section 3.1).

Shapes: B batch, N tokens, n images of a split.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from config.errors import DivergedError, StopRequested, UserError
from config.loading import flat
from config.schema import Config, MaskingConfig
from models.maskgit import token_loss
from models.transformer import BidirectionalTransformer
from utils import distributed
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
from utils.token_batches import TokenBatch, TokenBatches
from utils.token_cache import PLAIN_VIEWS, cached_holes, cached_tokens
from utils.validate_transformer import validate

LAST, BEST = "transformer.safetensors", "best.safetensors"
COMPILER = "inductor"
CHECK_EVERY = 20  # batches between looks at the loss
AGREE_EVERY = 10  # steps between exchanges of several processes about stopping
DROPOUT_STREAM = 1  # random numbers that have nothing in common with those of token_batches
KEPT = ("transformer", "averaged", "optimizer", "scaler")
FREE = ("checkpoint_every", "validate_every", "max_minutes")  # may differ in a resumed run


@dataclass(frozen=True)
class Tokens:
    """What stage 2 learns from; the tokenizer itself is not part of it."""

    train: np.ndarray  # (n, V, N) uint16: images, their mirror images and augmented views
    val: np.ndarray  # (m, 2, N)
    codes: Tensor  # (K, C)
    holes: np.ndarray | None = None  # (n, H, N) uint16: variants with a hole, if any are shown

    def counts(self) -> Tensor:
        """How often the training images use each code, (K,) float64."""
        plain = self.train[:, :PLAIN_VIEWS].ravel()
        return torch.from_numpy(np.bincount(plain, minlength=len(self.codes))).double()


class Objective(nn.Module):
    """The loss as a module, so that DistributedDataParallel sees every forward pass."""

    def __init__(self, transformer: BidirectionalTransformer, masking: MaskingConfig) -> None:
        super().__init__()
        self.transformer, self.masking = transformer, masking

    def forward(self, targets: Tensor, inputs: Tensor, token_mask: Tensor) -> Tensor:
        return token_loss(self.transformer, targets, token_mask, self.masking, inputs)


class TransformerTrainer:
    """Everything that a step of stage 2 changes, and the step.

    Several processes (utils/distributed.py) hold equal trainers. Each is given whole batches and
    draws their masks, then computes on its own share of the rows, so that all of them together do
    what a single one would do with batches that are so many times as large.
    """

    def __init__(self, config: Config, tokens: Tokens) -> None:
        self.config, self.settings = config, config.training
        self.device = distributed.own_device(pick_device(config.device))
        self.dtype = pick_dtype(config.precision, self.device)
        self.world = distributed.world_size()
        torch.manual_seed(config.seed)
        self.transformer = BidirectionalTransformer(config.transformer)
        if self.settings.init == "codebook":
            self.transformer.start_from_codebook(tokens.codes, tokens.counts())
        self.transformer.to(self.device)
        self.transformer.checkpoint_activations = self.settings.checkpoint_activations
        self.averaged = averaged(
            self.transformer, self.settings.ema_half_life, self.world * self.settings.images_a_step
        )
        if self.settings.compile:
            for block in self.transformer.blocks:  # in place, so that their names stay
                block.compile(dynamic=False, backend=COMPILER)
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
        )
        self.position = Position()
        self.limit, self.time_share = TimeLimit(self.settings.max_minutes), 0.0
        self.batch_size = self.world * self.settings.batch_size
        self.batches_per_epoch = -(-len(tokens.train) // self.batch_size)
        self.steps_per_epoch = -(-self.batches_per_epoch // self.settings.accumulate)
        self.total_steps = self.settings.epochs * self.steps_per_epoch
        self.codes_sha256 = codes_fingerprint(tokens.codes)
        settings = flat(config, "seed", "data", "transformer", "masking", "training")
        for key in FREE:
            del settings[f"training.{key}"]
        settings["training.batch_size"] = self.batch_size  # of all processes together
        extra = {"images": len(tokens.train), "codes": self.codes_sha256}
        if tokens.holes is not None:
            extra["decoding.hole_fill"] = config.decoding.hole_fill
        self.settings_of_run = {**settings, **extra}

    def state_dict(self) -> dict:
        """All that a resume needs; to be called by all processes at once."""
        self.position.seconds = self.limit.spent
        self.position.sums = {k: distributed.total(v) for k, v in self.position.sums.items()}
        state = {name: getattr(self, name).state_dict() for name in KEPT}
        return {**state, "position": vars(self.position), "settings": self.settings_of_run}

    def load_state_dict(self, state: dict) -> None:
        for group in state["optimizer"]["param_groups"]:
            group["fused"] = self.fused  # of this machine, not of the one that saved
        for name in KEPT:
            getattr(self, name).load_state_dict(state[name])
        self.position = Position(**state["position"])
        if not distributed.is_main():
            self.position.sums = {}  # they are the sums of all
        self.limit = TimeLimit(self.settings.max_minutes, self.position.seconds)
        self.time_share = self.limit.share

    def start_from(self, network: BidirectionalTransformer) -> None:
        """Begin with the weights of another network instead of fresh ones."""
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
        return float(distributed.total(self.position.sums["loss"])) / self.position.batch

    def agree(self, stopping: bool) -> bool:
        """Note the time that is used up; whether any process was told to stop."""
        found = distributed.furthest([self.limit.share, float(stopping)], self.device)
        self.time_share = found[0]
        return found[1] > 0

    def may_agree(self) -> bool:
        """Whether all processes ask now; with several of them it makes a GPU wait."""
        epoch_ends = self.position.batch == self.batches_per_epoch
        return self.world == 1 or self.position.step % AGREE_EVERY == 0 or epoch_ends

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

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or the time is used up."""
        return self.position.epoch >= self.settings.epochs or self.time_share == 1.0

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


Watch = Callable[[TransformerTrainer], None]


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
    watch: Watch | None = None,
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
    config, folder = config.model_copy(update={"transformer": section}), config.run / "transformer"
    with distributed.joined(distributed.own_device(pick_device(config.device))):
        with distributed.main_first():
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
        if not trainer.finished:
            _train(trainer, tokens, folder, after_epoch, watch)
        elif distributed.is_main():
            print(f"{folder}: all {trainer.position.epoch} epochs are done")
    return folder / LAST


def _train(
    trainer: TransformerTrainer,
    tokens: Tokens,
    folder: Path,
    after_epoch: Callable[[int, float], None] | None,
    watch: Watch | None,
) -> None:
    """All epochs that are left; the main process alone validates and writes."""
    position, settings = trainer.position, trainer.settings
    log = RunLog(folder, trainer.config, position.epoch) if distributed.is_main() else None
    with stop_signals() as stopping:
        if watch is not None:
            watch(trainer)
        while not trainer.finished:
            _train_epoch(trainer, len(tokens.train), folder, stopping, watch)
            numbers = {"train_loss": trainer.mean_loss(), "learning_rate": trainer.rate}
            position.next_epoch()
            saving = position.epoch % settings.checkpoint_every == 0 or trainer.finished
            validating = position.epoch % settings.validate_every == 0 or trainer.finished
            if log and validating:
                numbers |= _validate(trainer, tokens.val, folder)
            if log:
                log.epoch(position.epoch, numbers)
            if log and saving:
                save_loss_curve(folder / "loss_curve.png", log.rows())
            if saving:
                _save(trainer, folder)
            if log and validating and after_epoch is not None:
                after_epoch(position.epoch, numbers["val_loss"])
    if log:
        log.close()
        best = f"epoch {position.best_epoch}, val loss {position.best_loss:.4f}"
        print(f"last weights: {folder / LAST}, epoch {position.epoch}")
        print(f"best weights: {folder / BEST}, {best}")


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
    holes = None
    if config.masking.hole_share > 0:
        holes = cached_holes(vqgan, config.data, config.decoding.hole_fill, cache, device)
    val, codes = val[: config.training.validation_images], vqgan.codebook.vectors().cpu()
    return Tokens(train, val, codes, holes)


def _train_epoch(
    trainer: TransformerTrainer,
    images: int,
    folder: Path,
    stopping: list[int],
    watch: Watch | None,
) -> None:
    """The rest of the present epoch, with a progress bar."""
    position, settings = trainer.position, trainer.settings
    trainer.transformer.train()
    order = generator_for(trainer.config.seed, position.epoch)
    batches = shuffled_batches(images, trainer.batch_size, order, skip=position.batch)
    title, total = f"epoch {position.epoch + 1}/{settings.epochs}", trainer.batches_per_epoch
    quiet = not distributed.is_main()
    with tqdm(
        batches, title, total, initial=position.batch, dynamic_ncols=True, disable=quiet
    ) as bar:
        for batch in bar:
            trainer.accumulate(trainer.batches(batch, position.epoch, position.batch))
            if position.batch % CHECK_EVERY == 0 or position.batch == total:
                _check(trainer, bar)
            if not trainer.group_is_full():
                continue
            trainer.take_step()
            if watch is not None:
                watch(trainer)
            if trainer.may_agree() and trainer.agree(bool(stopping)):
                _save(trainer, folder)
                raise StopRequested(f"stopped in {title}, saved; go on with --resume")
            if trainer.time_share == 1.0:
                break


def _check(trainer: TransformerTrainer, bar: tqdm) -> None:
    """Show the running loss; stop when it is no longer finite."""
    position, loss = trainer.position, trainer.mean_loss()
    if not np.isfinite(loss):
        raise DivergedError(
            f"epoch {position.epoch + 1}, batch {position.batch}: the loss is no longer finite; "
            "the last checkpoint is kept, lower training.learning_rate"
        )
    bar.set_postfix(loss=f"{loss:.4f}")


def _save(trainer: TransformerTrainer, folder: Path) -> None:
    """Write the averaged weights and the training state; all processes must call it at once."""
    state = trainer.state_dict()
    if distributed.is_main():
        _save_average(trainer, folder / LAST)
        save_state(folder / "state.pt", state)


def _validate(trainer: TransformerTrainer, val: np.ndarray, folder: Path) -> dict[str, float]:
    """Figures of the averaged weights, which are kept if none had a lower loss."""
    position = trainer.position
    numbers = validate(trainer.averaged.module, val, trainer.device, trainer.dtype)
    if numbers["val_loss"] < position.best_loss:
        position.best_loss, position.best_epoch = numbers["val_loss"], position.epoch
        _save_average(trainer, folder / BEST)
    best = {"best_val_loss": position.best_loss, "best_epoch": position.best_epoch}
    return {**numbers, **best}


def _save_average(trainer: TransformerTrainer, path: Path) -> None:
    """Write the averaged weights with what is to be known about them."""
    notes = {"epoch": str(trainer.position.epoch), "seed": str(trainer.config.seed)}
    notes["codes_sha256"] = trainer.codes_sha256  # of the tokenizer that it belongs to
    save_weights(path, trainer.averaged.module.state_dict(), trainer.config.transformer, notes)
