"""Stage 2 with conditioning: from old weights, with new holes, resumed exactly, validated alike."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from config.errors import StopRequested, UserError
from models.transformer import BidirectionalTransformer, with_conditioning
from utils.inpainting.inpainter import Inpainter
from utils.training.state import load_state
from utils.training.transformer import load_tokens, starting_point, train_transformer
from utils.training.validate_transformer import validate
from utils.weights.store import load_transformer, save_weights

pytestmark = pytest.mark.usefixtures("quick")
NEVER = 10**9


def seeing(config, changed):
    return changed(
        config,
        {
            "transformer.conditioning": "pixels",
            "masking.hole_share": 0.5,
            "masking.ratio_per": "sample",
            "training.learning_rate": 0.01,
        },
    )


def test_a_run_with_conditioning_resumes_exactly(
    weights, tmp_path, changed, stop_after, assert_same
):
    config = seeing(weights, changed)
    whole = config.model_copy(update={"run": tmp_path / "whole"})
    whole = whole.model_copy(update={"tokenizer": _with_weights(weights)})
    config = config.model_copy(update={"tokenizer": _with_weights(weights)})
    train_transformer(whole, resume=False)
    stop_after(4)
    with pytest.raises(StopRequested):
        train_transformer(config, resume=False)
    stop_after(NEVER)
    train_transformer(config, resume=True)
    assert_same(*(load_state(c.run / "transformer" / "state.pt") for c in (config, whole)))


def test_conditioning_is_trained_from_weights_without_it(weights, changed):
    plain = weights.transformer_weights
    config, start = starting_point(seeing(weights, changed), plain)
    assert config.transformer.conditioning == "pixels"
    config = config.model_copy(
        update={"run": weights.run / "seeing", "tokenizer": _with_weights(weights)}
    )
    path = train_transformer(config, resume=False, start=start)
    trained, before = load_transformer(path, config.transformer), load_file(plain)
    assert trained.config.conditioning == "pixels"
    assert trained.known.weight.abs().sum() > 0
    assert before.keys() == trained.state_dict().keys() - {"known.weight", "known.bias"}


def test_weights_with_conditioning_start_a_network_with_it_whatever_the_config_says(
    weights, changed
):
    path = train_transformer(seeing(weights, changed), resume=False)
    config, start = starting_point(weights, path)
    assert config.transformer.conditioning == start.config.conditioning == "pixels"


def test_validation_shows_what_each_place_knows(weights, changed):
    config = seeing(weights, changed)
    tokens = load_tokens(config, torch.device("cpu"))
    assert type(tokens.codes) is torch.Tensor  # no parameter, which moves with its network
    assert tokens.val_seen.known.shape == (6, 16, 64)
    network = with_conditioning(load_transformer(weights.transformer_weights, config.transformer))
    torch.nn.init.normal_(network.known.weight)
    args = (network, tokens.val, torch.device("cpu"), torch.float32)
    found = validate(*args, tokens.val_seen)
    blank = tokens.val_seen._replace(known=torch.zeros_like(tokens.val_seen.known))
    assert found != validate(*args, blank)


def test_weights_decide_over_conditioning_and_a_config_that_says_otherwise_is_named(
    weights, changed, capsys
):
    plain = changed(weights, {"transformer.conditioning": "pixels"})
    assert Inpainter(plain).config.transformer.conditioning == "none"
    assert "transformer.conditioning none, not pixels" in capsys.readouterr().err
    train_transformer(seeing(weights, changed), resume=False)
    says_none = changed(weights, {"transformer.conditioning": "none"})
    assert Inpainter(says_none).config.transformer.conditioning == "pixels"
    assert "transformer.conditioning pixels, not none" in capsys.readouterr().err


def test_weights_for_patches_of_another_size_are_refused(weights, changed):
    network = BidirectionalTransformer(
        weights.transformer.model_copy(update={"conditioning": "pixels", "patch_size": 8})
    )
    path = weights.transformer_weights
    save_weights(path, network.state_dict(), network.config, {})
    with pytest.raises(UserError, match="patch_size is 8, but the config says 4"):
        Inpainter(weights)


def _with_weights(config):
    return config.tokenizer.model_copy(update={"weights": config.tokenizer_weights})
