"""What stage 2 learns from: cached token ids and, for conditioning, images with holes.

Shapes: n images, V views, N tokens, K codes of C channels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from config.errors import UserError
from config.schema import Config
from models.vqgan import VQGAN
from utils.data.datasets import split_images
from utils.data.holed_images import HoledImages, Seen, validation_views
from utils.tokens.cache import PLAIN_VIEWS, cached_tokens
from utils.weights.store import codes_fingerprint, load_tokenizer


@dataclass(frozen=True)
class Tokens:
    """What stage 2 learns from; the tokenizer itself is not part of it."""

    train: np.ndarray  # (n, V, N) uint16: images, their mirror images and augmented views
    val: np.ndarray  # (m, 2, N)
    codes: Tensor  # (K, C)
    codes_sha256: str  # of the tokenizer that they belong to
    holed: HoledImages | None = None  # the training images, for a transformer with conditioning
    val_seen: Seen | None = None  # the validation images with holes, likewise

    def frequency(self) -> Tensor:
        """Share of each code in the training images, none of them 0, (K,) like the codes."""
        plain = self.train[:, :PLAIN_VIEWS].ravel()
        counts = torch.from_numpy(np.bincount(plain, minlength=len(self.codes))).double() + 1
        return (counts / counts.sum()).to(self.codes.dtype)

    def fingerprint(self) -> str:
        """SHA-256 of what is trained on, by which a resumed run knows its images."""
        return hashlib.sha256(np.ascontiguousarray(self.train)).hexdigest()


def load_tokens(config: Config, device: torch.device) -> Tokens:
    """Cached tokens of both splits and the codes of the config's tokenizer, encoded on a device.

    Raises `UserError` for codes of another width than the transformer's prior has.
    """
    vqgan = load_tokenizer(config.tokenizer_weights, config.tokenizer)
    found, wanted = vqgan.config.latent_dim, config.transformer.prior_dim
    if wanted not in (0, found):
        raise UserError(
            f"{config.tokenizer_weights}: latent_dim is {found}, but transformer.prior_dim is "
            f"{wanted}; allowed are 0 and {found}"
        )
    cache, codes = config.data.token_cache, vqgan.codebook.vectors().detach().cpu().clone()
    fingerprint = codes_fingerprint(vqgan.codebook.embedding.weight)
    train, val = (cached_tokens(vqgan, config.data, s, cache, device) for s in ("train", "val"))
    holed = val_seen = None
    if config.transformer.conditioning == "pixels":
        holed, val_seen = _holed(config, vqgan, device)
    val = val[: config.training.validation_images]
    return Tokens(train, val, codes, fingerprint, holed, val_seen)


def _holed(config: Config, vqgan: VQGAN, device: torch.device) -> tuple[HoledImages, Seen]:
    """Training images to draw holes on, and validation images that have theirs."""
    train, val = (split_images(config.data, split) for split in ("train", "val"))
    val = val[: config.training.validation_images]
    seen = validation_views(HoledImages(val, PLAIN_VIEWS, vqgan, config, device))
    return HoledImages(train, config.data.views, vqgan, config, device), seen
