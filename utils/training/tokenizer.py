"""Stage 1: train the VQGAN (Esser et al. 2021, section 3.1; the report's eq. 2)."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Size, Tensor

from config.errors import UserError
from config.schema import Config, TokenizerConfig
from models.vqgan import VQGAN
from utils.data.augment import split_images
from utils.device import Compute, is_main
from utils.io.messages import note
from utils.training.run import run_alone, train
from utils.training.state import Opening, Resume
from utils.training.tokenizer_step import TokenizerTrainer
from utils.weights.store import load_tokenizer


def train_tokenizer(
    config: Config,
    *,
    resume: Resume,
    restart: bool = False,
    allow_config_change: bool = False,
    start: Path | None = None,
) -> Path:
    """Train stage 1 and return the weights file, <run>/tokenizer/vqgan.safetensors.

    It contains the averaged weights of the last epoch; best.safetensors next to it those of the
    smallest Frechet distance. resume, restart, ...: of `Opening`. start: the weights that a new run
    starts from. Errors: of `train`, and `UserError` for unusable data or weights.
    """
    config = _without_early_conditioning(config)
    folder, compute = config.run / "tokenizer", Compute.of(config)
    opening = Opening(resume, restart, allow_config_change)
    with run_alone(folder, compute.device):
        images, val = (split_images(config.data, split) for split in ("train", "val"))
        trainer = TokenizerTrainer(config, images, val, compute)

        def begin() -> None:
            if start is not None:
                trainer.start_from(tokenizer_to_start_from(start, config))
            elif config.tokenizer.training.decoder_only:
                raise UserError(
                    "tokenizer.training.decoder_only trains the decoder of given weights; name "
                    "them with --tokenizer FILE"
                )

        return train(trainer, folder, opening, begin)


def _without_early_conditioning(config: Config) -> Config:
    """The config, unconditioned if encoder and codebook are trained: holes hide finished tokens.

    Raises `UserError` where a transformer would sample tokens that nobody is shown.
    """
    section = config.tokenizer
    settings = section.training
    early = section.conditioned and not settings.decoder_only
    if settings.transformer and not section.conditioned:
        raise UserError(
            f"tokenizer.training.transformer {settings.transformer} draws tokens for holes, which "
            "only a decoder with conditioning is shown; set tokenizer.decoder_conditioning to "
            "pixels, or leave the key out"
        )
    if settings.transformer and early:
        raise UserError(
            f"tokenizer.training.transformer {settings.transformer} draws tokens of given weights; "
            "set tokenizer.training.decoder_only to true"
        )
    if not early:
        return config
    if is_main():
        note(
            "tokenizer.decoder_conditioning pixels is left out: encoder and codebook are trained "
            "first; with tokenizer.training.decoder_only the decoder learns it afterwards"
        )
    plain = section.model_copy(update={"decoder_conditioning": "none"})
    return config.model_copy(update={"tokenizer": plain})


def tokenizer_to_start_from(path: Path, config: Config) -> VQGAN:
    """Weights for the network that the config describes, from a file of it or of a smaller one.

    The smaller one may lack the decoder's conditioning, which starts without effect, or have
    narrower kernels, which are zero-padded. Neither changes an output (function-preserving growth;
    Chen et al. 2016, section 2).
    """
    found, wanted = load_tokenizer(path, config.tokenizer), config.tokenizer
    for name in TokenizerConfig.model_fields:
        old, new = getattr(found.config, name), getattr(wanted, name)
        wider = name == "encoder_kernels" and all(a <= b for a, b in zip(old, new, strict=True))
        grows = name == "decoder_conditioning" and new == "pixels"
        if old != new and not wider and not grows:
            cure = ""
            if name == "decoder_conditioning":
                cure = ", or trains more than the decoder; see tokenizer.training.decoder_only"
            raise UserError(f"{path}: {name} is {old}, but the config says {new}{cure}")
    network = VQGAN(wanted)
    own = network.state_dict()
    grown = {name: _grown(weight, own[name].shape) for name, weight in found.state_dict().items()}
    network.load_state_dict(own | grown)
    return network


def _grown(weight: Tensor, shape: Size) -> Tensor:
    """A weight, zero-padded on all sides to this shape (..., height, width)."""
    if weight.shape == shape:
        return weight
    margin = (shape[-1] - weight.shape[-1]) // 2
    return F.pad(weight, (margin,) * 4)
