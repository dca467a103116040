"""Measure how many known tokens holes flip, by distance, for each way to fill them before encoding.

    python -m bench.leak --config config/cats64.yml --data data/cats64

A known token flips when it loses the index that it has in the whole image. Prints the share that
flips by distance to the hole in tokens, and suggests the fill that flips fewest and how many tokens
around the hole to decide again. Last line: one JSON object,
{"suggested_fill", "suggested_dilation", "kept": {FILL: {"all", "1", "2", "3", "4+", "2+"}}}.
"""

from __future__ import annotations

from bench.common import report
from config.errors import UserError
from config.loading import load_config
from utils.cli import ArgumentParser, add_config_arguments, as_overrides, run
from utils.data.datasets import InpaintingSet
from utils.data.fill import HOLE_FILLS
from utils.data.leak import kept_tokens, suggested_dilation
from utils.device import pick_device
from utils.io.files import content_hash
from utils.weights.store import load_tokenizer

OPTIONS = {
    "--data": ("data.root", str, "prepared folder with masked_image/, mask64/ and test/"),
    "--tokenizer": ("tokenizer.weights", str, "tokenizer weights file"),
    "--device": ("device", str, "auto, cpu, cuda or cuda:N"),
}


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add_config_arguments(parser, OPTIONS)
    args = parser.parse_args()
    config = load_config(args.config, as_overrides(args, OPTIONS))
    dataset, device = InpaintingSet(config.data.root), pick_device(config.device)
    if dataset.truth is None:
        raise UserError(f"{config.data.root}: has no test/; the true images are needed")
    vqgan = load_tokenizer(config.tokenizer_weights, config.tokenizer).to(device)
    shares = {fill: kept_tokens(vqgan, dataset, config.data, fill, device) for fill in HOLE_FILLS}
    columns = list(next(iter(shares.values())))
    print(f"{'flipped':12}" + "".join(f"{column:>8}" for column in columns))
    for fill, row in shares.items():
        print(f"{fill:12}" + "".join(f"{1 - row[column]:8.1%}" for column in columns))
    best = max(shares, key=lambda fill: shares[fill]["all"])
    dilation = suggested_dilation(shares[best])
    print(f"suggested: decoding.hole_fill: {best}, decoding.dilate: {dilation}")
    details = {"images": len(dataset), "tokenizer": content_hash([config.tokenizer_weights])}
    result = {"suggested_fill": best, "suggested_dilation": dilation, "kept": shares}
    report("leak", result, details)


if __name__ == "__main__":
    run(main)
