"""Repair one image and hand out every step as soon as it is there.

Shapes: B = 1 image, N tokens, K codebook size, M hidden tokens, H x W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Queue
from threading import Event, Thread

import numpy as np
import torch
from torch import Tensor

from config.schema import Config
from models.transformer import BidirectionalTransformer
from utils.inpainter import Inpainter


@dataclass(frozen=True)
class Step:
    """What one decode step left behind."""

    image: np.ndarray
    """The decoded image, uint8 (H, W, 3)."""
    hidden: np.ndarray
    """Tokens that are still hidden, bool (N,)."""
    confidence: np.ndarray
    """Probability of each token when it was last guessed, 0 to 1, (N,); NaN where known."""


class GoneError(Exception):
    """Nobody looks at this decoding any more."""


def repair(
    inpainter: Inpainter, config: Config, image: np.ndarray, hole: np.ndarray
) -> Iterator[Step]:
    """Decode image (H, W, 3) uint8 with hole (H, W) bool under the settings of ``config``.

    The networks run in a thread of their own, which ends soon after nobody asks for more.
    """
    steps: Queue[Step | Exception | None] = Queue()
    gone = Event()

    def tell(step: Step) -> None:
        if gone.is_set():
            raise GoneError
        steps.put(step)

    def work() -> None:
        try:
            _decode(inpainter, config, image, hole, tell)
            steps.put(None)
        except GoneError:
            pass
        except Exception as error:  # raised again where the steps are asked for
            steps.put(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while (step := steps.get()) is not None:
            if isinstance(step, Exception):
                raise step
            yield step
    finally:
        gone.set()
        thread.join()


class _Watch:
    """Turns what the transformer and the decode loop say into steps.

    As a forward hook of the transformer it keeps the logits (M, K) of the hidden tokens; as
    the loop's listener it looks up how probable the tokens were that the loop then chose.
    """

    def __init__(self, inpainter: Inpainter, image: np.ndarray, hole: np.ndarray) -> None:
        self.inpainter, self.image, self.hole = inpainter, image[None], hole[None]
        self.asked: Tensor | None = None  # (1, N), hidden when the logits were made
        self.logits: Tensor | None = None
        self.confidence: Tensor | None = None  # (N,)

    def keep(
        self, network: BidirectionalTransformer, given: tuple[Tensor, ...], made: Tensor
    ) -> None:
        """Forward hook: masked token ids (B, N) -> logits of hidden places, or of all.

        Only row 0 is no filling. All places, (B, N, K + 1), are seen where a pass holds several
        images, as on a GPU (models/maskgit.py).
        """
        self.asked = given[0][:1] == network.mask_token_id
        hidden = made[0, self.asked[0]] if made.ndim == 3 else made
        self.logits = hidden[:, :-1]

    def step(self, token_ids: Tensor, hidden: Tensor) -> Step:
        """The step that left these tokens (1, N), hidden ones (1, N) with their present guess."""
        if self.confidence is None:
            self.confidence = torch.full(token_ids.shape[1:], torch.nan)
        probabilities = self.logits.float().softmax(-1)
        chosen = probabilities.gather(1, token_ids[self.asked][:, None])[:, 0]
        self.confidence[self.asked[0].cpu()] = chosen.cpu()
        pixels = self.inpainter.pixels(token_ids, self.image, self.hole)
        return Step(pixels[0], hidden[0].cpu().numpy(), self.confidence.numpy().copy())


def _decode(
    inpainter: Inpainter,
    config: Config,
    image: np.ndarray,
    hole: np.ndarray,
    tell: Callable[[Step], None],
) -> None:
    """Run all steps on the inpainter's networks and tell of each."""
    variant = copy.copy(inpainter)  # shares the networks
    variant.config = config
    watch = _Watch(variant, image, hole)
    hook = inpainter.maskgit.transformer.register_forward_hook(watch.keep)
    try:
        variant(image[None], hole[None], [0], lambda _, *state: tell(watch.step(*state)))
    finally:
        hook.remove()
