"""The transformer against PyTorch's own encoder layers, its start, and the lab's checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.schema import TransformerConfig
from models.cpu_kernels import HEAD_SIZES
from models.transformer import BidirectionalTransformer, GridConvolution

LAB_KEYS = Path(__file__).parents[1] / "data" / "lab_transformer_keys.json"


def random_ids(config: TransformerConfig, batch: int = 3) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(config.codebook_size + 1, (batch, config.num_tokens))


def encoder_layer(state: dict[str, Tensor], index: int, config: TransformerConfig) -> nn.Module:
    """PyTorch's TransformerEncoderLayer with the weights of block ``index``."""
    layer = nn.TransformerEncoderLayer(
        config.dim,
        config.num_heads,
        config.mlp_dim,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=1e-12,
        batch_first=True,
        norm_first=config.norm == "pre",
    ).eval()
    prefix = f"blocks.{index}."
    ours = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    theirs = {
        "self_attn.in_proj_weight": ours["Attention.qkv.weight"],
        "self_attn.in_proj_bias": torch.zeros(3 * config.dim),
        "self_attn.out_proj.weight": ours["Attention.proj.weight"],
        "self_attn.out_proj.bias": ours["Attention.proj.bias"],
    }
    for own, name in [("MLP.0", "linear1"), ("MLP.2", "linear2")]:
        theirs |= {f"{name}.{part}": ours[f"{own}.{part}"] for part in ("weight", "bias")}
    for own, name in [("LayerNorm1", "norm1"), ("LayerNorm2", "norm2")]:
        theirs |= {f"{name}.{part}": ours[f"{own}.{part}"] for part in ("weight", "bias")}
    layer.load_state_dict(theirs)
    return layer


def reference_logits(
    state: dict[str, Tensor], token_ids: Tensor, config: TransformerConfig
) -> Tensor:
    """The report's transformer with PyTorch's layers, (B, N) -> (B, N, K + 1)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-12)

    x = norm(state["tok_emb.weight"][token_ids] + state["pos_emb"], "LN")
    for index in range(config.num_layers):
        x = encoder_layer(state, index, config)(x)
    if config.norm == "pre":
        x = norm(x, "final_norm")
    head = state["Token_Prediction.0.weight"], state["Token_Prediction.0.bias"]
    x = norm(F.gelu(F.linear(x, *head)), "Token_Prediction.2")
    return x @ state["tok_emb.weight"].T + state["bias"]


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("attention", ["plain", "fused"])
def test_logits_equal_those_of_pytorch_encoder_layers(transformer_config, norm, attention):
    config = transformer_config.model_copy(update={"norm": norm, "attention": attention})
    torch.manual_seed(0)
    model = BidirectionalTransformer(config).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.5)
    ids = random_ids(config)
    with torch.no_grad():
        expected = reference_logits(model.state_dict(), ids, config)
        torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=1e-4)


def test_lab_preset_has_exactly_the_keys_and_shapes_of_the_lab_checkpoint():
    with torch.device("meta"):
        model = BidirectionalTransformer(TransformerConfig())
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == json.loads(LAB_KEYS.read_text())


def test_a_lab_checkpoint_of_reduced_widths_loads_strictly_and_computes_the_same_function():
    smaller = {768: 32, 2304: 96, 1536: 48, 256: 16, 1025: 9}
    listing = json.loads(LAB_KEYS.read_text())
    torch.manual_seed(0)
    state = {key: 0.3 * torch.randn([smaller[n] for n in shape]) for key, shape in listing.items()}
    config = TransformerConfig(dim=32, mlp_dim=48, num_tokens=16, codebook_size=8, dropout=0.0)
    model = BidirectionalTransformer(config).eval()
    model.load_state_dict(state, strict=True)
    ids = random_ids(config)
    with torch.no_grad():
        expected = reference_logits(state, ids, config)
        torch.testing.assert_close(model(ids), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prior_dim", [0, 4])
def test_compact_logits_are_the_full_logits_at_the_masked_places(transformer_config, prior_dim):
    model, ids = built(transformer_config, prior_dim=prior_dim), random_ids(transformer_config)
    mask = torch.rand(ids.shape) < 0.4
    mask[1] = False  # an image with nothing hidden contributes no rows
    compact = model(ids, mask)
    assert compact.shape == (mask.sum(), transformer_config.codebook_size + 1)
    torch.testing.assert_close(compact, model(ids)[mask])


def test_the_head_is_given_few_different_numbers_of_places(transformer, transformer_config):
    ids, rows = random_ids(transformer_config), []
    places = ids.numel()
    transformer.Token_Prediction.register_forward_hook(lambda _, x, __: rows.append(len(x[0])))
    for hidden in range(places + 1):
        mask = (torch.randperm(places) < hidden).view_as(ids)
        assert len(transformer(ids, mask)) == hidden <= rows[-1] < hidden + places / HEAD_SIZES
    assert len(set(rows)) == HEAD_SIZES + 1  # none, and eighths


def test_compact_logits_of_nothing_are_empty(transformer, transformer_config):
    ids = random_ids(transformer_config)
    assert transformer(ids, torch.zeros_like(ids, dtype=torch.bool)).shape == (0, 17)


def test_every_token_sees_every_other_token(transformer, transformer_config):
    ids = random_ids(transformer_config, batch=1)
    before = transformer(ids)
    for changed in (0, transformer_config.num_tokens - 1):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % transformer_config.codebook_size
        assert ((transformer(other) - before).abs().amax(-1) > 1e-5).all()


def test_images_of_a_batch_do_not_see_each_other(transformer, transformer_config):
    ids = random_ids(transformer_config)
    alone = torch.cat([transformer(row[None]) for row in ids])
    torch.testing.assert_close(transformer(ids), alone)


def test_the_mask_token_is_one_beyond_the_last_code(transformer, transformer_config):
    assert transformer.mask_token_id == transformer_config.codebook_size
    transformer(torch.full((1, transformer_config.num_tokens), transformer.mask_token_id))


def test_the_output_matrix_is_the_embedding(transformer, transformer_config):
    # Weight tying: doubling the embedding of a code that is not in the input doubles its logits.
    ids = torch.zeros(1, transformer_config.num_tokens, dtype=torch.long)
    with torch.no_grad():
        transformer.bias.zero_()
        expected = transformer(ids)
        expected[..., 5] *= 2
        transformer.tok_emb.weight[5] *= 2
        torch.testing.assert_close(transformer(ids), expected)


def test_linear_and_embedding_weights_start_with_std_002_and_biases_at_zero():
    torch.manual_seed(0)
    model = BidirectionalTransformer(TransformerConfig(num_layers=1, num_tokens=16))
    for name, weight in model.state_dict().items():
        if name.endswith("bias"):
            assert (weight == 0).all(), name
        elif "LN" in name or "Norm" in name or name == "Token_Prediction.2.weight":
            assert (weight == 1).all(), name
        else:
            assert weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert abs(weight.mean()) < 1e-3, name


def test_dropout_changes_training_and_rests_in_eval(transformer_config):
    torch.manual_seed(0)
    model = BidirectionalTransformer(transformer_config.model_copy(update={"dropout": 0.5}))
    ids = random_ids(transformer_config)
    assert not torch.equal(model.train()(ids), model(ids))
    assert torch.equal(model.eval()(ids), model(ids))
    rates = {m.p for m in model.modules() if isinstance(m, nn.Dropout)}
    assert rates == {0.5}


OPTIONS = {
    "plain block": {},
    "convolution": {"conv_kernel": 3},
    "everything": {"conv_kernel": 3, "norm": "pre", "qkv_bias": True},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def built(config: TransformerConfig, **options: object) -> BidirectionalTransformer:
    """A transformer with large random weights, all drawn from the same seed."""
    torch.manual_seed(0)
    model = BidirectionalTransformer(config.model_copy(update=options))
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.5)
    return model.eval()


@every_option
def test_fused_and_plain_attention_agree_with_every_option(transformer_config, options):
    ids = random_ids(transformer_config)
    plain, fused = (
        built(transformer_config, **options, attention=kernel)(ids) for kernel in ("plain", "fused")
    )
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_additions_to_the_block_start_without_effect_and_learn(transformer_config, norm):
    config = transformer_config.model_copy(update={"norm": norm})
    torch.manual_seed(0)
    bare = BidirectionalTransformer(config)
    more = {"conv_kernel": 3}
    model = BidirectionalTransformer(config.model_copy(update=more))
    missing = model.load_state_dict(bare.state_dict(), strict=False).missing_keys
    assert {key.split(".", 2)[2] for key in missing} == {
        "surroundings.conv.weight",
        "surroundings.conv.bias",
    }
    ids = random_ids(config)
    assert torch.equal(model(ids), bare(ids))
    model(ids).square().sum().backward()
    added = {key: dict(model.named_parameters())[key].grad for key in missing}
    assert all(gradient.abs().max() > 0 for gradient in added.values())


def test_the_convolution_adds_what_stands_around_a_token_on_the_grid():
    convolution = GridConvolution(dim=2, grid=3, kernel=3)
    with torch.no_grad():
        convolution.conv.weight.zero_()
        convolution.conv.bias.zero_()
        convolution.conv.weight[0, 0, 0, 1] = 10.0  # the first channel looks up, the second not
    x = torch.arange(9.0)[None, :, None].expand(1, 9, 2)
    added = (convolution(x) - x)[0]
    assert added[:, 0].tolist() == [0, 0, 0, 0, 10, 20, 30, 40, 50]
    assert (added[:, 1] == 0).all()


@every_option
def test_recomputed_activations_give_the_same_gradients_also_with_dropout(
    transformer_config, options
):
    gradients = []
    for recompute in (False, True):
        model = built(transformer_config, **options, dropout=0.3).train()
        model.checkpoint_activations = recompute
        torch.manual_seed(5)
        model(random_ids(transformer_config)).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(*gradients)


def test_recomputation_keeps_less_for_the_way_back(transformer_config):
    kept = []
    for recompute in (False, True):
        model = built(transformer_config).train()
        model.checkpoint_activations = recompute
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x
        ):
            model(random_ids(transformer_config))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2


mostly_long = pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=[] if name == "everything" else [pytest.mark.long])
        for name, options in OPTIONS.items()
    ],
)


@mostly_long
def test_blocks_compile_into_one_graph_in_bf16(transformer_config, options):
    # aot_eager traces forward and backward as the real compiler does, and needs no C compiler
    options = {**options, "num_layers": 1}
    model = built(transformer_config, **options, attention="fused", dropout=0.1).train()
    body = torch.compile(model.body, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        body(random_ids(transformer_config), None, None).float().square().mean().backward()
    assert model.blocks[0].MLP[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize("prior_dim", [pytest.param(0, marks=pytest.mark.long), 4])
def test_logits_of_all_places_compile_into_one_graph(transformer_config, prior_dim):
    model = built(transformer_config, num_layers=1, prior_dim=prior_dim)
    ids = random_ids(transformer_config)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids), model(ids))
