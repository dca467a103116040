"""Images with holes, filled and encoded, for networks that see known pixels.

Stage 2 trains on the known pixels of filled images (`HoledImages`). Stage 1 trains a decoder on
filled images (`HoledBatches`): in some a transformer samples the hidden tokens, as in a repair, so
that the decoder learns to correct its errors; the others have the true tokens. Every epoch draws
new holes for each image.
Shapes: n images, B batch, N tokens, h x w token grid, F features, H x W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from config.schema import Config
from models.conditioning import known_features, known_pixels
from models.cpu_kernels import padded_groups
from models.maskgit import MaskGIT
from models.masking import token_mask_from_holes
from models.parallel import parallel_map
from models.vqgan import VQGAN, full_fp32
from utils.data.augment import PLAIN_VIEWS, Views, split_images
from utils.data.datasets import normalise
from utils.data.holes import begin_filling
from utils.device import Compute, autocast, cast_weights, moved
from utils.io.files import content_hash
from utils.training.state import FINGERPRINT
from utils.weights.store import load_transformer, require_tokens_of

SAMPLER = "weights of the sampling transformer"
VAL_SEED = 2022  # of the validation holes, independent of the run's seed
AT_ONCE = {"cpu": 16, "cuda": 512}  # images encoded at once
ITERATIONS = 3  # of sampling tokens; fewer than in a repair, since it happens at every step
SAMPLING = (  # keys of decoding that sampled tokens depend on
    *("rule", "mask_schedule", "choice_temperature", "order", "token_choice", "temperature"),
)


class Seen(NamedTuple):
    """Encoded images with holes."""

    token_ids: Tensor  # (B, N) int64, of the filled images
    known: Tensor  # (B, N, F) float32
    hidden: Tensor  # (B, N) bool, tokens with a pixel in the hole

    def rows(self, part: slice) -> Seen:
        """Some of the images."""
        return Seen(*(tensor[part] for tensor in self))


class HoledImages:
    """Images in all their views, to be given holes."""

    def __init__(
        self, images: Tensor, views: int, vqgan: VQGAN, config: Config, device: torch.device
    ) -> None:
        """images: (n, 3, H, W) uint8. views: of each, as in the token cache."""
        self.views = Views(images, views)
        if device.type == "cuda":
            self.views.keep(device)
        self.vqgan = vqgan.to(device, memory_format=torch.channels_last)
        self.config, self.device, self.side = config, device, images.shape[-1]

    def part(self, rows: np.ndarray) -> HoledImages:
        """Some of the images."""
        few = copy.copy(self)
        few.views = self.views.part(rows)
        return few

    def of_patches(self, token_mask: Tensor) -> Tensor:
        """Holes of whole patches, (B, N) bool -> (B, H, W) bool."""
        patch = self.config.transformer.patch_size
        grid = self.side // patch
        rows = token_mask.unflatten(1, (grid, grid)).repeat_interleave(patch, 1)
        return rows.repeat_interleave(patch, 2)

    def see(
        self, image_ids: Tensor, views: Tensor, drawn: Tensor, seed: int, holes: Tensor
    ) -> Callable[[], Seen]:
        """Start filling holes in views (B,) of images (B,); the returned function encodes them.

        Where ``drawn`` (B,) bool is True a hole is drawn, the others get ``holes`` (B, H, W).
        """
        filled = begin_filling(
            self.views.pick(image_ids, views).permute(0, 2, 3, 1).numpy(),
            holes.numpy(),
            torch.where(drawn, image_ids, -1).numpy(),
            (self.config.data.hole_kind, self.config.decoding.hole_fill, seed),
            in_processes=self.device.type == "cuda",
        )

        @torch.no_grad()
        def seen() -> Seen:
            size = AT_ONCE[self.device.type]
            parts = zip(*(torch.from_numpy(rows).split(size) for rows in filled()), strict=True)
            encoded = [self._encode(*part) for part in parts]
            return Seen(*(torch.cat(tensors) for tensors in zip(*encoded, strict=True)))

        return seen

    def _encode(self, filled: Tensor, holes: Tensor) -> Seen:
        """Encode filled images and their holes, (B, H, W, 3) and (B, H, W)."""
        data, network = self.config.data, self.config.transformer
        filled, holes = moved(filled, self.device), moved(holes, self.device)
        pixels, codebook = normalise(filled, data.mean, data.std), self.vqgan.codebook
        with full_fp32(self.device):
            latents = self.vqgan.latents(pixels)
            token_ids = codebook.nearest(latents).flatten(1)
        known = known_features(pixels, holes, latents, codebook.vectors(), network)
        return Seen(token_ids, known, token_mask_from_holes(holes, latents.shape[1]))


def holed_splits(config: Config, vqgan: VQGAN, device: torch.device) -> tuple[HoledImages, Seen]:
    """Training images to draw holes in, and validation images with fixed holes."""
    train, val = (split_images(config.data, split) for split in ("train", "val"))
    val = val[: config.training.validation_images]
    seen = validation_views(HoledImages(val, PLAIN_VIEWS, vqgan, config, device))
    return HoledImages(train, config.data.views, vqgan, config, device), seen


def validation_views(images: HoledImages) -> Seen:
    """All images in their plain view, each with a hole that is the same in every run."""
    image_ids = torch.arange(len(images.views))
    as_they_are, all_of_them = torch.zeros_like(image_ids), image_ids >= 0
    none_given = torch.zeros(len(image_ids), images.side, images.side, dtype=torch.bool)
    return images.see(image_ids, as_they_are, all_of_them, VAL_SEED, none_given)()


class Holed(NamedTuple):
    """Images with holes, and the tokens to decode."""

    holes: Tensor  # (B, H, W) bool
    known: Tensor  # (B, 4, H, W) of `known_pixels`
    token_ids: Tensor  # (B, h, w) int64


class HoledBatches:
    """Draws and fills a hole in every image, and samples the hidden tokens of some."""

    def __init__(self, config: Config, compute: Compute, sampled_share: float) -> None:
        """sampled_share: of images whose hidden tokens the transformer, if any, samples."""
        self.config, self.sampled_share = config, sampled_share
        self.device, self.dtype = compute.device, compute.dtype
        self.path = config.tokenizer.training.transformer
        self.transformer = None
        if self.path is not None:
            self.transformer = load_transformer(self.path, config.transformer).to(self.device)
            cast_weights(self.transformer, self.dtype)
        self.maskgit: MaskGIT | None = None  # made once the encoder has its weights

    def settings(self) -> dict[str, Any]:
        """All that holes and tokens depend on besides images and tokenizer."""
        sampling = SAMPLING if self.path is not None else ()
        decoding = self.config.decoding.model_dump(mode="json", include={"hole_fill", *sampling})
        settings = {f"decoding.{key}": value for key, value in decoding.items()}
        if self.path is None:
            return settings | {SAMPLER: None}
        settings["masking.mask_schedule"] = self.config.masking.mask_schedule
        return settings | {SAMPLER: content_hash([self.path])[:FINGERPRINT]}

    @torch.no_grad()
    def __call__(
        self, vqgan: VQGAN, images: Tensor, rows: Sequence[int], generator: torch.Generator
    ) -> Holed:
        """Holes and tokens for images (B, 3, H, W) in 0..1.

        All random numbers depend on the generator's seed and an image's row in the global batch.
        """
        seed, data = generator.initial_seed(), self.config.data
        pixels = (255 * images).round().byte()
        shown = pixels.permute(0, 2, 3, 1).cpu().numpy()
        made = begin_filling(
            shown,
            np.zeros(shown.shape[:3], bool),
            np.array(rows),
            (data.hole_kind, self.config.decoding.hole_fill, seed),
            in_processes=self.device.type == "cuda",
        )
        whole = normalise(pixels, data.mean, data.std)
        with full_fp32(self.device):
            parts = parallel_map(vqgan.encode, padded_groups(whole), self.device)
        token_ids = torch.cat(parts)[: len(whole)]
        filled, holes = (moved(torch.from_numpy(part), self.device) for part in made())
        filled = normalise(filled, data.mean, data.std)
        numbers = torch.tensor(rows, device=self.device)
        uniform = torch.rand(max(rows) + 1, generator=generator).to(self.device)
        drawn = uniform[numbers] < self.sampled_share
        if self.transformer is not None and drawn.any():
            parts = filled[drawn], holes[drawn], numbers[drawn]
            token_ids[drawn] = self._draw(vqgan, *parts, seed)
        side = round(token_ids.shape[1] ** 0.5)
        return Holed(holes, known_pixels(filled, holes), token_ids.unflatten(1, (side, side)))

    def _draw(
        self, vqgan: VQGAN, filled: Tensor, holes: Tensor, image_ids: Tensor, seed: int
    ) -> Tensor:
        """Tokens of repairs, (B, 3, H, W) normalised, (B, H, W) and (B,) -> (B, N)."""
        if self.maskgit is None:  # a copy, since a MaskGIT freezes its tokenizer
            require_tokens_of(self.path, self.config.tokenizer_weights, vqgan)
            schedule = self.config.masking.mask_schedule
            self.maskgit = MaskGIT(copy.deepcopy(vqgan), self.transformer, schedule).eval()
        few = {"total_iter": ITERATIONS, "sweet_spot": None}
        settings = self.config.decoding.model_copy(update=few)
        with autocast(self.device, self.dtype):  # as the rounded weights need, in validation too
            start = self.maskgit.start(filled, holes)
            *_, last = self.maskgit.finish(start, settings, seed=seed, image_ids=image_ids)
        return last.token_ids
