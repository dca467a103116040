"""Decode rules: against the slow reference, by algebra, and what must never happen."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from config.decoding import RULES, RuleConfig, RuleName
from config.schema import DecodingConfig
from models.decode import cached_logits, decode
from models.masking import MASK_SCHEDULES
from models.orders import ORDERS
from models.rules import (
    HIDDEN_COUNTS,
    NOISES,
    PROGRESS,
    TOKEN_CHOICES,
    TRUSTS,
    Step,
    noise_temperature,
)

from .reference_decode import NAMED_RULES, Noise, Rule, Settings, State, decode_image
from .reference_decode import ORDERS as REFERENCE_ORDERS

SCHEDULES = sorted(MASK_SCHEDULES)
PAPERS = ("listing", "maskgit")  # the report's rule and the paper's
TEMPERATURES = (0.0, 0.3, 4.5)
CHOICES = ("rule", *TOKEN_CHOICES)
SQUARES = (4, 9, 16, 25, 36, 49, 64)


class LinearModel:
    """Logits that depend on every token linearly: a mixing of positions after a lookup.

    Computed in float64 and rounded to float32 once, so that both sides get equal numbers.
    """

    def __init__(self, num_tokens: int, codebook_size: int, rng: np.random.Generator) -> None:
        self.mixing = 2 * rng.normal(size=(num_tokens, num_tokens)) / num_tokens**0.5
        self.table = rng.normal(size=(codebook_size + 1, codebook_size))

    def image(self, token_ids: list[int]) -> list[list[float]]:
        return (self.mixing @ self.table[token_ids]).astype(np.float32).tolist()

    def batch(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        return torch.tensor([self.image(row) for row in token_ids.tolist()])[mask]


def run_decode(
    logits_of: Callable[[Tensor, Tensor], Tensor],
    token_ids: Tensor,
    mask: Tensor,
    settings: DecodingConfig,
    *,
    codebook_size: int,
    model_schedule: str = "cosine",
    seed: int = 0,
    image_ids: Tensor | None = None,
    sample_ids: Tensor | None = None,
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Decode a batch; returns the tokens, and tokens and masks after every step."""
    steps = decode(
        logits_of,
        token_ids,
        mask,
        settings,
        model_schedule=model_schedule,
        mask_token_id=codebook_size,
        seed=seed,
        image_ids=torch.arange(len(token_ids)) if image_ids is None else image_ids,
        sample_ids=sample_ids,
    )
    seen = [(step.token_ids, step.hidden) for step in steps]
    return seen[-1][0], seen


def hole(kind: str, num_tokens: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "one":
        return np.arange(num_tokens) == rng.integers(num_tokens)
    share = {"none": 0.0, "all": 1.1}.get(kind, rng.uniform())
    return rng.random(num_tokens) < share


def random_settings(
    rule: str | RuleConfig, schedule: str, rng: np.random.Generator, order: str = "confidence"
) -> DecodingConfig:
    """Any T from 1 to 300, most of them small, any sweet spot up to it or none, any way to draw."""
    total = int(rng.choice([1, 2, 3, 5, 8, 10, 20, rng.integers(1, 41)]))
    return DecodingConfig(
        rule=rule,
        mask_schedule=schedule,
        total_iter=total,
        sweet_spot=None if rng.random() < 0.3 else int(rng.integers(1, total + 1)),
        choice_temperature=float(rng.choice(TEMPERATURES)),
        order=order,
        token_choice=rng.choice(CHOICES),
        temperature=float(rng.choice([0.5, 1.0, 1.7])),
    )


def order_at(*place: int) -> str:
    """Each order in turn, so that all meet every rule and every schedule or sweet spot."""
    return REFERENCE_ORDERS[sum(place) % len(REFERENCE_ORDERS)]


def noise_of(
    settings: DecodingConfig,
    steps: int,
    seed: int,
    mask: Tensor,
    image_id: Tensor,
    sample_id: Tensor,
) -> Noise:
    """All random numbers of one image."""
    own = settings, "cosine", mask, seed, image_id, sample_id
    all_steps = [Step(t, *own) for t in range(steps)]
    return Noise(
        [step.confidence_noise()[0].tolist() for step in all_steps],
        [step.token_noise()[0].tolist() for step in all_steps],
        all_steps[-1].order_noise()[0].tolist(),
    )


def as_plain(settings: DecodingConfig, model_schedule: str, steps: int, codes: int) -> Settings:
    """The same settings in the reference's own form."""
    is_named = isinstance(settings.rule, str)
    return Settings(
        NAMED_RULES[settings.rule] if is_named else Rule(**settings.rule.model_dump()),
        settings.mask_schedule,
        model_schedule,
        settings.total_iter,
        steps,
        settings.choice_temperature,
        codes,
        settings.order,
        settings.token_choice,
        settings.temperature,
    )


def assert_decodes_like_the_reference(
    settings: DecodingConfig, model_schedule: str, rng: np.random.Generator, max_tokens: int = 64
) -> None:
    """A batch of ragged holes, step by step against one image at a time."""
    tokens = int(rng.choice([n for n in SQUARES if n <= max_tokens]))
    codes = int(rng.integers(2, 13))
    batch, seed = int(rng.integers(1, 6)), int(rng.integers(2**40))
    kinds = rng.choice(["none", "one", "all", "ragged", "ragged"], size=batch)
    mask = torch.tensor(np.stack([hole(kind, tokens, rng) for kind in kinds]))
    token_ids = torch.tensor(rng.integers(codes, size=(batch, tokens)))
    image_ids = torch.tensor(rng.integers(10**6, size=batch))
    sample_ids = torch.tensor(rng.integers(3, size=batch))
    model = LinearModel(tokens, codes, rng)
    decoded, seen = run_decode(
        model.batch,
        token_ids,
        mask,
        settings,
        codebook_size=codes,
        model_schedule=model_schedule,
        seed=seed,
        image_ids=image_ids,
        sample_ids=sample_ids,
    )
    steps = settings.sweet_spot or settings.total_iter
    steps = min(steps + (settings.stop == "after"), settings.total_iter)
    plain = as_plain(settings, model_schedule, steps, codes)
    assert len(seen) == steps
    for image in range(batch):
        own = [part[image : image + 1] for part in (mask, image_ids, sample_ids)]
        start = token_ids[image].tolist(), mask[image].tolist()
        noise = noise_of(settings, steps, seed, *own)
        expected = decode_image(model.image, *start, plain, noise)
        found = [State(ids[image].tolist(), hidden[image].tolist()) for ids, hidden in seen]
        assert found == expected
        assert decoded[image].tolist() == expected[-1].token_ids


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("rule", "model_schedule"),
    [
        *(("listing", schedule) for schedule in SCHEDULES),  # the one rule on two curves
        *((rule, "cosine") for rule in RULES if rule != "listing"),
    ],
)
def test_decoding_equals_the_slow_reference_step_by_step(rule, model_schedule, schedule):
    place = [*RULES].index(rule), SCHEDULES.index(schedule), SCHEDULES.index(model_schedule)
    rng = np.random.default_rng(place)
    settings = random_settings(rule, schedule, rng, order_at(*place))
    assert_decodes_like_the_reference(settings, model_schedule, rng)


@pytest.mark.parametrize("sweet_spot", [1, 2, 5, 9, 10])
@pytest.mark.parametrize("rule", RULES)
def test_every_sweet_spot_equals_the_slow_reference(rule, sweet_spot):
    order = order_at([*RULES].index(rule), [1, 2, 5, 9, 10].index(sweet_spot))
    settings = DecodingConfig(rule=rule, total_iter=10, sweet_spot=sweet_spot, order=order)
    rng = np.random.default_rng(sweet_spot)
    assert_decodes_like_the_reference(settings, "cosine", rng)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("rule", RULES)
def test_more_steps_than_hidden_tokens_equal_the_slow_reference(rule, schedule):
    order = order_at([*RULES].index(rule), SCHEDULES.index(schedule))
    settings = DecodingConfig(rule=rule, mask_schedule=schedule, total_iter=12, order=order)
    assert_decodes_like_the_reference(settings, schedule, np.random.default_rng(12), max_tokens=9)


@pytest.mark.parametrize("rule", PAPERS)
def test_three_hundred_steps_equal_the_slow_reference(rule):
    settings = DecodingConfig(rule=rule, total_iter=300)
    assert_decodes_like_the_reference(settings, "cosine", np.random.default_rng(300), max_tokens=9)


def any_rule(rng: np.random.Generator) -> RuleConfig:
    """Any of the 216 rules that the five choices make."""
    fields = RuleConfig.model_fields.items()
    return RuleConfig(**{name: rng.choice(get_args(field.annotation)) for name, field in fields})


@pytest.mark.parametrize("case", range(60))
def test_any_five_choices_equal_the_slow_reference_step_by_step(case):
    rng = np.random.default_rng([7, case])
    rule, schedule = any_rule(rng), str(rng.choice(SCHEDULES))
    settings = random_settings(rule, schedule, rng).model_copy(
        update={"stop": rng.choice(["at", "after"])}
    )
    assert_decodes_like_the_reference(settings, str(rng.choice(SCHEDULES)), rng)


def flat_logits(token_ids: Tensor, mask: Tensor) -> Tensor:
    """Every one of 8 codes is as likely as any other."""
    return torch.zeros(int(mask.sum()), 8)


def hidden_counts(settings: DecodingConfig, model_schedule: str, hidden: int) -> list[int]:
    mask = torch.arange(20)[None] < hidden
    _, seen = run_decode(
        flat_logits,
        torch.zeros(1, 20, dtype=torch.long),
        mask,
        settings,
        codebook_size=8,
        model_schedule=model_schedule,
    )
    return [int(still.sum()) for _, still in seen]


@pytest.mark.parametrize(
    ("schedule", "model_schedule", "counts"),
    [
        # the chosen curve alone, where the model's gamma is linear: ceil(16 gamma(q)), q = 1/4 ...
        ("linear", "linear", [12, 8, 4, 0]),
        ("square", "linear", [15, 12, 7, 0]),
        ("cosine", "linear", [14, 8, 3, 0]),  # 13.66, 8, 2.34
        ("maskgit_cosine", "linear", [15, 12, 7, 0]),  # 14.78, 11.31, 6.12
        # the model's curve alone, where the chosen one is linear
        ("linear", "cosine", [14, 8, 3, 0]),
        ("linear", "square", [15, 12, 7, 0]),
        # both: square on square is 1 - q^4, cosine on cosine 15.17, 8, 0.83
        ("square", "square", [16, 15, 11, 0]),
        ("cosine", "cosine", [16, 8, 1, 0]),
        ("square", "cosine", [16, 14, 7, 0]),  # (1 + cos(pi q^2)) / 2: 15.85, 13.66, 6.44
        ("cosine", "square", [16, 12, 5, 0]),  # 1 - r^2, r = 0.1464, 0.5, 0.8536: 15.66, 12, 4.34
    ],
)
def test_counts_of_hidden_tokens_by_the_listing_rule_are_two_curves(
    schedule, model_schedule, counts
):
    settings = DecodingConfig(rule="listing", mask_schedule=schedule, total_iter=4)
    assert hidden_counts(settings, model_schedule, hidden=16) == counts


@pytest.mark.parametrize("model_schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("schedule", "counts"),
    [
        ("linear", [12, 8, 4, 0]),
        ("square", [15, 12, 7, 0]),
        ("cosine", [13, 8, 2, 0]),
        ("maskgit_cosine", [14, 11, 6, 0]),
    ],
)
def test_counts_of_hidden_tokens_by_maskgits_rule_are_one_curve(schedule, counts, model_schedule):
    settings = DecodingConfig(rule="maskgit", mask_schedule=schedule, total_iter=4)
    assert hidden_counts(settings, model_schedule, hidden=16) == counts


@pytest.mark.parametrize(
    ("rule", "counts"),
    [
        ("lab", [12, 8, 4, 0]),
        ("lab_ceil", [12, 8, 4, 0]),
        ("lab_from_zero", [16, 12, 8, 4]),  # four still hold their best guess at the end
        ("lab_remaining", [12, 6, 1, 0]),  # 3/4 of 16, 2/4 of 12, 1/4 of 6
        (RuleConfig(progress="t/(T-1)"), [16, 10, 5, 0]),  # 16, 10.67, 5.33
        (RuleConfig(hidden="floor(gN)"), [15, 10, 5, 0]),  # of all 20, no more than are hidden
    ],
)
def test_counts_of_hidden_tokens_by_rules_of_the_lab(rule, counts):
    settings = DecodingConfig(rule=rule, mask_schedule="linear", total_iter=4)
    assert hidden_counts(settings, "cosine", hidden=16) == counts


def test_stopping_after_the_sweet_spot_runs_one_step_more_but_never_more_than_all():
    def steps(**keys: object) -> int:
        return len(hidden_counts(DecodingConfig(**keys), "cosine", hidden=16))

    assert steps(sweet_spot=4) == 4
    assert steps(sweet_spot=4, stop="after") == 5
    assert steps(sweet_spot=10, stop="after") == 10
    assert steps(stop="after") == 10


def test_maskgits_rule_reveals_at_least_one_a_step_and_keeps_one_for_the_last():
    settings = DecodingConfig(rule="maskgit", mask_schedule="linear", total_iter=8)
    # floor(3 (1 - q)) is 2, 2, 1, 1, 1, 0, 0, 0
    assert hidden_counts(settings, "cosine", hidden=3) == [2, 1, 1, 1, 1, 1, 1, 0]
    assert hidden_counts(settings, "cosine", hidden=1) == [1, 1, 1, 1, 1, 1, 1, 0]
    assert hidden_counts(settings, "cosine", hidden=0) == [0] * 8


@pytest.mark.parametrize("rule", PAPERS)
def test_counts_do_not_suffer_from_binary_fractions(rule):
    # Linear on linear with T = U = 10: one token a step, although (1 - 7 / 10) * 10 > 3 in floats.
    settings = DecodingConfig(rule=rule, mask_schedule="linear", total_iter=10)
    assert hidden_counts(settings, "linear", hidden=10) == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("rule", PAPERS)
def test_one_step_reveals_everything(rule):
    assert hidden_counts(DecodingConfig(rule=rule, total_iter=1), "cosine", hidden=20) == [0]


@pytest.fixture
def ragged() -> tuple[LinearModel, Tensor, Tensor]:
    """A model, token ids (6, 36) of 8 codes and masks that hide none, one, some and all."""
    rng = np.random.default_rng(0)
    mask = torch.tensor(rng.random((6, 36)) < np.array([[0], [0.2], [0.4], [0.6], [0.8], [1.1]]))
    mask[1] = torch.arange(36) == 5
    return LinearModel(36, 8, rng), torch.tensor(rng.integers(8, size=(6, 36))), mask


@pytest.mark.parametrize("temperature", [0.0, 4.5])
@pytest.mark.parametrize("rule", PAPERS)
def test_known_tokens_never_change_and_nothing_known_is_hidden_again(rule, temperature, ragged):
    model, token_ids, mask = ragged
    settings = DecodingConfig(rule=rule, choice_temperature=temperature)
    decoded, seen = run_decode(model.batch, token_ids, mask, settings, codebook_size=8)
    hidden_before, ids_before = mask, token_ids
    for ids, hidden in seen:
        assert not (hidden & ~hidden_before).any()
        assert torch.equal(ids[~hidden_before], ids_before[~hidden_before])
        hidden_before, ids_before = hidden, ids
    assert torch.equal(decoded[~mask], token_ids[~mask])
    assert not hidden_before.any()


@pytest.mark.parametrize("rule", RULES)
def test_the_model_sees_the_mask_id_exactly_where_tokens_are_hidden(rule, ragged):
    model, token_ids, mask = ragged

    def watched(ids: Tensor, hidden: Tensor) -> Tensor:
        assert torch.equal(ids == 8, hidden)
        return model.batch(ids, hidden)

    decoded, _ = run_decode(watched, token_ids, mask, DecodingConfig(rule=rule), codebook_size=8)
    assert decoded.max() < 8


@pytest.mark.parametrize("rule", RULES)
def test_inputs_are_left_as_they_were(rule, ragged):
    model, token_ids, mask = ragged
    ids_copy, mask_copy = token_ids.clone(), mask.clone()
    run_decode(model.batch, token_ids, mask, DecodingConfig(rule=rule), codebook_size=8)
    assert torch.equal(token_ids, ids_copy)
    assert torch.equal(mask, mask_copy)


@pytest.mark.parametrize("rule", RULES)
def test_the_sweet_spot_stops_a_run_that_is_otherwise_the_same(rule, ragged):
    model, token_ids, mask = ragged
    _, full = run_decode(model.batch, token_ids, mask, DecodingConfig(rule=rule), codebook_size=8)
    for stop in range(1, 11):
        settings = DecodingConfig(rule=rule, sweet_spot=stop)
        decoded, seen = run_decode(model.batch, token_ids, mask, settings, codebook_size=8)
        assert len(seen) == stop
        assert torch.equal(decoded, full[stop - 1][0])
        assert torch.equal(seen[-1][1], full[stop - 1][1])
        assert decoded.max() < 8  # tokens still hidden hold their present best guess


@pytest.mark.parametrize("rule", PAPERS)
def test_a_sweet_spot_beyond_the_last_iteration_ends_after_it(rule, ragged):
    model, token_ids, mask = ragged
    ends = [
        run_decode(model.batch, token_ids, mask, settings, codebook_size=8)
        for settings in (
            DecodingConfig(rule=rule, total_iter=5, sweet_spot=8),
            DecodingConfig(rule=rule, total_iter=5),
        )
    ]
    assert [len(seen) for _, seen in ends] == [5, 5]
    assert torch.equal(ends[0][0], ends[1][0])


@pytest.mark.parametrize("rule", RULES)
def test_batch_and_order_of_images_do_not_matter(rule, ragged):
    model, token_ids, mask = ragged
    settings, ids = DecodingConfig(rule=rule), torch.tensor([4, 9, 2, 77, 5, 6])

    def decoded(rows: list[int]) -> Tensor:
        picked = token_ids[rows], mask[rows], settings
        return run_decode(model.batch, *picked, codebook_size=8, image_ids=ids[rows])[0]

    together = decoded(list(range(6)))
    assert torch.equal(torch.cat([decoded([row]) for row in range(6)]), together)
    assert torch.equal(decoded([5, 3, 1, 0, 2, 4]), together[[5, 3, 1, 0, 2, 4]])


def test_without_noise_the_most_confident_tokens_are_revealed_first():
    certainty = torch.tensor([0.5, 2.0, 1.0, 3.0])  # logit of code 0 at each place; code 1 has 0

    def logits_of(token_ids: Tensor, mask: Tensor) -> Tensor:
        return torch.stack([certainty, torch.zeros(4)], dim=-1)[mask[0]]

    settings = DecodingConfig(mask_schedule="linear", total_iter=4, choice_temperature=0.0)
    start = torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool)
    decoded, seen = run_decode(
        logits_of, *start, settings, codebook_size=2, model_schedule="linear"
    )
    order = [still[0].nonzero().flatten().tolist() for _, still in seen]
    assert order == [[0, 1, 2], [0, 2], [0], []]
    assert (decoded == 0).all()


@pytest.mark.parametrize(
    ("rule", "schedule", "share"),
    [
        # after a quarter of the steps: gamma(1/4) of the chosen schedule, or three quarters
        ("listing", "linear", 3 / 4),
        ("listing", "square", 15 / 16),
        ("maskgit", "linear", 3 / 4),
        ("maskgit", "square", 3 / 4),
        # growing: one minus gamma(1/4)
        ("lab", "linear", 1 / 4),
        ("lab", "square", 1 / 16),
    ],
)
def test_noise_on_confidences_fades_with_the_schedule_or_evenly_or_grows(rule, schedule, share):
    settings = DecodingConfig(
        rule=rule, mask_schedule=schedule, total_iter=4, choice_temperature=4.0
    )
    mask, ids = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, dtype=torch.long)
    step = Step(0, settings, "cosine", mask, 0, ids, ids)
    assert noise_temperature(step) == pytest.approx(4 * share)


def test_listing_takes_the_most_probable_token_and_maskgit_draws_from_the_softmax():
    # Probabilities 0.7, 0.2, 0.1 at each of 4,000 places, all decided in one step.
    def logits_of(token_ids: Tensor, mask: Tensor) -> Tensor:
        return torch.tensor([0.7, 0.2, 0.1]).log().expand(int(mask.sum()), 3)

    start = torch.zeros(4, 1000, dtype=torch.long), torch.ones(4, 1000, dtype=torch.bool)
    one_step = {"total_iter": 1, "choice_temperature": 4.5}
    decoded, _ = run_decode(
        logits_of, *start, DecodingConfig(rule="listing", **one_step), codebook_size=3
    )
    assert (decoded == 0).all()
    decoded, _ = run_decode(
        logits_of, *start, DecodingConfig(rule="maskgit", **one_step), codebook_size=3
    )
    shares = decoded.flatten().bincount(minlength=3) / 4000
    # four standard deviations of a share of 4,000: 4 sqrt(0.7 * 0.3 / 4000) = 0.029
    assert shares.tolist() == pytest.approx([0.7, 0.2, 0.1], abs=0.03)


def test_codes_of_no_probability_are_never_sampled():
    def logits_of(token_ids: Tensor, mask: Tensor) -> Tensor:
        return torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]).expand(mask.sum(), 5)

    start = torch.zeros(4, 1000, dtype=torch.long), torch.ones(4, 1000, dtype=torch.bool)
    settings = DecodingConfig(rule="maskgit", total_iter=1)
    decoded, _ = run_decode(logits_of, *start, settings, codebook_size=5)
    assert set(decoded.flatten().tolist()) == {1, 3}


def test_seeds_and_image_ids_change_the_noise(ragged):
    model, token_ids, mask = ragged
    settings = DecodingConfig(rule="maskgit")

    def decoded(seed: int, first: int) -> Tensor:
        ids = torch.arange(first, first + 6)
        common = {"codebook_size": 8, "seed": seed, "image_ids": ids}
        return run_decode(model.batch, token_ids, mask, settings, **common)[0]

    assert torch.equal(decoded(0, 0), decoded(0, 0))
    assert not torch.equal(decoded(0, 0), decoded(5, 0))
    assert not torch.equal(decoded(0, 0), decoded(0, 5))


def test_every_step_is_yielded_in_turn(ragged):
    _, token_ids, mask = ragged
    steps = decode(
        flat_logits,
        token_ids,
        mask,
        DecodingConfig(total_iter=9, sweet_spot=4),
        model_schedule="cosine",
        mask_token_id=8,
        seed=0,
        image_ids=torch.arange(6),
    )
    assert [step.index for step in steps] == [0, 1, 2, 3]


@pytest.mark.parametrize("rule", PAPERS)
def test_a_step_has_the_trust_in_each_token_when_it_was_last_chosen(rule):
    # codes of probability 3/4 and 1/4 at each place; the known place is never chosen
    def logits_of(token_ids: Tensor, mask: Tensor) -> Tensor:
        return torch.tensor([0.75, 0.25]).log().expand(int(mask.sum()), 2)

    results = decode(
        logits_of,
        torch.zeros(1, 4, dtype=torch.long),
        torch.tensor([[True, True, True, False]]),
        DecodingConfig(rule=rule, token_choice="argmax", total_iter=2),
        model_schedule="cosine",
        mask_token_id=2,
        seed=0,
        image_ids=torch.arange(1),
    )
    expected = 0.75 if rule == "listing" else np.log(0.75)
    for result in results:
        assert result.confidence[0, :3].tolist() == pytest.approx([expected] * 3)
        assert result.confidence[0, 3].isnan()


def test_the_schema_allows_what_the_registries_hold():
    fields = DecodingConfig.model_fields
    assert set(get_args(RuleName)) == set(RULES) == set(NAMED_RULES)
    choices = {name: field.annotation for name, field in RuleConfig.model_fields.items()}
    tables = {"progress": PROGRESS, "hidden": HIDDEN_COUNTS, "trust": TRUSTS, "noise": NOISES}
    for name, table in {**tables, "token": TOKEN_CHOICES}.items():
        assert set(get_args(choices[name])) == set(table)
    assert set(get_args(fields["order"].annotation)) == set(ORDERS)
    assert set(get_args(fields["token_choice"].annotation)) == {"rule", *TOKEN_CHOICES}


class CountingModel(LinearModel):
    """Remembers how many images each forward pass had."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.passes: list[int] = []

    def batch(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        assert mask.any(1).all()  # no finished image
        self.passes.append(len(token_ids))
        return super().batch(token_ids, mask)


@pytest.mark.parametrize("order", ORDERS)
def test_a_step_that_unmasked_nothing_reuses_its_logits(order):
    # Of 10 hidden tokens ceil(10 - (t + 1) / 4) stay: one is revealed every four steps.
    model = CountingModel(16, 8, np.random.default_rng(0))
    settings = DecodingConfig(mask_schedule="linear", total_iter=40, order=order)
    mask = torch.arange(16)[None] < 10
    start = torch.zeros(1, 16, dtype=torch.long), mask
    _, seen = run_decode(model.batch, *start, settings, codebook_size=8, model_schedule="linear")
    assert [int(hidden.sum()) for _, hidden in seen] == [10 - (t + 1) // 4 for t in range(40)]
    masks = [mask, *(hidden for _, hidden in seen)]
    changed = sum(not torch.equal(a, b) for a, b in pairwise(masks))
    assert len(model.passes) == changed  # one for each new mask but the last, which is empty
    assert order == "revise" or changed == 10


def test_only_images_with_a_new_mask_enter_a_forward_pass():
    # linear on linear, T = 4: of 4 hidden tokens one a step is revealed, of 2 every second one
    model = CountingModel(16, 8, np.random.default_rng(0))
    settings = DecodingConfig(mask_schedule="linear", total_iter=4)
    mask = torch.arange(16) < torch.tensor([[4], [2], [0]])
    start = torch.zeros(3, 16, dtype=torch.long), mask
    _, seen = run_decode(model.batch, *start, settings, codebook_size=8, model_schedule="linear")
    assert [hidden.sum(1).tolist() for _, hidden in seen] == [
        [3, 2, 0],
        [2, 1, 0],
        [1, 1, 0],
        [0, 0, 0],
    ]
    assert model.passes == [2, 1, 2, 1]


def test_an_image_that_has_just_finished_stays_out_of_the_forward_pass():
    model = CountingModel(2, 8, np.random.default_rng(0))
    before = torch.tensor([[True, True], [True, False]]), torch.zeros(3, 8)
    hidden = torch.tensor([[True, False], [False, False]])
    logits = cached_logits(model.batch, (torch.tensor([[8, 1], [2, 1]]), hidden), before)
    assert model.passes == [1]
    assert torch.equal(logits, torch.tensor([model.image([8, 1])[0]]))


@pytest.mark.parametrize("rule", PAPERS)
def test_a_batch_without_holes_never_enters_the_model(rule):
    model = CountingModel(16, 8, np.random.default_rng(0))
    token_ids, mask = torch.ones(3, 16, dtype=torch.long), torch.zeros(3, 16, dtype=torch.bool)
    settings = DecodingConfig(rule=rule)
    decoded, seen = run_decode(model.batch, token_ids, mask, settings, codebook_size=8)
    assert model.passes == []
    assert torch.equal(decoded, token_ids)
    assert len(seen) == 10


def test_revising_hides_earlier_choices_again_and_changes_them_but_nothing_known(ragged):
    model, token_ids, mask = ragged
    settings = DecodingConfig(rule="maskgit", order="revise", choice_temperature=0.0)
    decoded, seen = run_decode(model.batch, token_ids, mask, settings, codebook_size=8)
    hidden_again, changed = 0, 0
    for (ids_before, hidden_before), (ids, hidden) in pairwise(seen):
        assert not (hidden & ~mask).any()
        hidden_again += int((hidden & ~hidden_before).sum())
        changed += int((ids != ids_before)[mask & ~hidden_before].sum())
    assert hidden_again > 0
    assert changed == 0  # what a step shows, it leaves; what it hid again, a later one decides
    shown_once = {}
    for ids, hidden in seen:
        for place in (mask & ~hidden).nonzero().tolist():
            shown_once.setdefault(tuple(place), ids[tuple(place)].item())
    assert any(decoded[place].item() != token for place, token in shown_once.items())
    assert torch.equal(decoded[~mask], token_ids[~mask])
    assert not seen[-1][1].any()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rule", PAPERS)
def test_sample_0_is_the_one_repair_and_others_differ(rule, order, ragged):
    model, token_ids, mask = ragged
    settings = DecodingConfig(rule=rule, order=order, token_choice="sample")

    def decoded(sample_ids: Tensor | None) -> Tensor:
        picked = token_ids, mask, settings
        return run_decode(model.batch, *picked, codebook_size=8, sample_ids=sample_ids)[0]

    first, second = decoded(torch.zeros(6, dtype=torch.long)), decoded(torch.full((6,), 1))
    assert torch.equal(first, decoded(None))
    assert not torch.equal(first, second)
    mixed = decoded(torch.tensor([0, 1, 0, 1, 0, 1]))
    assert torch.equal(mixed[::2], first[::2])
    assert torch.equal(mixed[1::2], second[1::2])
