"""Iterative masked decoding: the two rules, and the loop (spec section 6).

Every decision is a pure function of its inputs. Each image keeps its own count of hidden tokens.
A rule says how much a token is trusted and how many stay hidden, a token choice which token it is
(`models/token_choice.py`), an order which ones stay hidden (`models/orders.py`).

Shapes: B batch, N tokens, K codebook size, M hidden tokens of the whole batch, in row-major order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from config.errors import one_of
from config.schema import DecodingConfig
from models.masking import gamma
from models.orders import ORDERS, still_hidden
from models.step import Step, one_sample
from models.token_choice import TOKEN_CHOICES

ROUNDING = 1e-11  # keeps 0.30000000000000004 * 10 from counting as more than 3

LogitsOf = Callable[[Tensor, Tensor], Tensor]  # masked token ids (B, N), mask (B, N) -> (M, K)
OnStep = Callable[[int, Tensor, Tensor], None]  # step, token ids (B, N), still hidden (B, N)
Entry = TypeVar("Entry")


class Verdict(NamedTuple):
    """What a rule says about the tokens chosen at a step."""

    confidence: Tensor  # (M,), how much each is trusted, without noise
    temperature: Tensor | float  # scale of the noise on confidences
    kept: Tensor  # (B,) int64, how many tokens stay hidden


Rule = Callable[[Tensor, Tensor, Tensor, Step], Verdict]


def listing(logits: Tensor, tokens: Tensor, hidden: Tensor, step: Step) -> Verdict:
    """The report's code: trust is the probability, and two curves lie on top of each other.

    The chosen schedule maps progress q to r = 1 - gamma(q), then the model's own gamma is applied
    to r. logits: (M, K), tokens: (M,), hidden: (B, N).
    """
    r = 1 - gamma(step.settings.mask_schedule, step.progress)
    probability = logits.softmax(-1).gather(1, tokens[:, None])[:, 0]
    kept = gamma(step.model_schedule, r).to(hidden.device) * step.hidden_at_start
    temperature = step.settings.choice_temperature * (1 - r)
    return Verdict(probability, temperature, (kept - ROUNDING).ceil().long())


def maskgit(logits: Tensor, tokens: Tensor, hidden: Tensor, step: Step) -> Verdict:
    """MaskGIT section 3.2: trust is log p(token), one schedule.

    At least one more token of each image is revealed at each step, and at least one stays hidden
    until the last. logits: (M, K), tokens: (M,), hidden: (B, N).
    """
    r = step.progress
    log_p = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    share = gamma(step.settings.mask_schedule, r).to(hidden.device)
    kept = (share * step.hidden_at_start + ROUNDING).floor().long()
    kept = kept.minimum(hidden.sum(1) - 1).clamp(min=1)
    temperature = step.settings.choice_temperature * (1 - r)
    return Verdict(log_p, temperature, kept * (not step.is_last))


RULES: dict[str, Rule] = {"listing": listing, "maskgit": maskgit}
OWN_CHOICE = {"listing": "argmax", "maskgit": "sample"}  # where token_choice is "rule"


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
    on_step: OnStep | None = None,
) -> Tensor:
    """Fill the hidden tokens of each image step by step, (B, N) -> (B, N).

    logits_of gives the logits of the K codes at hidden places, never of the mask id; it is called
    only with images whose input is new, so never with finished ones. image_ids (B,) int64 and
    sample_ids (B,) int64, 0 unless given, key the noise, so an image decodes alike in any batch.
    After each step, on_step gets the tokens, those still hidden with their present best guess.
    Stops after `settings.steps`. Raises `UserError` for an unknown rule, order or token choice.
    """
    rule = _look_up("rule", settings.rule, RULES)
    order = _look_up("order", settings.order, ORDERS)
    own = settings.token_choice == "rule"
    name = OWN_CHOICE[settings.rule] if own else settings.token_choice
    choose = _look_up("token_choice", name, TOKEN_CHOICES)
    sample_ids = one_sample(image_ids) if sample_ids is None else sample_ids
    hidden, before = token_mask, None
    confidence = torch.zeros(hidden.shape, dtype=torch.float64, device=hidden.device)
    for index in range(settings.steps):
        if hidden.any():
            step = Step(index, settings, model_schedule, token_mask, seed, image_ids, sample_ids)
            masked_ids = token_ids.masked_fill(hidden, mask_token_id)
            logits = new_or_same(logits_of, masked_ids, hidden, before)
            before = hidden, logits
            tokens = choose(logits, hidden, step)
            verdict = rule(logits, tokens, hidden, step)
            token_ids = token_ids.masked_scatter(hidden, tokens)
            confidence = confidence.masked_scatter(hidden, verdict.confidence.double())
            ranking, candidates = order(confidence, verdict.temperature, hidden, step)
            hidden = still_hidden(ranking, candidates, verdict.kept)
        if on_step is not None:
            on_step(index, token_ids, hidden)
    return token_ids


def new_or_same(
    logits_of: LogitsOf,
    masked_ids: Tensor,
    hidden: Tensor,
    before: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Logits (M, K) float32 at the hidden places, computed only for images whose input changed.

    before: the last step's mask (B, N) and its logits. An image that hides what it hid then shows
    the transformer what it showed then, since only hidden tokens are ever decided.
    """
    if before is None:
        before = torch.zeros_like(hidden), masked_ids.new_empty(0, 1, dtype=torch.float32)
    hidden_before, logits_before = before
    same = (hidden == hidden_before).all(1)  # (B,), finished images among them
    new = ~same & hidden.any(1)
    logits = logits_of(masked_ids[new], hidden[new]).float() if new.any() else logits_before
    kept = same[hidden_before.nonzero()[:, 0]]  # (M before,)
    if not kept.any():
        return logits
    kept_now = same[hidden.nonzero()[:, 0]]  # (M,)
    merged = logits_before.new_empty(len(kept_now), logits_before.shape[1])
    merged[kept_now] = logits_before[kept]
    if new.any():
        merged[~kept_now] = logits
    return merged


def _look_up(key: str, name: str, known: Mapping[str, Entry]) -> Entry:
    if name not in known:
        raise one_of(f"decoding.{key}", name, known)
    return known[name]
