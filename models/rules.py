"""A step of iterative decoding, and decode rules: five choices about a step (docs/decoding.md).

A rule is a `RuleConfig`, one option from each table.

Shapes: B batch, N tokens, K codebook size, M hidden tokens of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from config.schema import DecodingConfig
from models.masking import gamma
from models.noise import CONFIDENCE_STREAM, ORDER_STREAM, TOKEN_STREAM, gumbel, uniform

ROUNDING = 1e-11  # keeps 0.30000000000000004 * 10 from counting as more than 3

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
        """Number of tokens hidden at the start, U in the report, (B,)."""
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


def g(step: Step) -> Tensor:
    """The chosen mask schedule at the step's progress, a float64 scalar."""
    return gamma(step.settings.mask_schedule, step.progress)


def floor(counts: Tensor) -> Tensor:
    """Rounded down, int64."""
    return (counts + ROUNDING).floor().long()


def ceil(counts: Tensor) -> Tensor:
    """Rounded up, int64."""
    return (counts - ROUNDING).ceil().long()


def two_curves(hidden: Tensor, step: Step) -> Tensor:
    """The report's code: the model's own gamma composed with the chosen one, (B, N) -> (B,)."""
    return ceil(gamma(step.model_schedule, 1 - g(step)) * step.hidden_at_start)


def paced(hidden: Tensor, step: Step) -> Tensor:
    """MaskGIT section 3.2: at least one fewer at each step, and one left for the last."""
    count = floor(g(step) * step.hidden_at_start).minimum(hidden.sum(1) - 1).clamp(min=1)
    return count * (not step.is_last)


# How many tokens of each image stay hidden: hidden (B, N) -> (B,) int64
HIDDEN_COUNTS: dict[str, Callable[[Tensor, Step], Tensor]] = {
    "two curves": two_curves,
    "paced": paced,
    "ceil(gU)": lambda hidden, step: ceil(g(step) * step.hidden_at_start),
    "floor(gU)": lambda hidden, step: floor(g(step) * step.hidden_at_start),
    "floor(gM)": lambda hidden, step: floor(g(step) * hidden.sum(1)),
    "floor(gN)": lambda hidden, step: floor(g(step) * torch.ones_like(hidden).sum(1)),
}

# Confidence in tokens before noise: logits (M, K), tokens (M, 1) -> (M, 1)
TRUSTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "p": lambda logits, tokens: logits.softmax(-1).gather(1, tokens),
    "log p": lambda logits, tokens: logits.log_softmax(-1).gather(1, tokens),
}

# Noise scale on confidences, multiplied by choice_temperature
NOISES: dict[str, Callable[[Step], float]] = {
    "1-q": lambda step: 1 - step.progress,
    "g": lambda step: float(g(step)),
    "1-g": lambda step: 1 - float(g(step)),
}


def argmax(logits: Tensor, hidden: Tensor, step: Step) -> Tensor:
    """The most probable token; ties go to the first."""
    return logits.argmax(-1)


def sample(logits: Tensor, hidden: Tensor, step: Step) -> Tensor:
    """Sample from the softmax at a temperature.

    By inverting the CDF at the position's uniform number, so a token depends only on its image's
    logits and noise.
    """
    cumulative = (logits.double() / step.settings.temperature).softmax(-1).cumsum(-1)
    u = step.token_noise()[hidden][:, None]
    return torch.searchsorted(cumulative, u * cumulative[:, -1:])[:, 0]


# Which token a hidden position gets: logits (M, K), hidden (B, N) -> (M,)
TOKEN_CHOICES: dict[str, Callable[[Tensor, Tensor, Step], Tensor]] = {
    "argmax": argmax,
    "sample": sample,
}


def hidden_count(hidden: Tensor, step: Step) -> Tensor:
    """How many tokens of each image stay hidden after the step, (B, N) -> (B,) int64."""
    return HIDDEN_COUNTS[step.settings.choices.hidden](hidden, step)


def trust(logits: Tensor, tokens: Tensor, step: Step) -> Tensor:
    """Confidence in each chosen token before noise, (M, K) and (M,) -> (M,)."""
    return TRUSTS[step.settings.choices.trust](logits, tokens[:, None])[:, 0]


def noise_temperature(step: Step) -> float:
    """Scale of the Gumbel noise on confidences at a step."""
    return step.settings.choice_temperature * NOISES[step.settings.choices.noise](step)
