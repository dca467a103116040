"""Decode rules: five choices about a step, each from a table of options (docs/decoding.md).

A rule is a `RuleConfig`, one option from each table. `PROGRESS` is in models/step.py.

Shapes: B batch, N tokens, K codebook size, M hidden tokens of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.masking import gamma
from models.step import Step

ROUNDING = 1e-11  # keeps 0.30000000000000004 * 10 from counting as more than 3


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
