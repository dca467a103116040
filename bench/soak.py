"""Whether memory stays flat: many small images through inpainting and scoring, many training steps.

python bench/soak.py --images 20000 --steps 2000

Each script runs by itself with the smallest networks, so that what grows with the number of images
or steps stands out. Its resident memory is sampled; growth is the mean of the last tenth over that
of the fifth tenth, since loading takes up the first, and most of a run that is too short. Appends
to bench/results/soak.jsonl, curves included, and ends with code 1 if anything grew by more than
ALLOWED.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from common import report
from torchvision.models import Inception3

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from config.loading import save_config  # noqa: E402
from config.schema import Config  # noqa: E402
from models.transformer import BidirectionalTransformer  # noqa: E402
from models.vqgan import VQGAN  # noqa: E402
from utils.checkpoint import save_weights  # noqa: E402
from utils.images import encode_png  # noqa: E402

ALLOWED = 0.02  # growth
SIDE, HOLE = 16, slice(4, 10)
PAGE = os.sysconf("SC_PAGE_SIZE")
SAMPLES = 400  # of a curve at most
TRAINING_IMAGES, BATCH = 64, 4
TINY = {
    "tokenizer": {
        "encoder_channels": [8, 8, 8],
        "encoder_kernels": [3, 3],
        "encoder_blocks": 1,
        "downsample_after": [0, 1],
        "decoder_channels": [8, 8],
        "decoder_blocks": 1,
        "upsample_after": [1, 0],
        "latent_dim": 8,
        "codebook_size": 16,
    },
    "transformer": {
        "dim": 16,
        "num_heads": 4,
        "num_layers": 2,
        "mlp_dim": 32,
        "num_tokens": 16,
        "codebook_size": 16,
    },
    "decoding": {"total_iter": 3, "step_pictures": False, "comparison": False, "batch_size": 64},
}


def pixels(rng: np.random.Generator) -> np.ndarray:
    """An image of coloured patches, (SIDE, SIDE, 3) uint8."""
    small = rng.integers(0, 256, (SIDE // 4, SIDE // 4, 3), dtype=np.uint8)
    return small.repeat(4, axis=0).repeat(4, axis=1)


def prepare(folder: Path, images: int, steps: int) -> None:
    """Networks, a config, training images and a job of so many images."""
    epochs = max(1, steps * BATCH // TRAINING_IMAGES)
    training = {"epochs": epochs, "batch_size": BATCH, "accumulate": 1, "checkpoint_every": 10}
    data = {"root": folder / "data", "image_size": SIDE}
    config = Config.model_validate(
        {**TINY, "run": folder / "run", "device": "cpu", "data": data, "training": training}
    )
    save_config(config, folder / "tiny.yml")
    torch.manual_seed(0)
    tokenizer, transformer = VQGAN(config.tokenizer), BidirectionalTransformer(config.transformer)
    save_weights(config.tokenizer_weights, tokenizer.state_dict(), config.tokenizer, {})
    weights = folder / "run" / "untrained.safetensors"
    save_weights(weights, transformer.state_dict(), config.transformer, {})
    stem = Inception3(num_classes=1008, aux_logits=False, init_weights=False).state_dict()
    torch.save(
        {k: v for k, v in stem.items() if k.startswith(("Conv2d", "fc"))}, folder / "stem.pth"
    )
    rng, mask = np.random.default_rng(0), np.full((SIDE, SIDE), 255, np.uint8)
    mask[HOLE, HOLE] = 0
    counts = {"data/train": TRAINING_IMAGES, "data/val": BATCH, "job/masked_image": images}
    for place, count in counts.items():
        (folder / place).mkdir(parents=True)
        for i in range(count):
            (folder / place / f"image_{i}.png").write_bytes(encode_png(pixels(rng)))
    (folder / "job" / "mask64").mkdir()
    for i in range(images):
        (folder / "job" / "mask64" / f"mask_{i}.png").write_bytes(encode_png(mask))


def commands(folder: Path) -> dict[str, list[str]]:
    """What is run, by name."""
    score = ["faster-pytorch-fid/fid_score_gpu.py", "--device", "cpu", "--dims", "64", "--no-cache"]
    score += ["--num-workers", "0", "--batch-size", "64", "--weights", str(folder / "stem.pth")]
    score += ["--predicted-path", str(folder / "out/test_results")]
    config = ["--config", str(folder / "tiny.yml")]
    return {
        "inpainting": [
            *("inpainting.py", *config, "--data", str(folder / "job")),
            *("--transformer", str(folder / "run/untrained.safetensors")),
            *("--output", str(folder / "out")),
        ],
        "scoring": [*score, "--gt-path", str(folder / "job/masked_image")],
        "training": ["training_transformer.py", *config],
    }


def watch(command: list[str]) -> tuple[list[float], float]:
    """Run a command; its resident memory in MiB at even distances, and the seconds it took."""
    began, curve = time.perf_counter(), []
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    said: list[bytes] = []
    reader = threading.Thread(target=lambda: said.append(process.stderr.read()))
    reader.start()
    while process.poll() is None:
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        curve.append(pages * PAGE / 2**20)
        time.sleep(0.1)
    reader.join()
    if process.returncode:
        sys.exit(said[0].decode(errors="replace"))
    curve = [value for value in curve if value]  # a process on its way out has none
    return curve, time.perf_counter() - began


def growth(curve: list[float]) -> float:
    """The last tenth over the fifth tenth of the samples, less one."""
    tenth = max(1, len(curve) // 10)
    return float(np.mean(curve[-tenth:]) / np.mean(curve[4 * tenth : 5 * tenth]) - 1)


def thinned(curve: list[float]) -> list[float]:
    """A curve of at most SAMPLES points."""
    return [round(value, 1) for value in curve[:: -(-len(curve) // SAMPLES)]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000, help="to repair and score")
    parser.add_argument("--steps", type=int, default=2_000, help="of training")
    args = parser.parse_args()
    result: dict[str, float] = {"images": args.images, "steps": args.steps}
    curves = {}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), args.images, args.steps)
        for part, command in commands(Path(name)).items():
            curve, seconds = watch(command)
            curves[part] = thinned(curve)
            result[f"{part}_growth"] = round(growth(curve), 4)
            result[f"{part}_peak_mib"] = round(max(curve))
            result[f"{part}_seconds"] = round(seconds, 1)
    report("soak", result, {"resident_mib": curves})
    return int(any(value > ALLOWED for key, value in result.items() if key.endswith("_growth")))


if __name__ == "__main__":
    sys.exit(main())
