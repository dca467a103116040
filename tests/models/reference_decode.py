"""Both decode rules, slowly: one image at a time, plain Python numbers, loops that read like prose.

Written from the rules alone and sharing no code with models/decode.py. Noise is an input, so that
both sides may see the same: ``gumbel[t][i]`` perturbs the confidence of token i at step t, and
``uniform[t][i]`` in (0, 1) picks the sampled token by inverting its distribution.

A count such as ceil(0.3 * 10) is meant over real numbers: products within 1e-11 of an integer,
which is far more than rounding and far less than any genuine fraction here, are that integer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

Numbers = list[float]
LogitsOfImage = Callable[[list[int]], list[Numbers]]  # N ids, mask ids included -> N rows of K


class Settings(NamedTuple):
    rule: str
    schedule: str  # chosen for decoding
    model_schedule: str  # what the model was configured with
    total_iter: int
    sweet_spot: int  # steps to run
    temperature: float
    mask_id: int


class State(NamedTuple):
    """An image after a step: its tokens, with present guesses, and which are still hidden."""

    token_ids: list[int]
    hidden: list[bool]


def gamma(schedule: str, r: float) -> float:
    if schedule == "linear":
        return 1 - r
    if schedule == "cosine":
        return (1 + math.cos(math.pi * r)) / 2
    if schedule == "square":
        return 1 - r**2
    assert schedule == "maskgit_cosine"
    return math.cos(math.pi * r / 2)


def mapped_progress(schedule: str, q: float) -> float:
    """The listing's first curve: progress q -> r."""
    if schedule == "linear":
        return q
    if schedule == "cosine":
        return (1 + math.cos(math.pi * (1 - q))) / 2
    if schedule == "square":
        return q**2
    assert schedule == "maskgit_cosine"  # mirrored like the other three
    return 1 - math.cos(math.pi * q / 2)


def snapped(x: float) -> float:
    return float(round(x)) if abs(x - round(x)) < 1e-11 else x


def softmax(row: Numbers) -> Numbers:
    top = max(row)
    weights = [math.exp(x - top) for x in row]
    return [w / sum(weights) for w in weights]


def sampled(probabilities: Numbers, u: float) -> int:
    """The first token at which the running sum of probabilities reaches u."""
    running = 0.0
    for token, probability in enumerate(probabilities):
        running += probability
        if running >= u:
            return token
    return len(probabilities) - 1


def decode_image(
    logits_of: LogitsOfImage,
    token_ids: list[int],
    hidden: list[bool],
    settings: Settings,
    gumbel: list[Numbers],
    uniform: list[Numbers],
) -> list[State]:
    """Decode one image; returns its state after every step that is run."""
    token_ids, hidden = list(token_ids), list(hidden)
    hidden_at_start = sum(hidden)
    states = []
    for t in range(settings.sweet_spot):
        q = (t + 1) / settings.total_iter
        r = mapped_progress(settings.schedule, q) if settings.rule == "listing" else q
        temperature = settings.temperature * (1 - r)
        shown = [settings.mask_id if h else i for i, h in zip(token_ids, hidden, strict=True)]
        rows = logits_of(shown)
        confidence = {}
        for position in [p for p, h in enumerate(hidden) if h]:
            probabilities = softmax(rows[position])
            if settings.rule == "listing":
                token = probabilities.index(max(probabilities))
                trust = probabilities[token]
            else:
                token = sampled(probabilities, uniform[t][position])
                trust = math.log(probabilities[token])
            token_ids[position] = token
            confidence[position] = trust + temperature * gumbel[t][position]
        if settings.rule == "listing":
            stay = math.ceil(snapped(gamma(settings.model_schedule, r) * hidden_at_start))
        elif t + 1 == settings.total_iter:
            stay = 0
        else:
            share = math.floor(snapped(gamma(settings.schedule, r) * hidden_at_start))
            stay = max(1, min(sum(hidden) - 1, share))
        least_confident = sorted(confidence, key=confidence.__getitem__)[:stay]
        hidden = [position in least_confident for position in range(len(hidden))]
        states.append(State(list(token_ids), hidden))
    return states
