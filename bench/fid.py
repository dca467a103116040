"""Side by side with pytorch-fid: seconds, memory and the difference of scores on the same images.

    python -m bench.fid [--quick]

Both scorers read the same files with the same weights: seeded random ones in the public file's
format, since speed does not depend on their values and nothing needs to be downloaded. Every figure
comes from a process of its own; the sides take turns. `cold` scores two folders, `warm` finds the
ground truth's statistics in the cache, which pytorch-fid does not have, and `legacy` computes
pytorch-fid's own number, eps included.

Its last line is {"distance_speedup", "cold_speedup", "warm_speedup", "memory_ratio",
"abs_difference"}: medians of the rounds with the lowest and the highest; memory_ratio is ours over
pytorch-fid's, abs_difference that of the legacy route's score.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from PIL import Image

import utils  # noqa: F401  makes the scorer's package importable
from bench.common import (
    ROUNDS,
    Figures,
    column,
    load,
    parsed,
    parser_of,
    ratios,
    report,
    side_by_side,
)
from utils.device import pick_device

DIMS, QUICK_DIMS = 2048, 64
IMAGES, QUICK_IMAGES = 747, 20
BATCH = {"cpu": 16, "cuda": 50}  # images of ours; pytorch-fid has 50
PHOTOGRAPHS = (skimage.data.astronaut, skimage.data.chelsea, skimage.data.coffee)
SIDE = 64  # pixels
WEIGHTS_NAME = "random-inception.pth"
SIDES = ("theirs", "cold", "warm", "legacy")  # cold fills the cache that warm reads


def write_weights(path: Path) -> None:
    """Seeded random weights under the public file's keys; scaled so that signals survive depth."""
    from torchvision.models import Inception3

    torch.manual_seed(0)
    network = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.8, 1.25)
    torch.save(network.state_dict(), path)


def crops(count: int) -> Iterator[np.ndarray]:
    """Seeded crops of photographs that come with scikit-image, 64 x 64 after shrinking up to 3x."""
    photographs = [Image.fromarray(photo()) for photo in PHOTOGRAPHS]
    rng = np.random.default_rng(0)
    for _ in range(count):
        photograph = photographs[rng.integers(len(photographs))]
        side = int(rng.integers(SIDE, 3 * SIDE))
        left, top = (int(rng.integers(size - side + 1)) for size in photograph.size)
        box = (left, top, left + side, top + side)
        crop = photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box)
        yield np.asarray(crop.convert("RGB"))


def write_images(truth: Path, predicted: Path, count: int) -> None:
    """Crops as ground truth, and as predictions the same with a smeared square."""
    truth.mkdir()
    predicted.mkdir()
    for index, pixels in enumerate(crops(count)):
        rng = np.random.default_rng(index)
        Image.fromarray(pixels).save(truth / f"image_{index:05d}.png")
        pixels = pixels.copy()
        top, left = rng.integers(0, SIDE // 2, 2)
        hole = pixels[top : top + SIDE // 2, left : left + SIDE // 2]
        hole[:] = hole.mean(axis=(0, 1), keepdims=True)
        Image.fromarray(pixels).save(predicted / f"image_{index:05d}.png")


def theirs(work: Path, dims: int) -> Figures:
    """pytorch-fid's own path from two folders to a score."""
    import pytorch_fid.inception
    from pytorch_fid.fid_score import calculate_activation_statistics, calculate_frechet_distance

    start = time.perf_counter()
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: torch.load(
        work / WEIGHTS_NAME, weights_only=True
    )
    block = pytorch_fid.inception.InceptionV3.BLOCK_INDEX_BY_DIM[dims]
    device = pick_device("auto")
    model = pytorch_fid.inception.InceptionV3([block]).to(device)
    statistics = [
        calculate_activation_statistics(
            sorted((work / name).iterdir()),
            model,
            dims=dims,
            device=device,
            num_workers=_workers(),
        )
        for name in ("predicted", "truth")
    ]
    features_end = time.perf_counter()
    score = calculate_frechet_distance(*statistics[0], *statistics[1])
    return _timed(start, features_end, score)


def run_task(work: Path, side: str, dims: int) -> Figures:
    """A side from two folders to a score; ours takes the same steps as `fid.scoring.score`."""
    if side == "theirs":
        return theirs(work, dims)
    from fid import Settings
    from fid.extraction import Ranks
    from fid.frechet import frechet_distance
    from fid.inputs import open_images
    from fid.scoring import Scorer

    start, device = time.perf_counter(), pick_device("auto")
    legacy, cache = side == "legacy", work / "cache"
    if side == "cold":
        shutil.rmtree(cache, ignore_errors=True)
    settings = Settings(
        predicted_path=str(work / "predicted"),
        gt_path=str(work / "truth"),
        dims=dims,
        weights=str(work / WEIGHTS_NAME),
        device=str(device),
        batch_size=BATCH[device.type],
        workers=_workers(),
        legacy=legacy,
        cache_dir=None if legacy else cache,
    )
    scorer = Scorer(settings, Ranks())
    predicted = scorer.statistics(open_images(work / "predicted"), keep_features=False)
    reference = scorer.reference(open_images(work / "truth"), keep_features=False)
    features_end = time.perf_counter()
    score, _ = frechet_distance(predicted, reference, legacy)
    return _timed(start, features_end, score)


def _timed(start: float, middle: float, score: float) -> Figures:
    end = time.perf_counter()
    return {
        "features_s": middle - start,
        "distance_s": end - middle,
        "total_s": end - start,
        "score": float(score),
    }


def _workers() -> int:
    return min(4, torch.get_num_threads())


def compare(work: Path, dims: int, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """All sides in turns; the result line and the details behind it."""
    sides = {name: {"side": name, "dims": dims} for name in SIDES}
    found = side_by_side("bench.fid", work, sides, rounds)
    total, distance = column(found, "total_s"), column(found, "distance_s")
    memory, score = column(found, "peak_mib"), column(found, "score")
    result = {
        "distance_speedup": ratios(distance["theirs"], distance["cold"]),
        "cold_speedup": ratios(total["theirs"], total["cold"]),
        "warm_speedup": ratios(total["theirs"], total["warm"]),
        "memory_ratio": ratios(memory["cold"], memory["theirs"]),
        "abs_difference": abs(score["legacy"][0] - score["theirs"][0]),
    }
    return result, {"tasks": found}


def main() -> None:
    """Prepare weights and images, compare, report."""
    args = parsed(parser_of(__doc__), run_task)
    count, dims = (QUICK_IMAGES, QUICK_DIMS) if args.quick else (IMAGES, DIMS)
    before, rounds = load(), 1 if args.quick else ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_weights(work / WEIGHTS_NAME)
        write_images(work / "truth", work / "predicted", count)
        result, details = compare(work, dims, rounds)
    details |= {"images": count, "load_before": before, "load_after": load()}
    report("fid", result, details, args.quick)


if __name__ == "__main__":
    main()
