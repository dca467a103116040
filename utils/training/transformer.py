"""Stage 2: train the transformer by masked visual token modelling (MaskGIT section 3.1)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from config.errors import UserError
from config.loading import flat
from config.schema import Config
from models.transformer import BidirectionalTransformer, with_conditioning
from utils import distributed
from utils.device import Compute
from utils.training.run import Callback, ignore, run_alone, train
from utils.training.state import STATE, Opening, Resume, open_state, settings_that_count
from utils.training.token_batches import Tokens
from utils.training.token_cache import cached_tokens
from utils.training.transformer_step import TransformerTrainer
from utils.weights.store import codes_fingerprint, load_tokenizer, load_transformer


def train_transformer(
    config: Config,
    *,
    resume: Resume,
    restart: bool = False,
    allow_config_change: bool = False,
    from_epoch: int | None = None,
    start: Path | None = None,
    tokens: Tokens | None = None,
    callback: Callback = ignore,
) -> Path:
    """Train stage 2 and return the weights file, <run>/transformer/transformer.safetensors.

    It contains the averaged weights of the last epoch, best.safetensors next to it those of the
    lowest validation loss. A time limit cuts the last epoch short.
    resume, restart, ...: see `Opening`. start: the weights that a new run starts from, with the
    config of `as_in_start`. tokens: the training data, by default the config's. callback: see
    `train`. Raises the errors of `train`, and `UserError` for unusable data or weights.
    """
    section = config.transformer.model_copy(update={"weights": None})  # the run makes its own
    config, folder = config.model_copy(update={"transformer": section}), config.run / "transformer"
    opening = Opening(resume, restart, allow_config_change, from_epoch)
    compute = Compute.of(config)
    with run_alone(folder, compute.device):
        with distributed.main_first(compute.device):
            tokens = tokens or load_tokens(config, compute.device)
        trainer = TransformerTrainer(config, tokens, compute)

        def begin() -> None:
            if start is not None:
                trainer.start_from(transformer_to_start_from(start, config))

        return train(trainer, folder, opening, begin, callback)


def check_opening(config: Config, opening: Opening) -> None:
    """Raise `UserError` if no training could continue or replace the run, whatever a search finds.

    Compares the settings that the search leaves alone, without reading images.
    """
    own = settings_that_count(flat(config, "seed", "data", "transformer", "masking", "training"))
    for key in ("training.learning_rate", *config.search.space):
        own.pop(key, None)
    auto = replace(opening, resume=opening.resume and "auto")  # prints nothing for a new run
    open_state(config.run / "transformer" / STATE, own, auto)


def transformer_to_start_from(path: Path, config: Config) -> BidirectionalTransformer:
    """The network of a file; it gets the conditioning of the config if it has none."""
    network, wanted = load_transformer(path, config.transformer), config.transformer
    if wanted.conditioning == "pixels" and network.config.conditioning == "none":
        network = with_conditioning(network, wanted.patch_size)
    return network


def as_in_start(config: Config, path: Path) -> Config:
    """The config with the architecture of the network that a run starts from."""
    network = transformer_to_start_from(path, config)
    like = network.config.model_dump(exclude={"dropout", "attention"})
    section = config.transformer.model_copy(update=like)
    return config.model_copy(update={"transformer": section})


def load_tokens(config: Config, device: torch.device) -> Tokens:
    """Cached tokens of both splits, encoded on a device, and the codes of the config's tokenizer.

    Raises `UserError` if the codes' width differs from that of the transformer's prior.
    """
    vqgan = load_tokenizer(config.tokenizer_weights, config.tokenizer)
    found, wanted = vqgan.config.latent_dim, config.transformer.prior_dim
    if wanted not in (0, found):
        raise UserError(
            f"{config.tokenizer_weights}: latent_dim is {found}, but transformer.prior_dim is "
            f"{wanted}; allowed are 0 and {found}"
        )
    data, count = config.data, config.training.validation_images
    codes = vqgan.codebook.vectors().detach().cpu().clone()
    fingerprint = codes_fingerprint(vqgan.codebook.embedding.weight)
    train, val = (
        cached_tokens(vqgan, data, split, data.token_cache, device) for split in ("train", "val")
    )
    holed = val_seen = None
    if config.transformer.conditioning == "pixels":
        from utils.training.holed import holed_splits  # few runs see pixels

        holed, val_seen = holed_splits(config, vqgan, device)
    return Tokens(train, val[:count], codes, fingerprint, holed, val_seen)
