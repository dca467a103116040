"""Train the regression baseline of bench.repair: a small U-Net, without sampling.

    python -m bench.unet --config config/cats64.yml --data data/cats64 --out unet.safetensors

It corrects the filled image, given its hole, and is trained on the mean absolute error in the hole
for some minutes of CPU time. That loss favours blur, so it is hard to beat in pixel error and easy
in distance.
Shapes: B batch, H x W pixels, multiples of 4.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.common import CONFIG_OPTIONS
from config.errors import UserError
from config.loading import load_config
from config.schema import Config
from models.conditioning import known_pixels
from utils.cli import ArgumentParser, add_config_arguments, as_overrides, run
from utils.data.augment import load_images
from utils.data.datasets import normalise, to_uint8
from utils.data.fill import fill_hole
from utils.data.holes import draw_holes
from utils.rng import generator_for

WIDTHS = (32, 64, 128)  # at the image's size, half and a quarter of it
BATCH = 16
LEARNING_RATE = 2e-3


class UNet(nn.Module):
    """Filled images and holes (B, 4, H, W) -> corrected images (B, 3, H, W), normalised."""

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.down = nn.ModuleList([_block(4, fine), _block(fine, middle)])
        self.bottom = nn.Sequential(_block(middle, coarse), _block(coarse, coarse))
        self.up = nn.ModuleList([_block(coarse + middle, middle), _block(middle + fine, fine)])
        self.last = nn.Conv2d(fine, 3, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, known: Tensor) -> Tensor:
        x, skipped = known, []
        for block in self.down:
            skipped.append(block(x))
            x = F.avg_pool2d(skipped[-1], 2)
        x = self.bottom(x)
        for block in self.up:
            x = F.interpolate(x, scale_factor=2.0)
            x = block(torch.cat([x, skipped.pop()], 1))
        return known[:, :3] + self.last(x)


def _block(c_in: int, c_out: int) -> nn.Sequential:
    layers = []
    for width in (c_in, c_out):
        layers += [nn.Conv2d(width, c_out, 3, padding=1), nn.GroupNorm(8, c_out), nn.SiLU()]
    return nn.Sequential(*layers)


def train(config: Config, minutes: float) -> tuple[UNet, int]:
    """The network after `minutes` of CPU time, and the number of images seen."""
    images = load_images(config.data.folder("train"), config.data.image_size)
    torch.manual_seed(config.seed)
    network, data = UNet().to(memory_format=torch.channels_last), config.data
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, betas=(0.9, 0.95))
    step, began = 0, time.process_time()
    while (share := (time.process_time() - began) / (60 * minutes)) < 1:
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - share) * min(1, (step + 1) / 20)
        generator = generator_for(config.seed, step)
        chosen = images[torch.randint(len(images), (BATCH,), generator=generator)]
        seed = generator.initial_seed()
        holes = draw_holes(data.hole_kind, range(BATCH), images.shape[-1], seed)
        shown = shown_to(chosen.permute(0, 2, 3, 1).numpy(), holes, config)
        error = (network(shown) - normalise(chosen, data.mean, data.std)).abs().mean(1)
        optimizer.zero_grad()
        error[torch.from_numpy(holes)].mean().backward()
        optimizer.step()
        step += 1
    return network.eval(), step * BATCH


def shown_to(images: np.ndarray, holes: np.ndarray, config: Config) -> Tensor:
    """U-Net input for images (B, H, W, 3) uint8 with holes (B, H, W), (B, 4, H, W)."""
    pairs = zip(images, holes, strict=True)
    filled = np.stack([fill_hole(*pair, "biharmonic") for pair in pairs])
    pixels = normalise(filled, config.data.mean, config.data.std)
    return known_pixels(pixels, torch.from_numpy(holes))


@torch.inference_mode()
def repaired(network: UNet, images: np.ndarray, holes: np.ndarray, config: Config) -> np.ndarray:
    """Repairs of images (B, H, W, 3) uint8 with holes (B, H, W), known pixels unchanged."""
    outputs = network(shown_to(images, holes, config))
    pixels = to_uint8(outputs, config.data.mean, config.data.std).numpy()
    return np.where(holes[..., None], pixels, images)


def load_unet(path: Path) -> UNet:
    """A trained network; raises `UserError` for any other file."""
    network = UNet()
    try:
        network.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        cure = "train one with python -m bench.unet"
        raise UserError(f"{path}: is no U-Net of bench.unet; {cure}") from error
    return network.eval()


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add_config_arguments(parser, CONFIG_OPTIONS)
    parser.add_argument("--minutes", type=float, default=2.0, help="of CPU time")
    parser.add_argument("--out", type=Path, required=True, help="weights file to write")
    args = parser.parse_args()
    config = load_config(args.config, as_overrides(args, CONFIG_OPTIONS))
    network, shown = train(config, args.minutes)
    weights = {name: weight.contiguous() for name, weight in network.state_dict().items()}
    save_file(weights, args.out)
    parameters = sum(weight.numel() for weight in weights.values())
    print(f"{args.out}: {parameters:,} parameters, shown {shown:,} images")


if __name__ == "__main__":
    run(main)
