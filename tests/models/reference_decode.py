"""Every way to decode, slowly: one image at a time, plain Python numbers, loops like prose.

Written from the rules alone and sharing no code with models/. Noise is an input, so that both sides
may see the same: ``gumbel[t][i]`` perturbs the confidence of token i at step t, ``uniform[t][i]``
in (0, 1) picks the sampled token by inverting its distribution, and ``priority[i]`` is the place
of token i in a random order, the lowest revealed last.

A count such as ceil(0.3 * 10) is meant over real numbers: products within 1e-11 of an integer,
which is far more than rounding and far less than any genuine fraction here, are that integer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import NamedTuple

Numbers = list[float]
LogitsOfImage = Callable[[list[int]], list[Numbers]]  # N ids, mask ids included -> N rows of K


class Rule(NamedTuple):
    progress: str
    hidden: str
    trust: str
    noise: str
    token: str


NAMED_RULES = {
    "listing": Rule("(t+1)/T", "two curves", "p", "g", "argmax"),
    "maskgit": Rule("(t+1)/T", "paced", "log p", "1-q", "sample"),
    "lab": Rule("(t+1)/T", "floor(gU)", "p", "1-g", "argmax"),
    "lab_ceil": Rule("(t+1)/T", "ceil(gU)", "p", "1-q", "argmax"),
    "lab_from_zero": Rule("t/T", "floor(gU)", "p", "1-g", "argmax"),
    "lab_remaining": Rule("(t+1)/T", "floor(gM)", "p", "1-g", "argmax"),
    "lab_sampled": Rule("(t+1)/T", "floor(gU)", "p", "1-g", "sample"),
}


class Settings(NamedTuple):
    rule: Rule
    schedule: str  # chosen for decoding
    model_schedule: str  # what the model was configured with
    total_iter: int
    sweet_spot: int  # steps to run
    temperature: float
    mask_id: int
    order: str = "confidence"
    token_choice: str = "rule"
    token_temperature: float = 1.0


class Noise(NamedTuple):
    gumbel: list[Numbers]
    uniform: list[Numbers]
    priority: Numbers


class State(NamedTuple):
    """An image after a step: its tokens, with present guesses, and which are still hidden."""

    token_ids: list[int]
    hidden: list[bool]


CLOSED_FORMS = {
    "linear": lambda r: 1 - r,
    "cosine": lambda r: (1 + math.cos(math.pi * r)) / 2,
    "square": lambda r: 1 - r**2,
    "maskgit_cosine": lambda r: math.cos(math.pi * r / 2) if r < 1 else 0.0,
    "sqrt": lambda r: 1 - math.sqrt(r),
    "constant": lambda r: float(r < 1),
}
ORDERS = ("confidence", "random", "halton", "revise")  # of `tokens_to_hide`


def gamma(schedule: str, r: float) -> float:
    return CLOSED_FORMS[schedule](r)


def mapped_progress(schedule: str, q: float) -> float:
    """The listing's first curve: progress q -> r."""
    if schedule == "linear":
        return q
    if schedule == "cosine":
        return (1 + math.cos(math.pi * (1 - q))) / 2
    if schedule == "square":
        return q**2
    return 1 - gamma(schedule, q)  # mirrored like the other three


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
    return max(range(len(probabilities)), key=lambda token: (probabilities[token] > 0, token))


def chosen(row: Numbers, settings: Settings, u: float) -> int:
    """The token that a row of logits becomes."""
    name = settings.token_choice
    if name == "rule":
        name = settings.rule.token
    if name == "argmax":
        return row.index(max(row))
    probabilities = softmax([x / settings.token_temperature for x in row])
    return sampled(probabilities, u)


@cache
def halton_visits(num_tokens: int) -> dict[int, int]:
    """When the Halton sequence, bases 3 down and 2 across, first visits each place."""
    side, visits, i = math.isqrt(num_tokens), {}, 0
    while len(visits) < num_tokens:
        i += 1
        row, column = (math.floor(side * van_der_corput(i, base)) for base in (3, 2))
        visits.setdefault(row * side + column, i)
    return visits


def van_der_corput(i: int, base: int) -> Fraction:
    """The digits of i mirrored at the point."""
    value, weight = Fraction(0), Fraction(1, base)
    while i:
        value += weight * (i % base)
        i, weight = i // base, weight / base
    return value


def tokens_to_hide(
    stay: int,
    hidden: list[bool],
    hidden_at_start: list[bool],
    trust: dict[int, float],
    temperature: float,
    gumbel: Numbers,
    priority: Numbers,
    order: str,
) -> list[int]:
    """The places that are hidden after a step."""
    places = [p for p, h in enumerate(hidden_at_start if order == "revise" else hidden) if h]
    if order == "random":
        return sorted(places, key=priority.__getitem__)[:stay]
    if order == "halton":
        visits = halton_visits(len(hidden))
        return sorted(places, key=visits.__getitem__)[max(0, len(places) - stay) :]
    confidence = {place: trust[place] + temperature * gumbel[place] for place in places}
    return sorted(places, key=confidence.__getitem__)[:stay]


def progress_of(name: str, t: int, total: int) -> float:
    if name == "(t+1)/T":
        return (t + 1) / total
    if name == "t/T":
        return t / total
    assert name == "t/(T-1)"
    return 1.0 if total == 1 else t / (total - 1)


def noise_scale(name: str, schedule: str, q: float) -> float:
    if name == "1-q":
        return 1 - q
    if name == "g":
        return gamma(schedule, q)
    assert name == "1-g"
    return 1 - gamma(schedule, q)


def count_to_hide(
    settings: Settings, t: int, q: float, at_start: int, now: int, everything: int
) -> int:
    """How many tokens of an image stay hidden after step t."""
    name, share = settings.rule.hidden, gamma(settings.schedule, q)
    if name == "two curves":
        r = mapped_progress(settings.schedule, q)
        return math.ceil(snapped(gamma(settings.model_schedule, r) * at_start))
    if name == "ceil(gU)":
        return math.ceil(snapped(share * at_start))
    if name == "floor(gU)":
        return math.floor(snapped(share * at_start))
    if name == "floor(gM)":
        return math.floor(snapped(share * now))
    if name == "floor(gN)":
        return math.floor(snapped(share * everything))
    assert name == "paced"
    if t + 1 == settings.total_iter:
        return 0
    return max(1, min(now - 1, math.floor(snapped(share * at_start))))


def decode_image(
    logits_of: LogitsOfImage,
    token_ids: list[int],
    hidden: list[bool],
    settings: Settings,
    noise: Noise,
) -> list[State]:
    """Decode one image; returns its state after every step that is run."""
    token_ids, hidden = list(token_ids), list(hidden)
    hidden_at_start, count_at_start = list(hidden), sum(hidden)
    trust: dict[int, float] = {}
    states = []
    for t in range(settings.sweet_spot):
        q = progress_of(settings.rule.progress, t, settings.total_iter)
        temperature = settings.temperature * noise_scale(settings.rule.noise, settings.schedule, q)
        shown = [settings.mask_id if h else i for i, h in zip(token_ids, hidden, strict=True)]
        rows = logits_of(shown)
        for place in [p for p, h in enumerate(hidden) if h]:
            token = chosen(rows[place], settings, noise.uniform[t][place])
            probability = softmax(rows[place])[token]
            token_ids[place] = token
            is_log = settings.rule.trust == "log p"
            trust[place] = math.log(probability) if is_log else probability
        stay = count_to_hide(settings, t, q, count_at_start, sum(hidden), len(hidden))
        to_hide = tokens_to_hide(
            stay,
            hidden,
            hidden_at_start,
            trust,
            temperature,
            noise.gumbel[t],
            noise.priority,
            settings.order,
        )
        hidden = [place in to_hide for place in range(len(hidden))]
        states.append(State(list(token_ids), hidden))
    return states
