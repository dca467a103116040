"""Write weights for release: half precision, and proof that they still do the same.

``python -m utils.training.release tokenizer --config config/cats64.yml --out FOLDER``
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from config.errors import UserError
from config.loading import load_config
from config.schema import Config
from models.conditioning import known_pixels
from models.transformer import BidirectionalTransformer
from models.vqgan import VQGAN
from utils.cli import ArgumentParser, add_config_arguments, run
from utils.data.augment import split_images
from utils.data.datasets import normalise, to_uint8
from utils.data.holes import draw_holes
from utils.device import pick_device
from utils.io.files import content_hash
from utils.training.holed import VAL_SEED
from utils.training.transformer import load_tokens
from utils.training.validate_transformer import validate
from utils.weights.description import read_header
from utils.weights.store import load_tokenizer, load_transformer, save_weights

CHECKED = 64  # validation images that both precisions decode
ALLOWED = 1.0  # grey levels that they may differ by on average
ALLOWED_LOSS = 0.01  # nats that their validation losses may differ by
Network = TypeVar("Network", VQGAN, BidirectionalTransformer)


def release_tokenizer(config: Config, folder: Path) -> str:
    """Write <folder>/vqgan.safetensors in fp16; returns a line on how close it is to fp32.

    Raises `UserError` when the two decode to pictures more than one grey level apart.
    """
    source, target = config.tokenizer_weights, folder / "vqgan.safetensors"
    full = load_tokenizer(source, config.tokenizer)
    half, rounded = in_half(full)
    images = split_images(config.data, "val")[:CHECKED]
    difference = decoded_difference(full, rounded, images, config)
    if difference > ALLOWED:
        raise UserError(f"{source}: fp16 decodes {difference:.2f} grey levels apart; not released")
    notes = {"source_sha256": content_hash([source]), "precision": "fp16"}
    save_weights(target, half, full.config, notes)
    return f"{_size(target)}, {difference:.3f} grey levels from fp32 on average"


def release_transformer(config: Config, folder: Path) -> str:
    """Write <folder>/transformer.safetensors in fp16; returns a line on how close it is to fp32.

    Raises `UserError` when their validation losses are more than 0.01 nats apart.
    """
    source, target = config.transformer_weights, folder / "transformer.safetensors"
    full = load_transformer(source, config.transformer)
    half, rounded = in_half(full)
    device = pick_device(config.device)
    network = config.transformer.model_copy(update=full.config.model_dump())
    tokens = load_tokens(config.model_copy(update={"transformer": network}), device)
    before, after = (
        validate(network.to(device), tokens.val, device, torch.float32, tokens.val_seen)["val_loss"]
        for network in (full, rounded)
    )
    if abs(after - before) > ALLOWED_LOSS:
        raise UserError(f"{source}: val loss {before:.4f}, in fp16 {after:.4f}; not released")
    notes = {k: str(v) for k, v in read_header(source).items() if isinstance(v, str)}
    notes |= {"source_sha256": content_hash([source]), "precision": "fp16"}
    save_weights(target, half, full.config, notes)
    return f"{_size(target)}, val loss {after:.4f} nats, {before:.4f} in fp32"


def in_half(network: Network) -> tuple[dict[str, Tensor], Network]:
    """Weights in fp16, and a network that has them."""
    half = {name: weight.half() for name, weight in network.state_dict().items()}
    rounded = type(network)(network.config).eval()
    rounded.load_state_dict(half)
    return half, rounded


PARTS = {"tokenizer": release_tokenizer, "transformer": release_transformer}


def _size(path: Path) -> str:
    return f"{path}: {path.stat().st_size / 1e6:.1f} MB"


@torch.inference_mode()
def decoded_difference(first: VQGAN, second: VQGAN, images: Tensor, config: Config) -> float:
    """Mean absolute difference in grey levels of what two tokenizers make of the same images.

    images: (n, 3, H, W) uint8; both decode the tokens that the first one finds.
    """
    mean, std = config.data.mean, config.data.std
    token_ids = first.encode(normalise(images, mean, std))
    known = None
    if first.config.conditioned:
        holes = draw_holes(config.data.hole_kind, range(len(images)), images.shape[-1], VAL_SEED)
        known = known_pixels(normalise(images, mean, std), torch.from_numpy(holes))
    a, b = (to_uint8(net.decode(token_ids, known), mean, std).float() for net in (first, second))
    return (a - b).abs().mean().item()


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS, help="which of the two networks")
    add_config_arguments(parser, {})
    parser.add_argument("--out", type=Path, required=True, help="folder of the released file")
    args = parser.parse_args()
    print(PARTS[args.part](load_config(args.config, args.set), args.out))


if __name__ == "__main__":
    run(main)
