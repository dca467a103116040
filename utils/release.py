"""Write weights for release: half precision, and proof that the pictures stay the same.

``python -m utils.release --config config/cats64.yml --out models/pretrained/cats64``
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from config.errors import UserError
from config.loading import load_config
from config.schema import Config
from models.vqgan import VQGAN
from utils.checkpoint import load_tokenizer, save_weights
from utils.cli import ArgumentParser, add_config_arguments, run
from utils.data import ImageFolder, normalise, to_uint8
from utils.files import content_hash

CHECKED = 64  # validation images that both precisions decode
ALLOWED = 1.0  # grey levels that they may differ by on average


def release_tokenizer(config: Config, folder: Path) -> dict[str, float]:
    """Write <folder>/vqgan.safetensors in fp16; returns the mean difference in grey levels.

    Raises `UserError` when the two decode to pictures more than one grey level apart.
    """
    source, target = config.tokenizer_weights, folder / "vqgan.safetensors"
    full = load_tokenizer(source, config.tokenizer)
    half = {name: weight.half() for name, weight in full.state_dict().items()}
    rounded = VQGAN(full.config).eval()
    rounded.load_state_dict(half)
    difference = decoded_difference(full, rounded, _images(config), config)
    if difference > ALLOWED:
        raise UserError(f"{source}: fp16 decodes {difference:.2f} grey levels apart; not released")
    notes = {"source_sha256": content_hash([source]), "precision": "fp16"}
    save_weights(target, half, full.config, notes)
    return {"difference": difference, "megabytes": target.stat().st_size / 1e6}


@torch.inference_mode()
def decoded_difference(first: VQGAN, second: VQGAN, images: Tensor, config: Config) -> float:
    """Mean absolute difference in grey levels of what two tokenizers make of the same images.

    images: (n, 3, H, W) uint8; both decode the tokens that the first one finds.
    """
    mean, std = config.data.mean, config.data.std
    token_ids = first.encode(normalise(images, mean, std))
    a, b = (to_uint8(vqgan.decode(token_ids), mean, std).float() for vqgan in (first, second))
    return (a - b).abs().mean().item()


def _images(config: Config) -> Tensor:
    return ImageFolder(config.data.root / "val", config.data.image_size).images[:CHECKED]


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add_config_arguments(parser, {})
    parser.add_argument("--out", type=Path, required=True, help="folder of the released file")
    args = parser.parse_args()
    figures = release_tokenizer(load_config(args.config, args.set), args.out)
    print(
        f"{args.out / 'vqgan.safetensors'}: {figures['megabytes']:.1f} MB, "
        f"{figures['difference']:.3f} grey levels from fp32 on average"
    )


if __name__ == "__main__":
    run(main)
