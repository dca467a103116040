"""A loaded MaskGIT that repairs arrays of pixels.

Shapes: B batch, S samples of each image, R = B * S rows, N tokens, T steps, H x W pixels.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, SupportsIndex, TypeVar

import numpy as np
import torch
from fid.pixels import upright
from PIL import Image
from torch import Tensor

from config.schema import Config
from models.conditioning import known_pixels
from models.cpu_kernels import padded_groups
from models.decode import LogitsOf, StepResult
from models.maskgit import MaskGIT, Start
from models.parallel import one_thread, parallel_map
from utils.data.datasets import normalise, to_uint8
from utils.data.fill import composite, fill_hole
from utils.device import Compute, autocast, cast_weights
from utils.inpainting.pretrained import as_loaded, pretrained_config, pretrained_folder
from utils.io.images import as_hole, to_rgb
from utils.weights.store import load_tokenizer, load_transformer, require_tokens_of

BATCH_SIZES = {"cpu": 16, "cuda": 256}  # for batch_size auto
STEP_IMAGES = 4096  # most images of all steps and samples in a batch
WINDOW_ID = 1 << 32  # keeps the noise keys of windows apart from those of images
Picture = TypeVar("Picture", Image.Image, np.ndarray)


class Trace(NamedTuple):
    """The steps of a decoding: token ids (R, N) and masks (R, N) after every step."""

    token_ids: list[Tensor]
    hidden: list[Tensor]
    known: Tensor | None  # (R, 4, H, W), for a decoder with conditioning


class Inpainter:
    """A loaded MaskGIT that repairs images of the config's size."""

    def __init__(self, config: Config) -> None:
        """Load both networks; their files' descriptions overrule the config."""
        compute = Compute.of(config)
        self.device, self.dtype = compute.device, compute.dtype
        tokenizer = load_tokenizer(config.tokenizer_weights, config.tokenizer)
        transformer = load_transformer(config.transformer_weights, config.transformer)
        require_tokens_of(config.transformer_weights, config.tokenizer_weights, tokenizer)
        networks = {"tokenizer": tokenizer.config, "transformer": transformer.config}
        self.config = as_loaded(config, networks)
        self.maskgit = MaskGIT(tokenizer, transformer, config.masking.mask_schedule).eval()
        self.maskgit.to(self.device)
        for network in (transformer, tokenizer.post_quant_conv, tokenizer.decoder):
            cast_weights(network, self.dtype)  # the encoder stays in fp32
        tokenizer.to(memory_format=torch.channels_last)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, device: str | torch.device = "auto", seed: SupportsIndex = 0
    ) -> Inpainter:
        """Load networks from a folder or the Hub; raises `UserError` if there are none."""
        return cls(pretrained_config(pretrained_folder(name), device, seed))

    def with_config(self, config: Config) -> Inpainter:
        """An inpainter with the same networks and other settings."""
        networks = {part: getattr(self.config, part) for part in ("tokenizer", "transformer")}
        other = copy.copy(self)
        other.config = config.model_copy(update=networks)  # as loaded, whatever it says of them
        return other

    def __call__(self, image: Picture, mask: Picture) -> Picture:
        """Repair one picture of any size; returns the same type as ``image``.

        image: a PIL image, or (H, W, 3) uint8. mask: a PIL image or (H, W) uint8, 255 known and 0
        hole, or (H, W) bool, True = hole. Raises `UserError` if their sizes differ.
        """
        if isinstance(image, Image.Image):
            rgb = to_rgb(upright(image), "image")
            repaired = Image.fromarray(self(np.asarray(rgb), mask))
            repaired.info = rgb.info  # the colour profile
            return repaired
        return self.repair(image, as_hole(mask, image))

    def repair(self, image: np.ndarray, hole: np.ndarray) -> np.ndarray:
        """Fill the hole of one picture, (H, W, 3) uint8 and (H, W) bool, as inpainting.py does."""
        if hole.shape == (self.config.data.image_size,) * 2:
            filled = self.fill(image, hole)[None]
            token_ids = self.decode(filled, hole[None], [0], samples=1).token_ids[-1]
            return self.pixels(token_ids, image[None], hole[None])[0]
        rounds = self.repair_in_windows(image, hole, shows_rounds=False)
        (repaired,) = deque(rounds, maxlen=1)  # all of a large picture's would fill the memory
        return repaired

    def repair_in_windows(
        self,
        image: np.ndarray,
        hole: np.ndarray,
        image_id: int = 0,
        sample: int = 0,
        *,
        shows_rounds: bool,
    ) -> Iterator[np.ndarray]:
        """Yield a picture of any other size after every round of windows; the last is finished."""
        from utils.inpainting.windows import repair_in_windows  # only odd sizes need it

        side, width = self.config.data.image_size, self.config.decoding.feather_width
        decode = partial(self._decode_windows, image_id, sample)
        return repair_in_windows(image, hole, side, decode, width, shows_rounds)

    def trace(self, images: np.ndarray, holes: np.ndarray, image_ids: list[int]) -> Trace:
        """Fill the holes and decode, (B, H, W, 3) uint8 and (B, H, W) bool."""
        filled, samples = self.fill_all(images, holes), self.config.decoding.samples
        return self.decode(filled, holes, image_ids, samples)

    def fill(self, image: np.ndarray, hole: np.ndarray) -> np.ndarray:
        """The input of the tokenizer: an image with its hole filled, (H, W, 3) uint8."""
        return fill_hole(image, hole, self.config.decoding.hole_fill)

    def fill_all(self, images: np.ndarray, holes: np.ndarray) -> np.ndarray:
        """`fill` of images (B, H, W, 3) with holes (B, H, W)."""
        return np.stack([self.fill(*pair) for pair in zip(images, holes, strict=True)])

    def as_tensors(self, filled: np.ndarray, holes: np.ndarray) -> tuple[Tensor, Tensor]:
        """Normalised images (B, 3, H, W) and holes (B, H, W) on the device."""
        data, (pixels, where) = self.config.data, map(torch.from_numpy, (filled, holes))
        return normalise(pixels.to(self.device), data.mean, data.std), where.to(self.device)

    def known(self, images: np.ndarray, holes: np.ndarray) -> Tensor | None:
        """`known_pixels` of images (B, H, W, 3) with holes, for a decoder with conditioning."""
        if not self.config.tokenizer.conditioned:
            return None
        return known_pixels(*self.as_tensors(self.fill_all(images, holes), holes))

    def start(self, filled: np.ndarray, holes: np.ndarray) -> Start:
        """Encode filled images (B, H, W, 3) and mask their holes (B, H, W)."""
        with one_thread(), autocast(self.device, self.dtype):
            return self.maskgit.start(*self.as_tensors(filled, holes))

    def finish(
        self,
        start: Start,
        image_ids: list[int],
        samples: int = 1,
        first_sample: int = 0,
        logits_of: LogitsOf | None = None,
    ) -> Iterator[StepResult]:
        """`MaskGIT.finish` with the config's settings and seed; any thread may ask for a step."""
        steps = self.maskgit.finish(
            start,
            self.config.decoding,
            seed=self.config.seed,
            image_ids=torch.tensor(image_ids, device=self.device),
            samples=samples,
            first_sample=first_sample,
            logits_of=logits_of,
        )
        while True:  # both contexts change the thread, so they end before the caller goes on
            with one_thread(), autocast(self.device, self.dtype):
                step = next(steps, None)
            if step is None:
                return
            yield step

    @one_thread()
    def decode(
        self,
        filled: np.ndarray,
        holes: np.ndarray,
        image_ids: list[int],
        samples: int,
        first_sample: int = 0,
    ) -> Trace:
        """Decode filled images (B, H, W, 3); row b * samples + s is repair s of image b."""
        start = self.start(filled, holes)
        steps = self.finish(start, image_ids, samples, first_sample)
        token_ids, hidden = zip(*((step.token_ids, step.hidden) for step in steps), strict=True)
        known = None if start.pixels is None else start.pixels.repeat_interleave(samples, 0)
        return Trace(list(token_ids), list(hidden), known)

    def _decode_windows(
        self, image_id: int, sample: int, images: np.ndarray, holes: np.ndarray, numbers: list[int]
    ) -> np.ndarray:
        """Decode windows (B, S, S, 3) of one picture; their numbers key the noise."""
        decoded, size = [], self.batch_size
        ids = [image_id + number * WINDOW_ID for number in numbers]
        filled = self.fill_all(images, holes)
        for start in range(0, len(ids), size):
            part = slice(start, start + size)
            trace = self.decode(filled[part], holes[part], ids[part], 1, first_sample=sample)
            decoded.append(self.decoded(trace.token_ids[-1], trace.known))
        return np.concatenate(decoded)

    @torch.inference_mode()
    def decoded(self, token_ids: Tensor, known: Tensor | None) -> np.ndarray:
        """Decode token ids (n, N), with known pixels of the trace (n, 4, H, W) -> (n, H, W, 3)."""
        data, parts = self.config.data, (token_ids,) if known is None else (token_ids, known)
        width = max(self.config.tokenizer.decoder_channels)
        with one_thread(), autocast(self.device, self.dtype):  # which the size of groups depends on
            groups = zip(*(padded_groups(part, width) for part in parts), strict=True)
            decode = self.maskgit.tokenizer.decode
            images = parallel_map(lambda group: decode(*group), list(groups), self.device)
        pixels = [to_uint8(part, data.mean, data.std) for part in images]
        return torch.cat(pixels)[: len(token_ids)].cpu().numpy()

    def decoded_steps(self, steps: list[Tensor], known: Tensor | None) -> np.ndarray:
        """Decode the tokens after every step, T of (R, N) -> (T, R, H, W, 3) uint8.

        Images whose tokens did not change in a step are not decoded again.
        """
        token_ids = torch.stack(steps)  # (T, R, N)
        is_new = torch.ones(token_ids.shape[:2], dtype=torch.bool, device=token_ids.device)
        is_new[1:] = (token_ids[1:] != token_ids[:-1]).any(-1)
        place = torch.zeros(is_new.shape, dtype=torch.long, device=token_ids.device)
        place[is_new] = torch.arange(int(is_new.sum()), device=token_ids.device)
        latest = place.cummax(0).values  # places grow with the steps
        if known is not None:
            known = known[is_new.nonzero()[:, 1]]
        return self.decoded(token_ids[is_new], known)[latest.cpu().numpy()]

    def join(self, decoded: np.ndarray, image: np.ndarray, hole: np.ndarray) -> np.ndarray:
        """Join decoded pixels with the known ones as configured, (H, W, 3) uint8."""
        how = self.config.decoding
        return composite(decoded, image, hole, how.composite, how.feather_width)

    def pixels(self, token_ids: Tensor, images: np.ndarray, holes: np.ndarray) -> np.ndarray:
        """Decode token ids (B, N) and join each image with its known pixels, (B, H, W, 3)."""
        parts = zip(self.decoded(token_ids, self.known(images, holes)), images, holes, strict=True)
        return np.stack([self.join(*part) for part in parts])

    @property
    def batch_size(self) -> int:
        """Images per batch: as configured, or by device and the number of images per repair."""
        settings = self.config.decoding
        if settings.batch_size != "auto":
            return settings.batch_size
        shows_steps = settings.step_pictures or settings.animation != "none"
        held = settings.samples * (settings.total_iter if shows_steps else 1)
        return max(1, min(BATCH_SIZES[self.device.type], STEP_IMAGES // held))
