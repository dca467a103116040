"""Which token a hidden position gets: the most probable one, or one drawn from the softmax.

Shapes: B batch, N tokens, K codebook size, M hidden tokens of the whole batch, row by row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.step import Step

TokenChoice = Callable[[Tensor, Tensor, Step], Tensor]  # logits (M, K), hidden (B, N) -> (M,)


def argmax(logits: Tensor, hidden: Tensor, step: Step) -> Tensor:
    """The most probable token, the first of equals."""
    return logits.argmax(-1)


def sample(logits: Tensor, hidden: Tensor, step: Step) -> Tensor:
    """Draw from the softmax at a temperature, cut to the top k and the top p.

    One uniform number of the position inverts the distribution, so a token depends on nothing but
    its image's logits and noise.
    """
    settings = step.settings
    logits = logits.double() / settings.temperature
    if settings.top_k is not None or settings.top_p < 1:
        logits = logits.masked_fill(~among_top(logits, settings.top_k, settings.top_p), -torch.inf)
    cumulative = logits.softmax(-1).cumsum(-1)
    u = step.token_noise()[hidden][:, None]
    return torch.searchsorted(cumulative, u * cumulative[:, -1:])[:, 0]


TOKEN_CHOICES: dict[str, TokenChoice] = {"argmax": argmax, "sample": sample}


def among_top(logits: Tensor, top_k: int | None, top_p: float) -> Tensor:
    """Which tokens may be drawn, (M, K) -> (M, K) bool; of equals the first come first.

    Only the ``top_k`` most probable, and of those the fewest whose share of the probability reaches
    ``top_p`` (Holtzman et al. 2020).
    """
    ranked, order = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ranked[:, top_k:] = -torch.inf
    probability = ranked.softmax(-1)
    before = probability.cumsum(-1) - probability
    allowed = (before < top_p) & ranked.isfinite()
    return torch.zeros_like(allowed).scatter_(-1, order, allowed)
