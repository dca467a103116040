"""Stage 2 with conditioning: from old weights, with new holes, resumed exactly, validated alike."""

from __future__ import annotations

import weakref

import pytest
import torch
from safetensors.torch import load_file

from config.errors import StopRequested, UserError
from config.loading import load_config
from models.transformer import BidirectionalTransformer, with_conditioning
from utils.inpainting.inpainter import Inpainter
from utils.training import run
from utils.training import transformer as stage_2
from utils.training.state import load_state
from utils.training.transformer import as_in_start, load_tokens, train_transformer
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
    config = as_in_start(seeing(weights, changed), plain)
    assert config.transformer.conditioning == "pixels"
    config = config.model_copy(
        update={"run": weights.run / "seeing", "tokenizer": _with_weights(weights)}
    )
    path = train_transformer(config, resume=False, start=plain)
    trained, before = load_transformer(path, config.transformer), load_file(plain)
    assert trained.config.conditioning == "pixels"
    assert trained.known.weight.abs().sum() > 0
    assert before.keys() == trained.state_dict().keys() - {"known.weight", "known.bias"}


def test_weights_with_conditioning_start_a_network_with_it_whatever_the_config_says(
    weights, changed
):
    path = train_transformer(seeing(weights, changed), resume=False)
    config = as_in_start(weights, path)
    assert config.transformer.conditioning == "pixels"


def test_weights_without_conditioning_grow_for_the_patches_of_the_config(weights, changed):
    network = load_transformer(weights.transformer_weights, weights.transformer)
    of_others = network.config.model_copy(update={"patch_size": 8})  # which it does not use
    path = weights.run / "start.safetensors"
    save_weights(path, network.state_dict(), of_others, {})
    config = as_in_start(seeing(weights, changed), path)
    assert config.transformer.patch_size == 4
    train_transformer(config, resume=False, start=path)


def test_a_run_from_weights_of_another_shape_names_the_config_that_resumes_it(weights, changed):
    deeper = changed(weights, {"transformer.num_layers": 3})
    path = weights.run / "start.safetensors"
    network = BidirectionalTransformer(deeper.transformer)
    save_weights(path, network.state_dict(), deeper.transformer, {})
    train_transformer(as_in_start(weights, path), resume=False, start=path)
    own = weights.run / "transformer" / "config.yml"
    said = rf"other transformer.num_layers \(.* was 3, is 2\); its config is {own};"
    with pytest.raises(UserError, match=said):
        train_transformer(weights, resume=True)
    train_transformer(load_config(own), resume=True)


def test_networks_to_start_from_and_states_leave_memory_before_the_first_step(
    weights, changed, monkeypatch
):
    kept, finished = [], []

    def watched(function, tensor_of):
        def call(*args):
            found = function(*args)
            kept.extend([] if found is None else [weakref.ref(tensor_of(found))])
            return found

        return call

    def nothing_is_kept(_trainer) -> None:
        assert not any(tensor() is not None for tensor in kept)
        finished.append(len(kept))

    monkeypatch.setattr(
        stage_2, "load_transformer", watched(load_transformer, lambda network: network.bias)
    )
    monkeypatch.setattr(
        run, "open_state", watched(run.open_state, lambda state: state["transformer"]["bias"])
    )
    start = weights.run / "start.safetensors"
    start.write_bytes(weights.transformer_weights.read_bytes())
    train_transformer(weights, resume=False, start=start, callback=nothing_is_kept)
    more = changed(weights, {"training.epochs": 3})
    flags = {"resume": True, "allow_config_change": True, "callback": nothing_is_kept}
    train_transformer(more, **flags)
    assert (finished[0], finished[-1]) == (1, 2)


def test_validation_shows_what_each_place_knows(weights, changed):
    config = seeing(weights, changed)
    tokens = load_tokens(config, torch.device("cpu"))
    assert type(tokens.codes) is torch.Tensor  # no parameter, which moves with its network
    assert tokens.val_seen.known.shape == (6, 16, 64)
    network = load_transformer(weights.transformer_weights, config.transformer)
    network = with_conditioning(network, patch_size=4)
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
