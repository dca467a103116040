"""Record and compare what a refactoring must not change: the bytes that scripts produce.

python -m bench.record_outputs before.json                      # in the old checkout
python -m bench.record_outputs after.json --compare before.json # in the new one

Everything runs through the command line on one thread, so modules may move: 48 repairs
(both rules, all orders), two samples, a large picture, weights after 20 steps of either stage,
token caches, a score, a sweep's table and all help texts. Takes about four minutes.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from bench.common import RELEASED, ROOT
from utils.inpainting.manifest import changed_settings

WEIGHTS = [
    *("--tokenizer", RELEASED / "vqgan.safetensors"),
    *("--transformer", RELEASED / "transformer.safetensors"),
]
SCORER = "faster-pytorch-fid/fid_score_gpu.py"
SCRIPTS = [
    *("training_transformer.py", "training_vqgan.py", "inpainting.py", "sweep.py", "app.py"),
    *("prepare_data.py", "grade.py", SCORER),
]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "80"}
TWENTY_STEPS = [
    *("--set", "training.epochs=2", "--set", "training.accumulate=1"),
    *("--set", "training.batch_size=2", "--set", "tokenizer.training.epochs=2"),
    *("--set", "tokenizer.training.batch_size=2", "--set", "tokenizer.training.warmup_steps=2"),
]
TIMES = {"seconds", "images_per_second", "date"}  # vary between runs


def run(*command: str | Path) -> str:
    """Run one of the scripts and return what it printed."""
    full = [sys.executable, *map(str, command)]
    done = subprocess.run(full, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(full)}\n{done.stderr[-2000:]}")
    return done.stdout


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def pictures(folder: Path) -> dict[str, str]:
    """Digest of the pixels of every PNG file below a folder."""
    files = sorted(folder.rglob("*.png"))
    return {str(f.relative_to(folder)): digest(np.asarray(Image.open(f)).tobytes()) for f in files}


def weights(file: Path) -> str:
    tensors = sorted(load_file(file).items())
    return digest(b"".join(name.encode() + value.tobytes() for name, value in tensors))


def repairs(photos: Path, work: Path) -> dict[str, object]:
    """Repairs of six photographs under both rules and all orders, of samples and of a large one."""
    config, found = ["--config", "config/cats64.yml", *WEIGHTS], {}
    for rule in ("listing", "maskgit"):
        for order in ("confidence", "random", "halton", "revise"):
            how = ["--set", f"decoding.rule={rule}", "--set", f"decoding.order={order}"]
            out = work / f"{rule}-{order}"
            run("inpainting.py", *config, *how, "--data", photos, "--output", out)
            found[f"{rule}, {order}"] = pictures(out)
    pair = ["--images", photos / "masked_image/image_000.png"]
    pair += ["--masks", photos / "mask64/mask_000.png"]
    run("inpainting.py", *config, *pair, "--samples", "2", "--output", work / "samples")
    found["samples"] = pictures(work / "samples")
    large, mask = np.zeros((96, 150, 3), np.uint8), np.full((96, 150), 255, np.uint8)
    large[..., 0], large[..., 1] = np.arange(150), np.arange(96)[:, None] * 2
    mask[20:60, 30:110] = 0
    Image.fromarray(large).save(work / "large.png")
    Image.fromarray(mask).save(work / "hole.png")
    pair = ["--images", work / "large.png", "--masks", work / "hole.png"]
    run("inpainting.py", *config, *pair, "--output", work / "large")
    found["large"] = pictures(work / "large")
    return found


def training(work: Path) -> dict[str, object]:
    """Weights of both stages after 20 steps of the tiny networks, and the token caches."""
    data, run_folder = work / "tiny", work / "run"
    run("prepare_data.py", "photos", "--out", data, "--split", 20, 6, 4, "--image-size", 16)
    common = ["--config", "tests/data/tiny.yml", "--set", f"data.root={data}", "--run", run_folder]
    run("training_vqgan.py", *common, *TWENTY_STEPS)
    run("training_transformer.py", *common, *TWENTY_STEPS)
    run_cat = [*common, "--set", "masking.loss_on=hidden", "--set", "transformer.prior_dim=8"]
    run_cat += ["--set", "training.init=codebook", "--run", work / "run-cats"]
    run_cat += ["--tokenizer", run_folder / "tokenizer/vqgan.safetensors"]
    run("training_transformer.py", *run_cat, *TWENTY_STEPS)
    files = sorted([*work.glob("run*/*/*.safetensors")])
    caches = sorted(work.glob("run*/**/*.npy"))
    return {
        "weights": {str(f.relative_to(work)): weights(f) for f in files},
        "caches": sorted(digest(np.load(f).tobytes()) for f in caches),
    }


def scores(photos: Path, work: Path) -> dict[str, object]:
    """The scorer's figures and a small sweep's table, without times."""
    score = ["--features", "efficientnet-lite0", "--device", "cpu", "--no-cache"]
    score += ["--metrics", "fid,paired", "--predicted-path", photos / "masked_image"]
    score += ["--gt-path", photos / "test", "--mask-path", photos / "mask64"]
    run(SCORER, *score, "--json", work / "score.json")
    values = json.loads((work / "score.json").read_text())
    study = ["sweep.py", "schedules", "--config", "config/cats64.yml", *WEIGHTS, "--data", photos]
    run(*study, "--seeds", 1, "--set", "decoding.total_iter=4", "--output", work / "sweep")
    rows = csv.DictReader(io.StringIO((work / "sweep/schedules/results.csv").read_text()))
    kept = [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
    return {"score": values["scores"], "sweep": kept}


def record() -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        photos = work / "photos"
        run("prepare_data.py", "photos", "--out", photos, "--split", 16, 4, 6)
        found: dict[str, object] = {"photos": pictures(photos)}
        found |= {"repairs": repairs(photos, work), "training": training(work)}
        found |= scores(photos, work)
        found["help"] = {script: run(script, "--help").splitlines() for script in SCRIPTS}
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, help="JSON file to write")
    parser.add_argument("--compare", type=Path, help="JSON file of another checkout")
    args = parser.parse_args()
    found = record()
    args.file.write_text(json.dumps(found, indent=1))
    if args.compare:
        before, now = (json.loads(path.read_text()) for path in (args.compare, args.file))
        found = changed_settings(before, now)
        print("\n".join(found) or "equal")
        raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
