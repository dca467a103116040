"""What repairs are compared with: the regressor and the other sides."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench import repair, tokenizer_quality
from bench.common import RELEASED, ROOT
from bench.repair import SHARES
from bench.sides import Rounded, side
from bench.unet import UNet, load_unet, repaired, shown_to
from config.errors import UserError
from utils.data.fill import fill_hole
from utils.data.holes import draw_hole
from utils.inpainting.inpainter import Inpainter


def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    holes = np.stack([draw_hole("box", 16, (0.2, 0.4), 0, i) for i in range(count)])
    return rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8), holes


def test_a_fresh_regressor_gives_the_biharmonic_fill(config):
    images, holes = pictures(2)
    filled = [fill_hole(*pair, "biharmonic") for pair in zip(images, holes, strict=True)]
    made = repaired(UNet().eval(), images, holes, config)
    assert np.abs(made.astype(int) - np.stack(filled)).max() <= 1  # rounding


def test_the_regressor_has_about_800_000_parameters_and_every_one_of_them_counts(config):
    network = UNet()
    torch.nn.init.normal_(network.last.weight)
    network(shown_to(*pictures(2), config)).square().sum().backward()
    assert 0.7e6 < sum(weight.numel() for weight in network.parameters()) < 0.9e6
    assert all(weight.grad.abs().sum() > 0 for weight in network.parameters())


def test_a_regressor_is_read_back_and_any_other_file_is_one_line(tmp_path):
    path, network = tmp_path / "unet.safetensors", UNet()
    save_file(network.state_dict(), path)
    found = load_unet(path).state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in network.state_dict().items())
    path.write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="is no U-Net"):
        load_unet(path)


@pytest.mark.parametrize("name", ["biharmonic", "unet", "ours", "bf16"])
def test_no_side_looks_at_what_a_hole_hides(weights, name):
    images, holes = pictures(2)
    other = np.where(holes[..., None], 255 - images, images)
    inpainter, unet = Inpainter(weights), UNet().eval()
    first, second = (side(name, inpainter, truth, holes, unet) for truth in (images, other))
    assert (first == second).all()


def test_rounded_products_are_those_of_autocast():
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(64, 8), torch.randn(4, 64)
    with Rounded():
        found = linear(x) @ x[:, :8].T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = linear(x) @ x[:, :8].T
    assert not torch.equal(found, linear(x) @ x[:, :8].T)
    torch.testing.assert_close(found, expected.float(), rtol=2**-7, atol=2**-9)


def test_true_tokens_are_those_of_the_whole_image(weights):
    images, holes = pictures(2)
    other = np.where(holes[..., None], 255 - images, images)
    inpainter = Inpainter(weights)
    first, second = (side("true_tokens", inpainter, t, holes, None) for t in (images, other))
    assert (first != second).any()


def test_drawn_holes_have_each_kind_and_share_and_follow_the_seed(config):
    args = SimpleNamespace(holes=["lab", "box"], images=2, split="val")
    cells = list(repair._cells(args, config, 3))
    assert [cell.name for cell in cells[:3]] == ["lab 10-20 %", "lab 20-40 %", "lab 40-60 %"]
    assert len(cells) == 6
    for cell, (low, high) in zip(cells, 2 * SHARES, strict=True):
        assert cell.truth.shape == (2, 16, 16, 3)
        shares = cell.holes.mean((1, 2))
        assert (shares >= low - 0.02).all()
        assert (shares <= high + 0.02).all()
    again = next(iter(repair._cells(args, config, 3)))
    assert (again.holes == cells[0].holes).all()
    other = next(iter(repair._cells(args, config, 4)))
    assert (other.holes != cells[0].holes).any()


def test_figures_over_seeds_are_their_mean_and_spread():
    each = [{"ours": {"hole_mae": 1.0}}, {"ours": {"hole_mae": 3.0}}]
    assert repair._over(each, np.mean) == {"ours": {"hole_mae": 2.0}}
    assert repair._over(each, np.std) == {"ours": {"hole_mae": 1.0}}


class Stopped(Exception):
    """The benchmark got this far, with these weights."""


@pytest.mark.parametrize(
    ("bench", "next_step", "weights_of"),
    [
        (repair, "_measure", lambda _args, config, _unet: config.tokenizer_weights),
        (tokenizer_quality, "load_tokenizer", lambda path, _config: path),
    ],
)
def test_while_a_run_has_no_weights_the_released_ones_are_measured(
    bench, next_step, weights_of, tmp_path, monkeypatch
):
    def stop(*given):
        raise Stopped(weights_of(*given))

    monkeypatch.setattr(bench, next_step, stop)
    command = ["bench", "--config", str(ROOT / "config" / "cats64.yml"), "--set", f"run={tmp_path}"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(Stopped) as stopped:
        bench.main()
    assert stopped.value.args[0].resolve() == RELEASED / "vqgan.safetensors"
