"""Iterative masked decoding: one step of either rule, and the loop (spec section 6).

Every decision is a pure function of its inputs. Each image keeps its own count of hidden tokens.

Shapes: B batch, N tokens, K codebook size, M hidden tokens of the whole batch, in row-major order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from config.errors import one_of
from config.schema import DecodingConfig
from models.masking import gamma
from models.noise import gumbel, uniform

CONFIDENCE_STREAM, TOKEN_STREAM = 0, 1
ROUNDING = 1e-11  # keeps 0.30000000000000004 * 10 from counting as more than 3

LogitsOf = Callable[[Tensor, Tensor], Tensor]  # masked token ids (B, N), mask (B, N) -> (M, K)
OnStep = Callable[[int, Tensor, Tensor], None]  # step, token ids (B, N), still hidden (B, N)


@dataclass(frozen=True)
class Step:
    """What a decode rule knows about step t, besides the logits."""

    index: int  # t, from 0
    settings: DecodingConfig
    model_schedule: str  # the gamma that the model was configured with
    hidden_at_start: Tensor  # (B,), U in the spec
    seed: int
    image_ids: Tensor  # (B,)

    @property
    def progress(self) -> float:
        """q = (t + 1) / T, in (0, 1]."""
        return (self.index + 1) / self.settings.total_iter

    def noise(self, stream: int, count: int) -> Tensor:
        """Gumbel noise of this step for every token, (B, count) float64."""
        return gumbel(self.seed, self.image_ids, self.index, stream, count)


Rule = Callable[[Tensor, Tensor, Step], tuple[Tensor, Tensor, Tensor]]


def listing(logits: Tensor, hidden: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """The report's code: argmax tokens, noise on the probability, two curves on top of each other.

    The chosen schedule maps progress q to r = 1 - gamma(q), then the model's own gamma is applied
    to r. Returns tokens (M,), confidences (M,) and the count that stays hidden (B,).
    """
    r = 1 - gamma(step.settings.mask_schedule, step.progress)
    probability, tokens = logits.softmax(-1).max(-1)
    temperature = step.settings.choice_temperature * (1 - r)
    noise = step.noise(CONFIDENCE_STREAM, hidden.shape[1])[hidden]
    kept = gamma(step.model_schedule, r).to(hidden.device) * step.hidden_at_start
    return tokens, probability + temperature * noise, (kept - ROUNDING).ceil().long()


def maskgit(logits: Tensor, hidden: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """MaskGIT section 3.2: sampled tokens, Gumbel noise on log p, one schedule.

    At least one more token of each image is revealed at each step, and at least one stays hidden
    until the last. Returns tokens (M,), confidences (M,) and the count that stays hidden (B,).
    """
    r = step.progress
    tokens = _sample(logits, step, hidden)
    log_p = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    temperature = step.settings.choice_temperature * (1 - r)
    noise = step.noise(CONFIDENCE_STREAM, hidden.shape[1])[hidden]
    share = gamma(step.settings.mask_schedule, r).to(hidden.device)
    kept = (share * step.hidden_at_start + ROUNDING).floor().long()
    kept = kept.minimum(hidden.sum(1) - 1).clamp(min=1)
    last = step.index + 1 == step.settings.total_iter
    return tokens, log_p + temperature * noise, kept * (not last)


RULES: dict[str, Rule] = {"listing": listing, "maskgit": maskgit}


def still_hidden(confidence: Tensor, hidden: Tensor, count: Tensor) -> Tensor:
    """The ``count`` least confident hidden tokens of each image, ties to the first, -> (B, N) bool.

    confidence: (B, N), +inf where known. count: (B,). Known tokens are never hidden again.
    """
    order = confidence.argsort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return (rank < count[:, None]) & hidden


def decode(
    logits_of: LogitsOf,
    token_ids: Tensor,
    token_mask: Tensor,
    settings: DecodingConfig,
    *,
    model_schedule: str,
    mask_token_id: int,
    seed: int,
    image_ids: Tensor,
    on_step: OnStep | None = None,
) -> Tensor:
    """Fill the hidden tokens of each image step by step, (B, N) -> (B, N).

    logits_of gives the logits of the K codes at hidden places, never of the mask id. image_ids
    (B,) int64 key the noise, so an image decodes alike in any batch. After each step, on_step gets
    the tokens, those still hidden with their present best guess. Stops at the sweet spot.
    """
    if settings.rule not in RULES:
        raise one_of("decoding.rule", settings.rule, RULES)
    hidden_at_start, hidden = token_mask.sum(1), token_mask
    for index in range(settings.sweet_spot or settings.total_iter):
        step = Step(index, settings, model_schedule, hidden_at_start, seed, image_ids)
        logits = logits_of(token_ids.masked_fill(hidden, mask_token_id), hidden).float()
        tokens, confidence, count = RULES[settings.rule](logits, hidden, step)
        token_ids = token_ids.masked_scatter(hidden, tokens)
        everywhere = torch.full(hidden.shape, torch.inf, dtype=torch.float64, device=hidden.device)
        hidden = still_hidden(everywhere.masked_scatter(hidden, confidence.double()), hidden, count)
        if on_step is not None:
            on_step(index, token_ids, hidden)
    return token_ids


def _sample(logits: Tensor, step: Step, hidden: Tensor) -> Tensor:
    """Draw a token for each row from its softmax by inverting the distribution, (M, K) -> (M,)."""
    u = uniform(step.seed, step.image_ids, step.index, TOKEN_STREAM, hidden.shape[1])[hidden]
    cumulative = logits.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, u[:, None] * cumulative[:, -1:])[:, 0]
