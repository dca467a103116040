"""What the settings allow and what the defaults mean."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from config.decoding import RULES
from config.schema import (
    Config,
    DecodingConfig,
    MaskingConfig,
    SearchConfig,
    TrainingConfig,
    TransformerConfig,
)
from config.section import Section
from models.masking import MASK_SCHEDULES


def test_the_defaults_are_the_reports_run():
    config = Config()
    assert config.training.epochs == 200
    assert config.training.batch_size == 10
    assert config.training.accumulate == 10
    assert config.training.learning_rate == 0.000149456302123
    assert config.transformer.dim / config.transformer.num_heads == 48
    assert config.transformer.num_layers == 15
    assert config.masking == MaskingConfig(
        ratio="uniform", ratio_per="batch", loss_on="all", mask_schedule="cosine"
    )
    assert config.decoding.rule == "listing"
    assert config.decoding.choice_temperature == 4.5
    assert config.search.trials == 10
    assert config.data.mean == (0.4868, 0.4341, 0.3844)
    assert config.data.std == (0.2620, 0.2527, 0.2543)


@pytest.mark.parametrize("section", [MaskingConfig, DecodingConfig])
def test_settings_offer_exactly_the_schedules_that_exist(section):
    field = section.model_json_schema()["properties"]["mask_schedule"]
    assert set(field["enum"]) == set(MASK_SCHEDULES)


def test_settings_offer_exactly_the_rules_that_exist():
    name, _ = DecodingConfig.model_json_schema()["properties"]["rule"]["oneOf"]
    assert set(name["enum"]) == set(RULES)


def test_settings_never_change_after_loading():
    with pytest.raises(ValidationError):
        Config().training.epochs = 3  # type: ignore[misc]


def sections(model: type[Section]) -> set[type[Section]]:
    kinds = [field.annotation for field in model.model_fields.values()]
    below = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
    return {model}.union(*(sections(kind) for kind in below))


def test_every_setting_is_documented():
    undocumented = [
        f"{section.__name__}.{name}"
        for section in sections(Config)
        for name, field in section.model_fields.items()
        if not field.description and field.annotation not in sections(Config)
    ]
    assert undocumented == []


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (TransformerConfig, {"dropout": 1.5}),
        (TransformerConfig, {"dim": 10, "num_heads": 4}),
        (TransformerConfig, {"num_layers": 0}),
        (TrainingConfig, {"learning_rate": 0}),
        (TrainingConfig, {"learning_rate": 2}),
        (TrainingConfig, {"epochs": 1.5}),
        (TrainingConfig, {"max_grad_norm": 0}),
        (MaskingConfig, {"label_smoothing": 1.0}),
        (DecodingConfig, {"choice_temperature": -1}),
        (DecodingConfig, {"choice_temperature": 1e7}),
        (DecodingConfig, {"choice_temperature": float("nan")}),
        (DecodingConfig, {"sweet_spot": 0}),
        (DecodingConfig, {"samples": 2, "choice_temperature": 0}),
        (DecodingConfig, {"samples": 2, "order": "halton"}),
        (SearchConfig, {"low": 0.1, "high": 0.1}),
        (TransformerConfig, {"num_tokens": 12, "conv_kernel": 3}),
        (Config, {"data": {"views": 1}}),
        (Config, {"data": {"views": 3}, "training": {"mirror": False}}),
        (Config, {"masking": {"hole_share": 0.5}}),
        (Config, {"transformer": {"conditioning": "pixels", "patch_size": 8}}),
        (DecodingConfig, {"samples": 2, "sweet_spot": 1}),
        (DecodingConfig, {"samples": 2, "total_iter": 1, "rule": "lab", "order": "random"}),
        (DecodingConfig, {"samples": 2, "mask_schedule": "constant"}),
        (Config, {"seed": 2**63}),
        (Config, {"device": "cuda:"}),
        (Config, {"device": "gpu"}),
    ],
)
def test_values_out_of_range_are_refused(section, values):
    with pytest.raises(ValidationError):
        section(**values)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (TransformerConfig, {"dim": 8, "num_heads": 8, "dropout": 0}),
        (TrainingConfig, {"learning_rate": 1, "max_grad_norm": None}),
        (DecodingConfig, {"sweet_spot": 10}),
        (DecodingConfig, {"sweet_spot": 11}),
        (DecodingConfig, {"samples": 2}),
        (DecodingConfig, {"samples": 2, "order": "halton", "rule": "maskgit"}),
        (DecodingConfig, {"samples": 2, "sweet_spot": 1, "stop": "after"}),
        (
            DecodingConfig,
            {
                "samples": 2,
                "mask_schedule": "constant",
                "order": "random",
                "rule": "maskgit",
                "token_choice": "argmax",
            },
        ),
        (DecodingConfig, {"samples": 1, "order": "halton"}),
        (DecodingConfig, {"sweet_spot": 300, "total_iter": 300, "choice_temperature": 0}),
        (Config, {"seed": 2**63 - 1, "device": "cuda:12"}),
        (TransformerConfig, {"num_tokens": 12}),
        (MaskingConfig, {"hole_share": 1}),
    ],
)
def test_values_at_the_edge_are_allowed(section, values):
    loaded = section(**values)
    assert {name: getattr(loaded, name) for name in values} == values


def test_a_patch_of_another_size_than_the_tokenizers_is_named():
    values = {"transformer": {"conditioning": "pixels", "patch_size": 8}}
    with pytest.raises(ValidationError, match=r"patch_size 8 .* has 4 pixels a side"):
        Config.model_validate(values)
