"""Stage 2: train the transformer by masked visual token modelling (MaskGIT section 3.1).

Shapes: B batch, N tokens, n images of a split.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from tqdm import tqdm

from config.errors import StopRequested, UserError
from config.schema import Config
from models.transformer import BidirectionalTransformer, with_conditioning
from utils import distributed
from utils.device import pick_device
from utils.io.files import alone_in
from utils.pictures import save_loss_curve
from utils.rng import generator_for, shuffled_batches
from utils.training.runlog import RunLog
from utils.training.samples import val_repairs
from utils.training.state import Resume, State, clear_run, open_state, save_state
from utils.training.throughput import Speed, cached_peak, training_flops
from utils.training.trainer import memory_for, stop_signals
from utils.training.transformer_step import Tokens, TransformerTrainer, load_tokens
from utils.training.validate_transformer import validate
from utils.weights.store import load_transformer, save_weights

LAST, BEST = "transformer.safetensors", "best.safetensors"
CHECK_EVERY = 20  # batches between looks at the loss
Watch = Callable[[TransformerTrainer], None]


def starting_point(config: Config, path: Path) -> tuple[Config, BidirectionalTransformer]:
    """Weights to start from, and the config of a run that trains a network like theirs."""
    start = load_transformer(path, config.transformer)
    if config.transformer.conditioning == "pixels" and start.config.conditioning == "none":
        start = with_conditioning(start)
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
    tokens: Tokens | None = None,
    watch: Watch | None = None,
) -> Path:
    """Train stage 2 and return the weights file, <run>/transformer/transformer.safetensors.

    It holds the averaged weights of the last epoch; best.safetensors beside it those of the lowest
    validation loss.
    With a time limit, the epoch in which it runs out is cut short and the run is finished.
    A run that is there is gone on with (resume) or overwritten (restart). from_epoch is the epoch
    that a resumed checkpoint must stand after. start gives the weights of a run that begins.
    tokens are what to learn from, where they are not the config's. watch is called with the trainer
    before the first step and after each, and may raise to end the training. Raises `UserError` for
    a run that is neither, for unusable data and for a loss that is no longer finite,
    `StopRequested` after a clean stop.
    """
    section = config.transformer.model_copy(update={"weights": None})  # the run makes its own
    config, folder = config.model_copy(update={"transformer": section}), config.run / "transformer"
    device = distributed.own_device(pick_device(config.device))
    with alone_in(folder) if distributed.is_main() else nullcontext(), distributed.joined(device):
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
        if state is None:
            clear_run(folder / "state.pt")
        if not trainer.finished or trainer.position.batch:  # also one whose time ran out meanwhile
            with memory_for(trainer.device, _memory_advice(config)):
                _train(trainer, tokens, folder, watch)
        elif distributed.is_main():
            print(f"{folder}: all {trainer.position.epoch} epochs are done")
    return folder / LAST


def _train(
    trainer: TransformerTrainer,
    tokens: Tokens,
    folder: Path,
    watch: Watch | None,
) -> None:
    """All epochs that are left; the main process alone validates and writes."""
    position, settings = trainer.position, trainer.settings
    log = RunLog(folder, trainer.config, position.epoch) if distributed.is_main() else None
    peak = cached_peak(folder, trainer.device, trainer.dtype) if log else 1.0
    speed = Speed(training_flops(trainer.config.transformer), peak * trainer.world)
    with stop_signals() as stopping:
        if watch is not None:
            watch(trainer)
        while not trainer.finished or position.batch:
            _train_epoch(trainer, len(tokens.train), folder, stopping, speed, watch)
            numbers = {"train_loss": trainer.mean_loss(), "learning_rate": trainer.rate}
            numbers |= speed.epoch()
            position.next_epoch()
            validating = trainer.is_due(settings.validate_every)
            picturing = settings.pictures_every and position.epoch % settings.pictures_every == 0
            saving = trainer.is_due(settings.checkpoint_every) or picturing
            if log and validating:
                numbers |= _validate(trainer, tokens, folder)
            if log:
                log.epoch(position.epoch, numbers)
            if log and saving:
                save_loss_curve(folder / "loss_curve.png", log.rows())
            if saving:
                _save(trainer, folder)
            if log and picturing:
                log.picture("repairs", val_repairs(trainer.config), position.epoch)
    if log:
        log.close()
        best = f"epoch {position.best_epoch}, val loss {position.best_loss:.4f}"
        print(f"last weights: {folder / LAST}, epoch {position.epoch}")
        print(f"best weights: {folder / BEST}, {best}")


def _memory_advice(config: Config) -> str:
    """The settings of a run that need less memory when they are changed."""
    training = config.training
    advice = {
        f"a training.batch_size below {training.batch_size} with a training.accumulate above "
        f"{training.accumulate}, which trains alike": training.batch_size > 1,
        "training.checkpoint_activations: true": not training.checkpoint_activations,
        "transformer.attention: fused": config.transformer.attention == "plain",
        "precision: bf16": config.precision == "fp32",
    }
    return "; ".join(text for text, helps in advice.items() if helps) or "a smaller transformer"


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


def _train_epoch(
    trainer: TransformerTrainer,
    image_count: int,
    folder: Path,
    stopping: list[int],
    speed: Speed,
    watch: Watch | None,
) -> None:
    """The rest of the present epoch, with a progress bar."""
    position, settings = trainer.position, trainer.settings
    trainer.transformer.train()
    order = generator_for(trainer.config.seed, position.epoch)
    batches = shuffled_batches(image_count, trainer.batch_size, order, skip=position.batch)
    title, total = f"epoch {position.epoch + 1}/{settings.epochs}", trainer.batches_per_epoch
    quiet = not distributed.is_main()
    with tqdm(
        desc=title, total=total, initial=position.batch, dynamic_ncols=True, disable=quiet
    ) as bar:
        speed.pause()
        while trainer.time_share < 1.0 and (batch := next(batches, None)) is not None:
            trainer.accumulate(trainer.batches(batch, position.epoch, position.batch))
            speed.count(len(batch))
            bar.update()
            if trainer.group_is_full():
                trainer.take_step()
                if watch is not None:
                    watch(trainer)
                if trainer.may_agree() and trainer.agree(bool(stopping)):
                    _save(trainer, folder)
                    raise StopRequested(f"stopped in {title}, saved; go on with --resume")
            ends = position.batch == total or trainer.time_share == 1.0
            if position.batch % CHECK_EVERY == 0 or ends:
                _check(trainer, speed, bar)


def _check(trainer: TransformerTrainer, speed: Speed, bar: tqdm) -> None:
    """Show loss, learning rate and speed; stop when the loss is no longer finite."""
    loss = trainer.mean_loss()
    trainer.require_finite([loss], "training.learning_rate")
    images, mfu = speed.look()  # asking for the loss has waited for the device
    bar.set_postfix_str(
        f"loss {loss:.4f}, lr {trainer.rate:.1e}, {images:,.0f} images/s, MFU {mfu:.0%}"
    )


def _save(trainer: TransformerTrainer, folder: Path) -> None:
    """Write the averaged weights and the training state; all processes must call it at once."""
    state = trainer.state_dict()
    if distributed.is_main():
        _save_average(trainer, folder / LAST)
        save_state(folder / "state.pt", state)


def _validate(trainer: TransformerTrainer, tokens: Tokens, folder: Path) -> dict[str, float]:
    """Figures of the averaged weights, which are kept if none had a lower loss."""
    position = trainer.position
    network, val = trainer.averaged.module, tokens.val
    numbers = validate(network, val, trainer.device, trainer.dtype, tokens.val_seen)
    trainer.require_finite([numbers["val_loss"]], "training.learning_rate")
    if numbers["val_loss"] < position.best_loss:
        position.best_loss, position.best_epoch = numbers["val_loss"], position.epoch
        _save_average(trainer, folder / BEST)
    best = {"best_val_loss": position.best_loss, "best_epoch": position.best_epoch}
    return {**numbers, **best}


def _save_average(trainer: TransformerTrainer, path: Path) -> None:
    """Write the averaged weights with what is to be known about them."""
    notes = {"epoch": str(trainer.position.epoch), "seed": str(trainer.config.seed)}
    notes["codes_sha256"] = trainer.tokens.codes_sha256
    save_weights(path, trainer.averaged.module.state_dict(), trainer.config.transformer, notes)
