"""Iterative masked decoding: the loop (MaskGIT section 3.2).

Every decision is a pure function of its inputs. Each image keeps its own count of hidden tokens.
A rule says which token a position gets, with what confidence, and how many stay hidden
(`models/rules.py`); an order says which ones stay hidden (`models/orders.py`).

Shapes: B batch, N tokens, K codebook size, M hidden tokens of the whole batch, in row-major order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from config.schema import DecodingConfig
from models.orders import ORDERS, still_hidden
from models.rules import TOKEN_CHOICES, Step, hidden_count, noise_temperature, trust

# masked token ids (B, N), mask (B, N) and, where it is given, known (B, N, F) -> (M, K)
LogitsOf = Callable[..., Tensor]


class StepResult(NamedTuple):
    """The state of a batch after a decode step."""

    index: int  # t, from 0
    token_ids: Tensor  # (B, N), the current best guess where hidden
    hidden: Tensor  # (B, N) bool, still hidden
    confidence: Tensor  # (B, N) float64, before noise, when last chosen; NaN where known


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
    sample_ids: Tensor | None = None,
    known: Tensor | None = None,
) -> Iterator[StepResult]:
    """Fill the hidden tokens of each image, (B, N), and yield the result of each step.

    logits_of returns logits over the K codes at hidden positions, never for the mask id; it is
    called only with images whose input changed, so never with finished ones. image_ids (B,) int64
    and sample_ids (B,) int64, default 0, key the noise, so an image decodes alike in any batch.
    known (B, N, F), of `known_features`, is passed on to logits_of. Stops after `settings.steps`.
    """
    order, choose = ORDERS[settings.order], TOKEN_CHOICES[settings.token]
    sample_ids = torch.zeros_like(image_ids) if sample_ids is None else sample_ids
    hidden, previous = token_mask, None
    confidence = torch.full(hidden.shape, torch.nan, dtype=torch.float64, device=hidden.device)
    for index in range(settings.steps):
        if hidden.any():
            step = Step(index, settings, model_schedule, token_mask, seed, image_ids, sample_ids)
            masked_ids = token_ids.masked_fill(hidden, mask_token_id)
            inputs = (masked_ids, hidden) if known is None else (masked_ids, hidden, known)
            logits = cached_logits(logits_of, inputs, previous)
            previous = hidden, logits
            tokens = choose(logits, hidden, step)
            token_ids = token_ids.masked_scatter(hidden, tokens)
            trusts = trust(logits, tokens, step).double()
            confidence = confidence.masked_scatter(hidden, trusts)
            ranking, candidates = order(confidence, noise_temperature(step), hidden, step)
            hidden = still_hidden(ranking, candidates, hidden_count(hidden, step))
        yield StepResult(index, token_ids, hidden, confidence)


def cached_logits(
    logits_of: LogitsOf,
    inputs: tuple[Tensor, ...],
    previous: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Logits (M, K) float32 at hidden positions, computed only for images whose input changed.

    inputs: masked token ids (B, N), mask (B, N) and, where it is given, known (B, N, F).
    previous: the last step's mask (B, N) and its logits. An image with an unchanged mask has an
    unchanged input, since only hidden tokens ever change.
    """
    masked_ids, hidden = inputs[:2]
    if previous is None:
        previous = torch.zeros_like(hidden), masked_ids.new_empty(0, 1, dtype=torch.float32)
    hidden_before, logits_before = previous
    same = (hidden == hidden_before).all(1)  # (B,), finished images among them
    new = ~same & hidden.any(1)
    logits = logits_of(*(part[new] for part in inputs)).float() if new.any() else logits_before
    kept = same[hidden_before.nonzero()[:, 0]]  # (M before,)
    if not kept.any():
        return logits
    kept_now = same[hidden.nonzero()[:, 0]]  # (M,)
    merged = logits_before.new_empty(len(kept_now), logits_before.shape[1])
    merged[kept_now] = logits_before[kept]
    if new.any():
        merged[~kept_now] = logits
    return merged
