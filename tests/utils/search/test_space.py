"""search.space: which settings a search may vary, and how wrong ones are refused."""

from __future__ import annotations

import pytest

from config.errors import UserError
from config.loading import load_config
from config.schema import Config


def load(tmp_path, space: str) -> Config:
    (tmp_path / "c.yml").write_text(f"search:\n  space:\n    {space}\n")
    return load_config(tmp_path / "c.yml")


@pytest.mark.parametrize(
    ("key", "low", "high"),
    [
        ("training.weight_decay", 0.0, 0.1),
        ("training.warmup_steps", 0, 100),
        ("training.max_grad_norm", 0.5, 2),
        ("masking.label_smoothing", 0, 0.2),
        ("transformer.dropout", 0.0, 0.5),
        ("transformer.num_layers", 1, 4),
    ],
)
def test_any_number_of_the_training_may_be_searched(tmp_path, key, low, high):
    space = load(tmp_path, f"{key}: {{low: {low}, high: {high}}}").search.space
    assert (space[key].low, space[key].high) == (low, high)


MISTAKES = {  # what is written below search.space: what the line must say
    "unknown key, nearest named": (
        "training.weight_decy: {low: 0.0, high: 0.1}",
        "did you mean 'training.weight_decay'?",
    ),
    "key without its section": (
        "dropout: {low: 0.0, high: 0.1}",
        "did you mean 'transformer.dropout'?",
    ),
    "no number": ("training.mirror: {low: 0.0, high: 1.0}", "training.mirror is no number"),
    "a list of numbers": ("training.betas: {low: 0.0, high: 0.9}", "training.betas is no number"),
    "part of the budget": ("training.epochs: {low: 1, high: 3}", "must stay the same"),
    "fixed by the tokenizer": ("transformer.num_tokens: {low: 1, high: 3}", "must stay the same"),
    "the rate itself": (
        "training.learning_rate: {low: 0.1, high: 0.2}",
        "from search.low to search.high",
    ),
    "an end out of the setting's range": (
        "transformer.dropout: {low: 0.0, high: 1.5}",
        "high 1.5: input should be less than or equal to 1",
    ),
    "half a step": ("training.warmup_steps: {low: 0.5, high: 9}", "low 0.5 is not whole"),
    "whole wanted, half given": (
        "training.max_grad_norm: {low: 0.5, high: 9, int: true}",
        "int needs whole ends",
    ),
    "logarithm of zero": (
        "training.weight_decay: {low: 0.0, high: 0.1, log: true}",
        "log needs a low above 0",
    ),
    "upside down": ("training.weight_decay: {low: 0.2, high: 0.1}", "must be below high"),
    "end missing": ("training.weight_decay: {low: 0.0}", "training.weight_decay.high"),
    "unknown word in a range": (
        "training.weight_decay: {low: 0.0, high: 0.1, logg: true}",
        "known: high, int, log, low",
    ),
}


@pytest.mark.parametrize(("space", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_space_is_one_line_that_names_it(tmp_path, space, said):
    with pytest.raises(UserError, match="c.yml:") as caught:
        load(tmp_path, space)
    assert said in str(caught.value)
