"""All figures of a tokenizer's model card, in one command.

    python -m bench.tokenizer_quality --config config/cats64.yml --data data/cats64

Reconstruction of the images of val/ (PSNR, SSIM, EfficientNet-Lite0 Frechet distance, the same
with EfficientNet-Lite2, which no training here uses, codes in use) and the share of
known tokens that the holes of mask64/ leave unchanged. Last line: one JSON object.

A known token is one without any hidden pixel. Its index in the filled image is compared with its
index in the true image. Shapes: n images, N tokens.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.ndimage import distance_transform_cdt
from tqdm import tqdm

from bench.common import CONFIG_OPTIONS, add_quick, report
from config.loading import load_config
from config.schema import DataConfig
from models.masking import token_mask_from_holes
from models.vqgan import VQGAN
from utils.cli import ArgumentParser, add_config_arguments, as_overrides, run
from utils.data.augment import load_images
from utils.data.datasets import InpaintingSet, normalise
from utils.data.fill import fill_hole
from utils.device import pick_device, pick_dtype
from utils.inpainting.pretrained import or_pretrained
from utils.io.files import content_hash
from utils.scoring import HELD_OUT, FeatureDistance
from utils.training.validate_tokenizer import TokenizerValidation
from utils.weights.store import load_tokenizer

ENCODED_AT_ONCE = 16  # larger batches exceed the CPU cache
FARTHEST = 4  # distances from here on are counted together


def kept_tokens(
    vqgan: VQGAN, dataset: InpaintingSet, data: DataConfig, fill: str, device: torch.device
) -> dict[str, float]:
    """Share of known tokens that keep their index, overall and by distance to the hole in tokens.

    Keys: "all", "1", "2", "3", "4+", and "2+". The set must come with its ground truth.
    """
    kept, known = np.zeros(FARTHEST + 1), np.zeros(FARTHEST + 1)
    for start in tqdm(range(0, len(dataset), ENCODED_AT_ONCE), f"{fill} fill", dynamic_ncols=True):
        items = [dataset[i] for i in range(start, min(start + ENCODED_AT_ONCE, len(dataset)))]
        truths = np.stack([dataset.ground_truth(item.index, item.image) for item in items])
        filled = np.stack([fill_hole(item.image, item.hole, fill) for item in items])
        before, after = (
            vqgan.encode(normalise(images, data.mean, data.std).to(device)).cpu().numpy()
            for images in (truths, filled)
        )
        distance = token_distance(np.stack([item.hole for item in items]), before.shape[1])
        for far in range(1, FARTHEST + 1):
            here = distance == far
            kept[far] += (before == after)[here].sum()
            known[far] += here.sum()
    names = [*map(str, range(FARTHEST)), f"{FARTHEST}+"]
    shares = {names[far]: kept[far] / known[far] for far in range(1, FARTHEST + 1) if known[far]}
    return {"all": kept.sum() / known.sum(), **shares, "2+": kept[2:].sum() / known[2:].sum()}


def token_distance(holes: np.ndarray, num_tokens: int) -> np.ndarray:
    """Chessboard distance of every token to the nearest hidden one, 0 if hidden: (n, N) int.

    Clipped to `FARTHEST`, which is also the value for images without holes.
    """
    side = math.isqrt(num_tokens)
    masks = token_mask_from_holes(torch.from_numpy(holes), side).numpy().reshape(-1, side, side)
    distances = [
        distance_transform_cdt(~mask, "chessboard") if mask.any() else np.full(mask.shape, FARTHEST)
        for mask in masks
    ]
    return np.minimum(np.stack(distances), FARTHEST).reshape(len(holes), num_tokens)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add_config_arguments(parser, CONFIG_OPTIONS)
    add_quick(parser)
    args = parser.parse_args()
    config = or_pretrained(load_config(args.config, as_overrides(args, CONFIG_OPTIONS)))
    device = pick_device(config.device)
    vqgan = load_tokenizer(config.tokenizer_weights, config.tokenizer).to(device)
    images = load_images(config.data.root / "val", config.data.image_size)
    dtype = pick_dtype(config.precision, device)
    images = images[: config.tokenizer.training.validation_images]
    validation = TokenizerValidation(images, config, device, dtype)
    figures = {name: round(value, 4) for name, value in validation(vqgan).items()}
    held_out = FeatureDistance(validation.images, device, HELD_OUT)
    figures["frechet_referee"] = round(held_out(validation.outputs), 4)
    holed = InpaintingSet(config.data.root)
    kept = kept_tokens(vqgan, holed, config.data, config.decoding.hole_fill, device)
    figures["kept_tokens"] = {distance: round(share, 4) for distance, share in kept.items()}
    details = {
        "images": len(validation.images),
        "holed_images": len(holed),
        "hole_fill": config.decoding.hole_fill,
        "parameters": sum(weight.numel() for weight in vqgan.parameters()),
        "tokenizer_sha256": content_hash([config.tokenizer_weights]),
    }
    report("tokenizer_quality", figures, details, args.quick)


if __name__ == "__main__":
    run(main)
