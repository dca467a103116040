"""The tokenizer against a plain reading of the lab's state dict, brute force and geometry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from config.schema import TokenizerConfig
from models.vqgan import VQGAN, Encoder

LAB_KEYS = Path(__file__).parents[1] / "data" / "lab_vqgan_keys.json"
State = dict[str, Tensor]


def conv(state: State, name: str, x: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
    weight = state[f"{name}.weight"]
    padding = weight.shape[-1] // 2 if padding is None else padding
    return F.conv2d(x, weight, state[f"{name}.bias"], stride, padding)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, 32, state[f"{name}.gn.weight"], state[f"{name}.gn.bias"], 1e-6)


def residual(state: State, name: str, x: Tensor) -> Tensor:
    h = conv(state, f"{name}.block.2", F.silu(norm(state, f"{name}.block.0", x)))
    h = conv(state, f"{name}.block.5", F.silu(norm(state, f"{name}.block.3", h)))
    return h + (conv(state, f"{name}.channel_up", x) if f"{name}.channel_up.weight" in state else x)


def attention(state: State, name: str, x: Tensor) -> Tensor:
    h = norm(state, f"{name}.norm", x)
    q, k, v = (conv(state, f"{name}.{part}", h).flatten(2).mT for part in "qkv")  # (B, N, C)
    attended = F.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape)
    return x + conv(state, f"{name}.proj_out", attended)


def lab_half(state: State, half: str, x: Tensor) -> Tensor:
    """Run encoder or decoder by reading what each numbered place of the lab's listing is."""
    prefix = f"{half}.model."
    places = sorted({int(key.removeprefix(prefix).split(".")[0]) for key in state if half in key})
    for place in places:
        name = f"{prefix}{place}"
        if f"{name}.gn.weight" in state:
            x = norm(state, name, x)
            x = F.silu(x) if half == "encoder" else x
        elif f"{name}.block.2.weight" in state:
            x = residual(state, name, x)
        elif f"{name}.q.weight" in state:
            x = attention(state, name, x)
        elif f"{name}.conv.weight" in state and half == "encoder":
            x = conv(state, f"{name}.conv", F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
        elif f"{name}.conv.weight" in state:
            doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = conv(state, f"{name}.conv", doubled)
        else:
            x = conv(state, name, x)
    return x


def test_lab_preset_has_exactly_the_keys_and_shapes_of_the_lab_checkpoint():
    with torch.device("meta"):
        model = VQGAN(TokenizerConfig())
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == json.loads(LAB_KEYS.read_text())


def test_a_lab_checkpoint_of_reduced_widths_loads_strictly_and_computes_the_same_function():
    smaller = {128: 32, 256: 64, 512: 128, 1024: 8, 3: 3, 1: 1}
    listing = json.loads(LAB_KEYS.read_text())
    torch.manual_seed(0)
    state = {key: 0.1 * torch.randn([smaller[n] for n in shape]) for key, shape in listing.items()}
    config = TokenizerConfig(
        encoder_channels=[32, 32, 32, 64, 64, 128],
        decoder_channels=[32, 32, 64, 64, 128],
        latent_dim=64,
        codebook_size=8,
    )
    model = VQGAN(config).eval()
    model.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        z = conv(state, "quant_conv", lab_half(state, "encoder", images))
        torch.testing.assert_close(
            model.latents(images), z.permute(0, 2, 3, 1), rtol=1e-3, atol=1e-4
        )
        decoded = lab_half(state, "decoder", conv(state, "post_quant_conv", z))
        torch.testing.assert_close(model.decode_latents(z), decoded, rtol=1e-3, atol=1e-3)


def some_images(count: int = 4, side: int = 16) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(count, 3, side, side)


def test_tokens_are_the_nearest_codes_by_brute_force_distance(tokenizer_config):
    torch.manual_seed(0)
    model = VQGAN(tokenizer_config).eval()
    images = some_images(16)
    with torch.no_grad():
        picked = model.latents(images).flatten(0, 2)[::16]
        model.codebook.embedding.weight.copy_(1.1 * picked)
        z, codes = model.latents(images), model.codebook.embedding.weight
        expected = torch.cdist(z.double().flatten(0, 2), codes.double()).argmin(1)
    assert torch.equal(model.encode(images).flatten(), expected)
    assert len(expected.unique()) > 8  # or the test says nothing


def test_nearest_code_of_a_code_is_itself(tokenizer):
    codes = tokenizer.codebook.embedding.weight.detach()
    grid = codes.view(2, 8, -1)
    assert tokenizer.codebook.nearest(grid).tolist() == torch.arange(16).view(2, 8).tolist()


def test_encode_to_z_gives_the_codes_on_the_grid_and_the_flat_ids(tokenizer):
    images = some_images()
    z_q, ids = tokenizer.encode_to_z(images)
    assert z_q.shape == (4, 8, 4, 4)
    assert ids.shape == (4, 16)
    assert ids.dtype == torch.int64
    assert torch.equal(ids, tokenizer.encode(images))
    codes = tokenizer.codebook.embedding.weight
    for row in range(4):
        for column in range(4):
            assert torch.equal(z_q[1, :, row, column], codes[ids[1, 4 * row + column]])


def test_decode_gives_images_from_ids_by_way_of_the_codes(tokenizer):
    images = some_images()
    z_q, ids = tokenizer.encode_to_z(images)
    decoded = tokenizer.decode(ids)
    assert decoded.shape == images.shape
    assert torch.equal(decoded, tokenizer.decode_latents(z_q))


@pytest.fixture
def local_config(tokenizer_config: TokenizerConfig) -> TokenizerConfig:
    """Per-position norm, no attention, kernel 3 above the first halving, kernel 1 below it."""
    return tokenizer_config.model_copy(
        update={
            "encoder_kernels": [3, 1],
            "downsample_kernel": 2,
            "norm": "position",
            "encoder_attention": False,
            "decoder_attention": False,
        }
    )


def tokens_changed_by_pixel(config: TokenizerConfig, row: int, column: int) -> set[tuple[int, int]]:
    """Places of the 8 x 8 token grid whose latent is not bitwise the same."""
    torch.manual_seed(0)
    encoder = Encoder(config).eval()
    images = some_images(1, side=32)
    changed = images.clone()
    changed[0, :, row, column] += 5
    with torch.no_grad():
        differs = (encoder(images) != encoder(changed)).any(1)[0]
    return {tuple(place) for place in differs.nonzero().tolist()}


@pytest.mark.parametrize("pixel", [(0, 0), (13, 18), (16, 15), (31, 31)])
def test_a_token_sees_its_patch_and_three_pixels_around_it_and_nothing_else(local_config, pixel):
    # First convolution 1 pixel, two more in the one residual block: 3; later kernels add nothing.
    reach = 3
    expected = {
        (i, j)
        for i in range(8)
        for j in range(8)
        if 4 * i - reach <= pixel[0] < 4 * i + 4 + reach
        and 4 * j - reach <= pixel[1] < 4 * j + 4 + reach
    }
    assert tokens_changed_by_pixel(local_config, *pixel) == expected


def test_the_padded_downsampling_looks_one_pixel_further_right_and_below(local_config):
    config = local_config.model_copy(update={"downsample_kernel": 3})
    changed = tokens_changed_by_pixel(config, 16, 16)
    # Kernel 3 at 32 px reaches 1 further, at 16 px 2 further: tokens above and left see the pixel.
    assert {(3, 3), (3, 4), (4, 3), (4, 4)} <= changed
    assert (5, 5) not in changed


@pytest.mark.parametrize("update", [{"norm": "group"}, {"encoder_attention": True}])
def test_group_norm_and_attention_let_one_pixel_reach_every_token(local_config, update):
    config = local_config.model_copy(update=update)
    assert len(tokens_changed_by_pixel(config, 0, 0)) == 64


def test_a_decoded_image_lies_the_way_its_tokens_do(local_config):
    torch.manual_seed(0)
    model = VQGAN(local_config).eval()
    torch.nn.init.normal_(model.codebook.embedding.weight)
    ids = torch.zeros(1, 64, dtype=torch.long)
    other = ids.clone()
    other[0, 8 * 3 + 5] = 3  # row 3, column 5 of an 8 x 8 grid: pixels 12..15 down, 20..23 across
    strength = (model.decode(ids) - model.decode(other)).abs().sum(1)[0]  # (32, 32)
    rows, columns = torch.arange(32.0), torch.arange(32.0)
    centre = (strength.sum(1) @ rows / strength.sum(), strength.sum(0) @ columns / strength.sum())
    assert centre[0].item() == pytest.approx(13.5, abs=2)
    assert centre[1].item() == pytest.approx(21.5, abs=2)


def test_encoding_keeps_no_graph(tokenizer):
    images = some_images().requires_grad_()
    z_q, ids = tokenizer.encode_to_z(images)
    assert not z_q.requires_grad
    assert not ids.requires_grad
    assert not tokenizer.decode(ids).requires_grad


def test_position_norm_is_layer_norm_over_channels(local_config):
    model = Encoder(local_config)
    layer = model.model[1].block[0]
    x = torch.randn(2, 8, 3, 3)
    expected = (x - x.mean(1, keepdim=True)) / (
        x.var(1, unbiased=False, keepdim=True) + 1e-6
    ).sqrt()
    torch.testing.assert_close(layer(x), expected)
