"""Side by side with pytorch-fid: seconds, memory and the difference of scores on the same images.

    python -m bench.fid [--quick]

Both scorers read the same files with the same weights: seeded random ones in the public file's
format, since speed does not depend on their values and nothing needs to be downloaded. Every figure
comes from its own process; the sides take turns. `cold` scores two folders, `warm` finds the
ground truth's statistics in the cache, which pytorch-fid does not have, and `legacy` computes
pytorch-fid's exact number, eps included.

Its last line is {"distance_speedup", "cold_speedup", "warm_speedup", "memory_ratio",
"abs_difference"}: medians over rounds with minimum and maximum; memory_ratio is ours over
pytorch-fid's, abs_difference that of the legacy route's score.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import utils  # noqa: F401  makes the scorer's package importable
from bench import common
from bench.common import Figures
from utils.device import pick_device

DIMS, QUICK_DIMS = 2048, 64
IMAGES, QUICK_IMAGES = 747, 20
BATCH = {"cpu": 16, "cuda": 50}  # ours; pytorch-fid uses 50
PREDICTED, TRUTH = "images/masked_image", "images/test"  # any two sets do
WEIGHTS_NAME = "random-inception.pth"
SIDES = ("theirs", "cold", "warm", "legacy")  # cold fills the cache that warm reads


def random_inception() -> dict[str, Tensor]:
    """Seeded weights under the public file's keys, scaled to keep deep features distinct."""
    from torchvision.models import Inception3

    torch.manual_seed(0)
    network = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.25)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.state_dict()


def theirs(work: Path, dims: int) -> Figures:
    """pytorch-fid from two folders to a score."""
    import pytorch_fid.inception
    from pytorch_fid.fid_score import calculate_activation_statistics, calculate_frechet_distance

    start = time.perf_counter()
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: torch.load(
        work / WEIGHTS_NAME, weights_only=True
    )
    block = pytorch_fid.inception.InceptionV3.BLOCK_INDEX_BY_DIM[dims]
    device = pick_device("auto")
    model = pytorch_fid.inception.InceptionV3([block]).to(device)
    settings = {"dims": dims, "device": device, "num_workers": _workers()}
    statistics = [
        calculate_activation_statistics(sorted((work / name).iterdir()), model, **settings)
        for name in (PREDICTED, TRUTH)
    ]
    features_end = time.perf_counter()
    score = calculate_frechet_distance(*statistics[0], *statistics[1])
    return _timed(start, features_end, score)


def run_task(work: Path, side: str, dims: int) -> Figures:
    """A side from two folders to a score; ours takes the same steps as `fid.scoring.score`."""
    if side == "theirs":
        return theirs(work, dims)
    from fid.extraction import Scorer
    from fid.inputs import Settings, open_images
    from fid.metrics import frechet_distance
    from fid.process import Ranks

    start, device = time.perf_counter(), pick_device("auto")
    legacy, cache = side == "legacy", work / "cache"
    if side == "cold":
        shutil.rmtree(cache, ignore_errors=True)
    settings = Settings(
        predicted_path=str(work / PREDICTED),
        gt_path=str(work / TRUTH),
        dims=dims,
        weights=str(work / WEIGHTS_NAME),
        device=str(device),
        batch_size=BATCH[device.type],
        workers=_workers(),
        legacy=legacy,
        cache_dir=None if legacy else cache,
    )
    scorer = Scorer(settings, Ranks())
    predicted = scorer.statistics(open_images(work / PREDICTED), keep_features=False)
    reference = scorer.reference(open_images(work / TRUTH), keep_features=False)
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


def main() -> None:
    args = common.parser_of(__doc__).parse_args()
    count, dims = (QUICK_IMAGES, QUICK_DIMS) if args.quick else (IMAGES, DIMS)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        torch.save(random_inception(), work / WEIGHTS_NAME)
        common.prepare_photographs((work / TRUTH).parent, count)
        sides = {name: {"work": work, "side": name, "dims": dims} for name in SIDES}
        found = common.side_by_side(run_task, sides, 1 if args.quick else common.ROUNDS)
    total, distance = common.column(found, "total_s"), common.column(found, "distance_s")
    memory, score = common.column(found, "peak_mib"), common.column(found, "score")
    result = {
        "distance_speedup": common.ratios(distance["theirs"], distance["cold"]),
        "cold_speedup": common.ratios(total["theirs"], total["cold"]),
        "warm_speedup": common.ratios(total["theirs"], total["warm"]),
        "memory_ratio": common.ratios(memory["cold"], memory["theirs"]),
        "abs_difference": abs(score["legacy"][0] - score["theirs"][0]),
    }
    common.report("fid", result, {"images": count, "tasks": found}, args.quick)


if __name__ == "__main__":
    main()
