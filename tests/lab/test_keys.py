"""What is recognised in a lab file, what is refused, and that nothing is lost on the way."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from config.errors import UserError
from config.schema import Config, TokenizerConfig, TransformerConfig
from models.vqgan import VQGAN
from utils.weights.description import TOKENIZER, TRANSFORMER
from utils.weights.import_lab import import_lab
from utils.weights.lab_keys import read_keys
from utils.weights.lab_naming import VARIANTS
from utils.weights.lab_shapes import describe
from utils.weights.store import load_transformer

DATA = Path(__file__).parents[1] / "data"


def zeros(*shape: int) -> torch.Tensor:
    """Zeros that take no memory."""
    return torch.zeros(()).expand(shape)


def listing(name: str) -> dict[str, torch.Tensor]:
    """A full-size file without its numbers."""
    shapes = json.loads((DATA / f"lab_{name}_keys.json").read_text())
    return {key: zeros(*shape) for key, shape in shapes.items()}


def variant_of(weights: dict, variant: str) -> dict:
    """The report's keys as another variant has them, written down from the table of keys."""
    out = {}
    for key, value in weights.items():
        block, attention, rest = key.partition(".Attention.")
        if not attention or variant == "report":
            out[key] = value
        elif variant == "fused":
            out[key] = value
            if rest == "qkv.weight":
                out[f"{block}.Attention.qkv.bias"] = zeros(len(value))
        elif rest == "qkv.weight":
            side = value.shape[1]
            for name in ("query", "key", "value"):
                out[f"{block}.Attention.{name}.weight"] = zeros(side, side)
                out[f"{block}.Attention.{name}.bias"] = zeros(side)
        else:
            out[f"{block}.Attention.output_layer.{rest.removeprefix('proj.')}"] = value
    return out


def refusal(function, *arguments) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments)
    return str(error.value)


@pytest.fixture
def importing(save, tmp_path):
    """Import one saved state; returns the config and the printed lines."""

    def run(state: object, base: Config | None = None) -> tuple[Config, str]:
        path = save(state, "lab.pt")
        config, lines, *_ = import_lab([path], tmp_path / "ours", base or Config())
        return config, "\n".join(lines)

    return run


# What files hold


def test_the_labs_tokenizer_is_recognised_at_full_size():
    part = read_keys(listing("vqgan"), "VQGAN.pt").part(TOKENIZER)
    assert describe(part, TokenizerConfig(), "VQGAN.pt") == TokenizerConfig()


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_is_recognised_at_full_size(variant):
    weights = variant_of(listing("transformer"), variant)
    part = read_keys(weights, "a.pt").part(TRANSFORMER)
    expected = TransformerConfig(qkv_bias=variant != "report")
    assert part.naming.title == variant
    assert describe(part, TransformerConfig(), "a.pt") == expected


def test_query_key_and_value_are_joined_in_this_order(solution):
    state = solution("separate").transformer.state_dict()
    part = read_keys(state, "a.pt").part(TRANSFORMER)
    name = "blocks.1.Attention"
    for last in ("weight", "bias"):
        pieces = [state[f"{name}.{layer}.{last}"] for layer in ("query", "key", "value")]
        assert torch.equal(part.weights[f"{name}.qkv.{last}"], torch.cat(pieces))
        assert torch.equal(
            part.weights[f"{name}.proj.{last}"], state[f"{name}.output_layer.{last}"]
        )


def test_reduced_widths_are_read_off_the_shapes_in_the_labs_structure(solution, importing):
    config, _ = importing(solution("fused").state_dict())
    assert config.tokenizer.encoder_channels == [32, 32, 32, 32, 64, 64]
    assert config.tokenizer.downsample_after == [2, 4]
    assert config.tokenizer.decoder_channels == [32, 32, 32, 64, 64]
    assert config.tokenizer.upsample_after == [4, 2]
    assert (config.tokenizer.latent_dim, config.tokenizer.codebook_size) == (16, 40)
    found = config.transformer.model_dump(include={"dim", "num_heads", "num_layers", "mlp_dim"})
    assert found == {"dim": 64, "num_heads": 16, "num_layers": 2, "mlp_dim": 96}
    assert config.transformer.qkv_bias
    assert config.data.image_size == 64


@pytest.mark.parametrize(
    "other",
    [
        {"encoder_blocks": 3, "decoder_blocks": 2, "encoder_channels": [8, 8, 16]},
        {"encoder_attention": False, "decoder_attention": False, "downsample_kernel": 2},
        {"encoder_channels": [8, 16, 16, 24], "encoder_kernels": [3, 1, 1]},
        {"decoder_channels": [8, 16, 16], "upsample_after": [2, 0]},
    ],
)
def test_tokenizers_of_other_structures_are_read_as_the_same_function(tokenizer_config, other):
    torch.manual_seed(0)
    network = VQGAN(tokenizer_config.model_copy(update=other)).eval()
    part = read_keys(network.state_dict(), "a.pt").part(TOKENIZER)
    read = VQGAN(describe(part, TokenizerConfig(), "a.pt")).eval()
    read.load_state_dict(part.weights, strict=True)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(read.latents(images), network.latents(images))
        ids = network.encode(images)
        assert torch.equal(read.decode(ids), network.decode(ids))


def test_a_whole_model_gives_both_parts_and_names_what_it_left_out(solution, importing):
    config, said = importing(solution("report").state_dict())
    assert config.tokenizer.weights.is_file()
    assert config.transformer.weights.is_file()
    assert "prefix vqgan. taken off 311 keys" in said
    assert "prefix transformer. taken off 31 keys" in said
    assert "left out: mask_token_tensor, since 40 is the mask's id here as well" in said


@pytest.mark.parametrize("name", ["mask_token_tensor", "mask_token_id", "MaskGit.mask_id"])
def test_another_mask_id_is_refused_whatever_its_name(solution, importing, name):
    state = dict(solution("report").state_dict())
    del state["mask_token_tensor"]
    said = refusal(importing, state | {name: torch.tensor(0)})
    assert f"{name} is 0; allowed is the last id, 40" in said
    importing(state | {name: torch.tensor(40)})


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (lambda s: {"state_dict": s}, "taken out of 'state_dict'"),
        (lambda s: {"model": s, "epoch": 3, "optimizer": {"lr": 1.0}}, "taken out of 'model'"),
        (lambda s: {"model": s, "epoch": 3}, "left out, no part of a network: epoch"),
        (lambda s: s | {"epoch": 3}, "left out, no part of a network: epoch"),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, "prefix module. taken off 31 keys"),
        (
            lambda s: {"model": OrderedDict((f"_orig_mod.module.{k}", v) for k, v in s.items())},
            "prefix _orig_mod.module. taken off 31 keys",
        ),
        (
            lambda s: {f"transformer.module.{k}": v for k, v in s.items()},
            "prefix transformer.module. taken off 31 keys",
        ),
    ],
)
def test_wrappers_are_taken_off_and_named(solution, importing, assert_same, wrap, told):
    state = dict(solution("report").transformer.state_dict())
    config, said = importing(wrap(state))
    assert told in said
    loaded = load_transformer(config.transformer_weights, config.transformer)
    assert_same(dict(loaded.state_dict()), state)


def test_the_report_counts_and_names_renamed_keys(solution, importing, tmp_path):
    _, said = importing(solution("separate").transformer.state_dict())
    assert "transformer, attention variant separate, 0.09 M values" in said
    assert "keys: 25 matched, 8 renamed, 0 missing, 0 unexpected, 0 of another shape" in said
    pattern = "blocks.i.Attention.query.bias + blocks.i.Attention.key.bias + "
    assert (
        f"{pattern}blocks.i.Attention.value.bias -> blocks.i.Attention.qkv.bias (2 times)" in said
    )
    keys = (tmp_path / "ours" / "keys.txt").read_text().splitlines()
    assert len(keys) == 1 + 25 + 8
    assert (
        "renamed     blocks.1.Attention.output_layer.bias -> blocks.1.Attention.proj.bias" in keys
    )


# Strictness


def without(state: dict, *keys: str) -> dict:
    return {key: value for key, value in state.items() if key not in keys}


LOST, QUERY = "blocks.0.MLP.2.bias", "blocks.0.Attention.query.bias"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda s: s | {"blocks.0.alpha": s["LN.bias"]}, "1 keys unexpected: blocks.0.alpha"),
        (lambda s: without(s, LOST), f"1 keys missing: {LOST}"),
        (
            lambda s: s | {LOST: torch.zeros(3)},
            rf"1 keys of another shape: {LOST} \(3,\), needed \(64,\)",
        ),
        (
            lambda s: without(s, QUERY),
            r"missing: blocks.0.Attention.qkv.weight, blocks.0.Attention.qkv.bias",
        ),
        (
            lambda s: s | {"blocks.0.Attention.qkv.bias": torch.zeros(192)},
            "missing: blocks.0.Attention.qkv.weight",
        ),
        (
            lambda s: s | {"LN.bias": s["LN.bias"] * float("nan")},
            "LN.bias contains values",
        ),
        (
            lambda s: {f"transformer.{k}": v for k, v in s.items()} | {"x": s["bias"]},
            "1 unexpected keys: x; known are a lab's networks",
        ),
        (lambda s: {"a.weight": s["bias"]}, "unexpected keys: a.weight; known are a lab tokenizer"),
        (lambda s: {}, "expected a dictionary of tensors"),
        (lambda s: [1, 2], "expected a dictionary of tensors"),
    ],
)
def test_whatever_has_no_place_is_an_error_and_nothing_is_written(
    solution, importing, tmp_path, damage, said
):
    state = dict(solution("separate").transformer.state_dict())
    assert re.search(said, refusal(importing, damage(state)))
    assert not (tmp_path / "ours").exists()


def test_a_damaged_reduced_tokenizer_is_told_key_by_key(solution, importing):
    state = dict(solution("report").vqgan.state_dict())
    lost = "encoder.model.5.block.5.weight"
    assert refusal(importing, without(state, lost)).endswith(f"1 keys missing: {lost}")


def test_two_files_of_one_kind_are_refused_unless_they_are_equal(solution, save, tmp_path):
    state = dict(solution("report").vqgan.state_dict())
    paths = [save(state, "a.pt"), save(solution("report").state_dict(), "whole.pt")]
    _, lines, *_ = import_lab(paths, tmp_path / "ours", Config())
    assert f"  its tokenizer is that of {paths[0]}" in lines
    save(state | {"quant_conv.bias": state["quant_conv.bias"] + 1}, "a.pt")
    said = refusal(import_lab, paths, tmp_path / "ours", Config())
    assert said.endswith(f"a second tokenizer, after that of {paths[0]}; give one of them")


def test_networks_beside_a_labs_are_left_out_and_strange_ones_refused(solution):
    other = {"0.weight": torch.ones(2), "0.bias": torch.ones(2)}
    state = solution("report").vqgan.state_dict()
    file = read_keys({"vqgan": state, "discriminator": other}, "a.pt")
    assert "left out, no part of a network: discriminator" in file.notes
    assert "2 unexpected keys: 0.weight, 0.bias; known are" in refusal(read_keys, other, "a.pt")


def test_parts_that_do_not_fit_together_are_refused(solution, save, tmp_path):
    state = dict(solution("report").transformer.state_dict())
    cut = {"tok_emb.weight": state["tok_emb.weight"][:31], "bias": state["bias"][:, :31]}
    files = [
        save(solution("report").vqgan.state_dict(), "VQGAN.pt"),
        save(state | {key: value.clone() for key, value in cut.items()}, "transformer.pt"),
    ]
    said = refusal(import_lab, files, tmp_path / "ours", Config())
    assert "do not fit together: transformer.codebook_size 30 differs" in said
    assert said.endswith("of the rows of tok_emb one is the mask's")


def test_heads_come_from_the_config_and_must_divide_the_width(solution, importing, changed):
    state = solution("report").transformer.state_dict()
    eight = changed(Config(), {"transformer.num_heads": 8})
    assert importing(state, eight)[0].transformer.num_heads == 8
    three = changed(Config(), {"transformer.num_heads": 3})
    assert "width 64 does not divide into 3 heads" in refusal(importing, state, three)


def test_a_file_taken_directly_must_have_the_configs_width(solution, save):
    path = save(solution("report").transformer.state_dict(), "a.pt")
    expected = TransformerConfig(codebook_size=40)
    said = refusal(load_transformer, path, expected)
    assert said == f"{path}: transformer.dim is 64, but the config says 768"


def test_the_other_network_in_a_file_is_not_taken_for_the_wanted_one(solution, save):
    path = save(solution("report").vqgan.state_dict(), "VQGAN.pt")
    said = refusal(load_transformer, path, TransformerConfig())
    assert said == f"{path}: contains a tokenizer, but no transformer"


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("kind", [TOKENIZER, TRANSFORMER])
def test_a_file_of_ours_is_not_read_by_its_shapes(weights, tmp_path, kind, suffix):
    path = tmp_path / f"ours.{suffix}"
    path.write_bytes(getattr(weights, f"{kind}_weights").read_bytes())
    said = refusal(import_lab, [path], tmp_path / "ours", weights)
    assert said == f"{path}: is in our form already; give it as *.safetensors to --{kind}"
