"""One step of iterative decoding: the inputs of rules, orders and token choices besides the logits.

Shapes: B batch, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from config.schema import DecodingConfig
from models.noise import gumbel, uniform

CONFIDENCE_STREAM, TOKEN_STREAM, ORDER_STREAM = 0, 1, 2

PROGRESS: dict[str, Callable[[int, int], float]] = {  # step t, iterations T -> q
    "(t+1)/T": lambda t, total: (t + 1) / total,
    "t/T": lambda t, total: t / total,
    "t/(T-1)": lambda t, total: t / (total - 1) if total > 1 else 1.0,
}


@dataclass(frozen=True)
class Step:
    """Step t of a batch of images, and its noise."""

    index: int  # t, from 0
    settings: DecodingConfig
    model_schedule: str  # the gamma that the model was configured with
    token_mask: Tensor  # (B, N), hidden at the start
    seed: int
    image_ids: Tensor  # (B,) int64
    sample_ids: Tensor  # (B,) int64, which repair of its image each row is

    @property
    def progress(self) -> float:
        """Progress q, in [0, 1]."""
        return PROGRESS[self.settings.choices.progress](self.index, self.settings.total_iter)

    @property
    def is_last(self) -> bool:
        """Whether this is the last of the T steps, which a sweet spot may cut off."""
        return self.index + 1 == self.settings.total_iter

    @property
    def hidden_at_start(self) -> Tensor:
        """Number of tokens hidden at the start, U in the spec, (B,)."""
        return self.token_mask.sum(1)

    def confidence_noise(self) -> Tensor:
        """Gumbel noise on confidences, (B, N) float64."""
        return gumbel(*self._key(CONFIDENCE_STREAM), self.sample_ids)

    def token_noise(self) -> Tensor:
        """Uniform numbers for sampling tokens, (B, N) float64 in (0, 1)."""
        return uniform(*self._key(TOKEN_STREAM), self.sample_ids)

    def order_noise(self) -> Tensor:
        """Uniform numbers for a random order, the same at every step, (B, N) float64."""
        seed, image_ids, _, stream, count = self._key(ORDER_STREAM)
        return uniform(seed, image_ids, 0, stream, count, self.sample_ids)

    def _key(self, stream: int) -> tuple[int, Tensor, int, int, int]:
        return self.seed, self.image_ids, self.index, stream, self.token_mask.shape[1]
