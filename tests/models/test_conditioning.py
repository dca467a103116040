"""What each place knows of the picture, and what the transformer makes of it."""

from __future__ import annotations

import pytest
import torch

from config.schema import DecodingConfig, MaskingConfig
from models.conditioning import known_features, known_pixels, known_width
from models.maskgit import MaskGIT
from models.masking import token_loss
from models.transformer import BidirectionalTransformer, with_conditioning
from models.vqgan import VQGAN

GRID, PATCH, CHANNELS = 4, 4, 8


@pytest.fixture
def seeing_config(transformer_config):
    return transformer_config.model_copy(update={"conditioning": "pixels", "prior_dim": CHANNELS})


@pytest.fixture
def seeing(seeing_config) -> BidirectionalTransformer:
    """An untrained transformer with conditioning and weights large enough for opinions."""
    torch.manual_seed(0)
    network = BidirectionalTransformer(seeing_config)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return network.eval()


def images_and_holes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    images = torch.randn(count, 3, 16, 16, generator=generator)
    return images, torch.rand(count, 16, 16, generator=generator) < 0.1


def test_features_of_a_place_are_its_own_pixels_hole_bits_and_scaled_latents(seeing_config):
    images, holes = images_and_holes(2)
    latents, codes = torch.randn(2, GRID, GRID, CHANNELS), 5 + 3 * torch.randn(16, CHANNELS)
    found = known_features(images, holes, latents, codes, seeing_config)
    assert found.shape == (2, GRID * GRID, known_width(seeing_config))
    for row in range(GRID):
        for column in range(GRID):
            place = found[1, GRID * row + column]
            down = slice(PATCH * row, PATCH * (row + 1))
            across = slice(PATCH * column, PATCH * (column + 1))
            assert torch.equal(place[:48], images[1, :, down, across].flatten())
            assert torch.equal(place[48:64], holes[1, down, across].float().flatten())
            scaled = (latents[1, row, column] - codes.mean(0)) / codes.std()
            assert torch.allclose(place[64:], scaled)


def test_without_a_prior_no_latents_are_shown(transformer_config):
    config = transformer_config.model_copy(update={"conditioning": "pixels"})
    images, holes = images_and_holes(1)
    latents, codes = torch.randn(1, GRID, GRID, CHANNELS), torch.randn(16, CHANNELS)
    assert known_features(images, holes, latents, codes, config).shape == (1, 16, 64)


def test_conditioning_starts_without_any_effect(transformer):
    grown, ids = with_conditioning(transformer, 4), torch.randint(17, (3, 16))
    known = torch.randn(3, 16, known_width(grown.config))
    assert grown.config.conditioning == "pixels"
    assert torch.equal(grown(ids, known=known), transformer(ids))
    grown(ids, known=known).sum().backward()
    assert grown.known.weight.grad.abs().sum() > 0  # and yet it learns


def test_a_fresh_network_has_the_weights_it_would_have_without_conditioning(transformer_config):
    torch.manual_seed(1)
    plain = BidirectionalTransformer(transformer_config).state_dict()
    torch.manual_seed(1)
    config = transformer_config.model_copy(update={"conditioning": "pixels"})
    seeing = BidirectionalTransformer(config).state_dict()
    for name, weight in plain.items():
        assert torch.equal(weight, seeing[name]), name
    assert all((seeing[name] == 0).all() for name in seeing.keys() - plain.keys())


def test_known_pixels_are_given_where_they_are_wanted_and_nowhere_else(seeing, transformer):
    ids, known = torch.zeros(1, 16, dtype=torch.long), torch.zeros(1, 16, 72)
    with pytest.raises(AssertionError):
        seeing(ids)
    with pytest.raises(AssertionError):
        transformer(ids, known=known)


def test_logits_at_picked_places_are_those_of_all_places(seeing):
    ids, mask = torch.randint(17, (2, 16)), torch.rand(2, 16) < 0.5
    known = torch.randn(2, 16, known_width(seeing.config))
    everywhere = seeing(ids, known=known)
    assert torch.allclose(seeing(ids, mask, known), everywhere[mask], atol=1e-5)


def test_the_loss_sees_known_pixels(seeing):
    ids, mask = torch.randint(16, (2, 16)), torch.ones(2, 16, dtype=torch.bool)
    known = torch.randn(2, 16, known_width(seeing.config))
    for loss_on in ("all", "hidden"):
        masking = MaskingConfig(loss_on=loss_on)
        losses = [token_loss(seeing, ids, mask, masking, known=k) for k in (known, -known)]
        assert losses[0] != losses[1]


@pytest.mark.parametrize("samples", [1, 2])
def test_a_repair_with_conditioning_does_not_depend_on_its_batch(
    tokenizer, seeing, inpaint, samples
):
    maskgit = MaskGIT(tokenizer, seeing, "cosine").eval()
    images, holes = images_and_holes(5)
    holes[3] = False  # an image without a hole is finished at once
    settings = DecodingConfig(rule="maskgit", total_iter=4)
    common = {"settings": settings, "seed": 3, "samples": samples}
    ids = torch.arange(5)
    together = inpaint(maskgit, images, holes, image_ids=ids, **common)
    one = [slice(i, i + 1) for i in range(5)]
    alone = [inpaint(maskgit, images[i], holes[i], image_ids=ids[i], **common) for i in one]
    assert torch.equal(together, torch.cat(alone))


def test_a_picture_without_a_known_pixel_is_repaired(tokenizer, seeing):
    maskgit = MaskGIT(tokenizer, seeing, "cosine").eval()
    images, holes = torch.zeros(1, 3, 16, 16), torch.ones(1, 16, 16, dtype=torch.bool)
    start = maskgit.start(images, holes)
    assert start.token_mask.all()
    assert (start.known[..., 48:64] == 1).all()
    *_, last = maskgit.finish(start, DecodingConfig(), seed=0, image_ids=torch.arange(1))
    assert last.token_ids.shape == (1, 16)
    assert (last.token_ids < 16).all()


def test_a_network_without_conditioning_starts_without_features(maskgit):
    assert maskgit.start(*images_and_holes(1)).known is None


# The decoder


def seeing_decoder(tokenizer) -> VQGAN:
    """The tokenizer with the fresh maps of a decoder that sees known pixels."""
    network = VQGAN(tokenizer.config.model_copy(update={"decoder_conditioning": "pixels"}))
    network.load_state_dict(network.state_dict() | tokenizer.state_dict())
    return network.eval()


def test_a_decoders_conditioning_starts_without_any_effect_and_yet_learns(tokenizer):
    network, token_ids = seeing_decoder(tokenizer), torch.randint(16, (2, 16))
    known = known_pixels(*images_and_holes(2))
    assert torch.equal(network.decode(token_ids, known), tokenizer.decode(token_ids))
    codes = network.codebook.lookup(token_ids).mT.unflatten(2, (4, 4))
    network.decode_latents(codes, known).sum().backward()
    scales = list(network.decoder.known.values())
    assert [scale.factor for scale in scales] == [4, 2, 1]
    assert all(scale.last.weight.grad.abs().sum() > 0 for scale in scales)


@pytest.mark.parametrize("scale", [0, 1, 2])
def test_a_decoder_sees_pixels_and_holes_at_every_scale(tokenizer, scale):
    network, token_ids = seeing_decoder(tokenizer), torch.randint(16, (1, 16))
    torch.nn.init.normal_(list(network.decoder.known.values())[scale].last.weight)
    images, holes = images_and_holes(1)
    before = network.decode(token_ids, known_pixels(images, holes))
    assert not torch.equal(before, network.decode(token_ids, known_pixels(images + 1, holes)))
    assert not torch.equal(before, network.decode(token_ids, known_pixels(images, ~holes)))


def test_known_pixels_are_the_image_and_its_hole():
    images, holes = images_and_holes(2)
    known = known_pixels(images, holes)
    assert torch.equal(known[:, :3], images)
    assert torch.equal(known[:, 3].bool(), holes)


def test_a_start_holds_what_its_decoder_sees(tokenizer, transformer):
    images, holes = images_and_holes(1)
    plain = MaskGIT(tokenizer, transformer, "cosine").eval()
    assert plain.start(images, holes).pixels is None
    seeing = MaskGIT(seeing_decoder(tokenizer), transformer, "cosine").eval()
    found = seeing.start(images, holes).pixels
    assert torch.equal(found, known_pixels(images, holes))
