"""Training data of stage 2: masked batches of cached tokens.

On a GPU this never syncs with the host: tokens stay in GPU memory and random numbers are drawn
there; only holes are drawn on the host, some batches ahead. All random numbers depend only on
(seed, epoch, batch), so a resumed run draws the same.
Shapes: n images, V views, B batch, N tokens, F features of a position, K codes of C channels.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from config.schema import Config
from models.masking import draw_ratio, draw_token_mask
from utils.data.augment import AS_IS, PLAIN_VIEWS
from utils.device import moved, rank, world_size
from utils.rng import generator_for

if TYPE_CHECKING:
    from utils.training.holed import HoledImages, Seen

MAX_RESIDENT_BYTES = 512 << 20  # of tokens in GPU memory; larger sets stay in the mapped file
AHEAD = 2  # batches whose holes are prepared while a GPU trains
MASK_STREAM = 0  # separates these random numbers from others of the same batch
ALL_BITS = 0xFFFF  # recovers a uint16 token from its int16 view


@dataclass(frozen=True)
class Tokens:
    """The tokens of a data set and their codes, without the tokenizer itself."""

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

    def fingerprint(self, split: Literal["train", "val"] = "train") -> str:
        """SHA-256 of a split's tokens, by which a resumed run or search recognises its data."""
        return hashlib.sha256(np.ascontiguousarray(getattr(self, split))).hexdigest()


class TokenBatch(NamedTuple):
    """The tensors of a training step."""

    targets: Tensor  # (B, N) int64, the clean tokens
    inputs: Tensor  # (B, N) int64, the input tokens before masking
    token_mask: Tensor  # (B, N) bool, True = hidden
    known: Tensor | None = None  # (B, N, F), for a transformer with conditioning

    def rows(self, part: slice) -> TokenBatch:
        """Some of the batch's images."""
        return TokenBatch(*(None if tensor is None else tensor[part] for tensor in self))

    def scored(self, loss_on: Literal["all", "hidden"]) -> Tensor:
        """Number of tokens that the loss covers, a scalar on the batch's device."""
        mask = self.token_mask
        return (torch.ones_like(mask) if loss_on == "all" else mask).sum()

    def weight_in(self, whole: TokenBatch, loss_on: Literal["all", "hidden"]) -> float | Tensor:
        """Weight of the mean loss of these rows in the mean over the whole batch."""
        if loss_on == "all":
            return len(self.token_mask) / len(whole.token_mask)
        return self.token_mask.sum() / whole.token_mask.sum().clamp(min=1)


class TokenBatches:
    """Makes batches from image indices, epoch and batch number.

    Under torchrun, of images with holes only this process's rows, or the first row if it has none.
    """

    def __init__(self, tokens: Tokens, config: Config, device: torch.device) -> None:
        self.holed, self.masking, self.seed = tokens.holed, config.masking, config.seed
        self.mirror, self.device = config.training.mirror, device
        views = tokens.train  # (n, V, N)
        fits = views.nbytes <= MAX_RESIDENT_BYTES and not self.holed  # holes are drawn on the host
        self.home = device if fits else torch.device("cpu")  # of tokens and random numbers
        self.views = torch.from_numpy(views.view(np.int16)).to(self.home)  # or the mapped file
        self.generator = torch.Generator(self.home)
        self.ahead = AHEAD if self.holed and device.type == "cuda" else 0

    def stream(self, image_ids: Iterable[Tensor], epoch: int, first: int) -> Iterator[TokenBatch]:
        """The batches of an epoch from number ``first`` on, with these image indices (B,) int64."""
        begun: deque[Callable[[], TokenBatch]] = deque()
        for number, ids in enumerate(image_ids, first):
            begun.append(self._begin(ids, epoch, number))
            if len(begun) > self.ahead:
                yield begun.popleft()()
        while begun:
            yield begun.popleft()()

    def __call__(self, image_ids: Tensor, epoch: int, batch: int) -> TokenBatch:
        """The batch of image indices (B,) int64, on the device."""
        return self._begin(image_ids, epoch, batch)()

    def _begin(self, image_ids: Tensor, epoch: int, batch: int) -> Callable[[], TokenBatch]:
        """Draw a batch; the returned function finishes it."""
        stream = generator_for(self.seed, epoch, batch, MASK_STREAM)
        self.generator.manual_seed(stream.initial_seed())
        image_ids = moved(image_ids, self.home)
        view = torch.full_like(image_ids, AS_IS)
        if self.mirror:
            size, count = image_ids.shape, self.views.shape[1]
            view = torch.randint(count, size, generator=self.generator, device=self.home)
        tokens = self.views.shape[2]
        token_mask = draw_token_mask(len(image_ids), tokens, self.masking, self.generator)
        if self.holed:
            return self._with_holes(self.holed, image_ids, view, token_mask)
        targets = moved(self.views[image_ids, view].long() & ALL_BITS, self.device)
        made = TokenBatch(targets, targets, moved(token_mask, self.device))
        return lambda: made

    def _with_holes(
        self, holed: HoledImages, image_ids: Tensor, view: Tensor, token_mask: Tensor
    ) -> Callable[[], TokenBatch]:
        """Draw a hole for a share of the images; the others miss whole patches.

        Known input tokens are those of the filled image. Some tokens of a drawn hole are already
        revealed, as during decoding, and are the true ones.
        """
        batch, tokens = token_mask.shape
        drawn = torch.rand(batch, generator=self.generator) < self.masking.hole_share
        left = torch.rand(batch, tokens, generator=self.generator)
        left = (left < draw_ratio(batch, self.masking, self.generator)) | ~drawn[:, None]
        own = slice(rank(), None, world_size()) if rank() < batch else slice(1)
        image_ids, view, drawn, left = image_ids[own], view[own], drawn[own], left[own]
        targets = self.views[image_ids, view].long() & ALL_BITS
        holes, seed = holed.of_patches(token_mask[own]), self.generator.initial_seed()
        see = holed.see(image_ids, view, drawn, seed, holes)

        def finish() -> TokenBatch:
            seen, own = see(), moved(targets, self.device)
            inputs = torch.where(seen.hidden, own, seen.token_ids)
            token_mask = seen.hidden & moved(left, self.device)
            return TokenBatch(own, inputs, token_mask, seen.known)

        return finish
