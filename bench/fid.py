"""Side by side with pytorch-fid: seconds, memory and the difference of scores on the same images.

    python -m bench.fid [--images DIR] [--quick]

Both scorers read the same files with the same weights: seeded random ones in the public file's
format, since speed does not depend on their values and nothing needs to be downloaded. Every figure
comes from a process of its own. `cold` scores two folders; `warm` finds the ground truth's
statistics in the cache. pytorch-fid has no cache, so both are compared with its one time.

Its last line is {"distance_speedup", "cold_speedup", "warm_speedup", "abs_difference",
"memory_ratio"}. abs_difference is the larger of the legacy route's on singular covariances (2048
dims) and the default route's on full-rank ones (192 dims); memory_ratio is pytorch-fid's peak over
ours.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import utils  # noqa: F401  makes the scorer's package importable
from bench.common import conv_peak, default_device, peak_memory, report
from bench.fid_inputs import WEIGHTS_NAME, write_images, write_weights

DIMS, FULL_RANK_DIMS = 2048, 192
BATCH = {"cpu": 16, "cuda": 50}  # images of ours; pytorch-fid has 50
GROWTH = (747, 2_000, 5_000, 10_000, 20_000)  # images, distance only


def theirs(work: Path, dims: int) -> dict[str, float]:
    """pytorch-fid's own path from two folders to a score."""
    import pytorch_fid.inception
    from pytorch_fid.fid_score import calculate_activation_statistics, calculate_frechet_distance

    start = time.perf_counter()
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: torch.load(
        work / WEIGHTS_NAME, weights_only=True
    )
    block = pytorch_fid.inception.InceptionV3.BLOCK_INDEX_BY_DIM[dims]
    device = default_device()
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


def ours(work: Path, dims: int, legacy: bool, cache: str | None) -> dict[str, float]:
    """This scorer from two folders to a score; the same steps as `fid.scoring.score`."""
    from fid import Settings
    from fid.extraction import Scorer
    from fid.frechet import frechet_distance
    from fid.inputs import open_images
    from fid.process import Ranks

    start, device = time.perf_counter(), default_device()
    settings = Settings(
        predicted_path=str(work / "predicted"),
        gt_path=str(work / "truth"),
        dims=dims,
        weights=str(work / WEIGHTS_NAME),
        device=str(device),
        batch_size=BATCH[device.type],
        workers=_workers(),
        legacy=legacy,
        cache_dir=work / cache if cache else None,
    )
    scorer = Scorer(settings, Ranks())
    predicted = scorer.statistics(open_images(work / "predicted"), keep_features=False)
    reference = scorer.reference(open_images(work / "truth"), keep_features=False)
    features_end = time.perf_counter()
    score, _ = frechet_distance(predicted, reference, legacy)
    return _timed(start, features_end, score)


def growth(count: int, whose: str) -> dict[str, float]:
    """Statistics and distance of two made-up feature sets of `count` rows, block by block."""
    from fid.frechet import frechet_distance
    from fid.statistics import FeatureStatistics
    from pytorch_fid.fid_score import calculate_frechet_distance

    def blocks(seed: int) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        scale = torch.linspace(1, 0.05, DIMS) * (1 + 0.1 * seed)
        for start in range(0, count, 500):
            rows = min(500, count - start)
            yield torch.randn(rows, DIMS, generator=generator) * scale + 0.01 * seed

    start = time.perf_counter()
    if whose == "ours":
        sets = [FeatureStatistics(DIMS), FeatureStatistics(DIMS)]
        for seed, statistics in enumerate(sets):
            for block in blocks(seed):
                statistics.update(block)
        middle = time.perf_counter()
        score, _ = frechet_distance(*sets)
    else:
        features = [np.concatenate([b.double().numpy() for b in blocks(seed)]) for seed in (0, 1)]
        moments = [(f.mean(axis=0), np.cov(f, rowvar=False)) for f in features]
        middle = time.perf_counter()
        score = calculate_frechet_distance(*moments[0], *moments[1])
    return _timed(start, middle, score)


def _timed(start: float, middle: float, score: float) -> dict[str, float]:
    end = time.perf_counter()
    return {
        "features_s": middle - start,
        "distance_s": end - middle,
        "total_s": end - start,
        "cpu_s": sum(os.times()[:4]),  # all threads and workers, imports included
        "score": float(score),
    }


def _workers() -> int:
    return min(4, torch.get_num_threads())


def in_child(work: Path, task: str) -> dict[str, float]:
    """Run one task in a process of its own; its figures with its peak memory."""
    command = [sys.executable, "-m", "bench.fid", "--task", task, "--work", str(work)]
    peak, output = peak_memory(command)
    found = json.loads(output.strip().splitlines()[-1])
    found["peak_mib"] = peak / 2**20
    times = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
    print(f"{task:<24} {times}", flush=True)
    return found


def run_task(work: Path, task: str) -> dict[str, float]:
    """One task by name, in this process."""
    whose, _, argument = task.partition("-")
    if whose == "theirs":
        return theirs(work, int(argument))
    if whose == "growth":
        name, _, count = argument.partition("-")
        return growth(int(count), name)
    kind, _, dims = argument.partition("-")
    cache = "cache" if kind in ("cold", "warm") else None
    return ours(work, int(dims), kind == "legacy", cache)


def compare(work: Path, counts: tuple[int, ...]) -> tuple[dict[str, float], dict[str, Any]]:
    """Run all tasks; the result line and the details behind it."""
    tasks = [f"theirs-{DIMS}", f"ours-cold-{DIMS}", f"ours-warm-{DIMS}", f"ours-legacy-{DIMS}"]
    tasks += [f"theirs-{FULL_RANK_DIMS}", f"ours-plain-{FULL_RANK_DIMS}"]
    found = {task: in_child(work, task) for task in tasks}
    for count in counts:
        for whose in ("theirs", "ours"):
            found[f"growth-{whose}-{count}"] = in_child(work, f"growth-{whose}-{count}")
    reference, cold, warm, legacy, reference_full, full = (found[task] for task in tasks)
    differences = {
        "legacy_singular": abs(legacy["score"] - reference["score"]),
        "default_singular": abs(cold["score"] - reference["score"]),
        "default_full_rank": abs(full["score"] - reference_full["score"]),
    }
    result = {
        "distance_speedup": reference["distance_s"] / cold["distance_s"],
        "cold_speedup": reference["total_s"] / cold["total_s"],
        "warm_speedup": reference["total_s"] / warm["total_s"],
        "abs_difference": max(differences["legacy_singular"], differences["default_full_rank"]),
        "memory_ratio": reference["peak_mib"] / cold["peak_mib"],
    }
    return result, {"tasks": found, "differences": differences}


def main() -> None:
    """Prepare weights and images, compare, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--images", type=Path, help="folder of ground truth; default: crops of photographs"
    )
    parser.add_argument("--count", type=int, help="images a set (default 747, quick 40)")
    parser.add_argument("--quick", action="store_true", help="few images, no growth")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        print(json.dumps(run_task(args.work, args.task)))
        return
    count = args.count or (40 if args.quick else 747)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_weights(work / WEIGHTS_NAME)
        write_images(work / "truth", work / "predicted", args.images, count)
        result, details = compare(work, () if args.quick else GROWTH)
    details |= {"images": count, "quick": args.quick, "conv_peak": conv_peak(torch.float32)}
    report("fid", {name: float(f"{value:.6g}") for name, value in result.items()}, details)


if __name__ == "__main__":
    main()
