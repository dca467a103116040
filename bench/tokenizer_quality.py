"""All figures of a tokenizer's model card, in one command.

    python -m bench.tokenizer_quality --config config/cats64.yml --data data/cats64

Reconstruction of the images of val/ (PSNR, SSIM, EfficientNet-Lite0 Frechet distance, the same
with features of EfficientNet-Lite2, which no training here has seen, codes in use) and the share of
known tokens that the holes of mask64/ leave unchanged. Last line: one JSON object.
"""

from __future__ import annotations

from bench.common import CONFIG_OPTIONS, add_quick, report
from config.loading import load_config
from utils.cli import ArgumentParser, add_config_arguments, as_overrides, run
from utils.data.datasets import ImageFolder, InpaintingSet
from utils.data.leak import kept_tokens
from utils.device import pick_device, pick_dtype
from utils.io.files import content_hash
from utils.scoring import HELD_OUT, FeatureDistance
from utils.training.validate_tokenizer import TokenizerValidation
from utils.weights.store import load_tokenizer

OPTIONS = CONFIG_OPTIONS | {
    "--images": ("tokenizer.training.validation_images", int, "images of val/ to reconstruct"),
}


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add_config_arguments(parser, OPTIONS)
    add_quick(parser)
    args = parser.parse_args()
    config = load_config(args.config, as_overrides(args, OPTIONS))
    device = pick_device(config.device)
    vqgan = load_tokenizer(config.tokenizer_weights, config.tokenizer).to(device)
    images = ImageFolder(config.data.root / "val", config.data.image_size).images
    dtype = pick_dtype(config.precision, device)
    images = images[: config.tokenizer.training.validation_images]
    validation = TokenizerValidation(images, config, device, dtype)
    figures = {name: round(value, 4) for name, value in validation(vqgan).items()}
    referee = FeatureDistance(validation.images, device, HELD_OUT)
    figures["frechet_referee"] = round(referee(validation.outputs), 4)
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
