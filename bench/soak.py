"""Whether memory stays flat: training, many small images repaired and scored, many visits.

    python -m bench.soak --images 20000 --steps 4000 --visits 500

Both stages of training, inpainting, scoring and the page run by themselves with the smallest
networks, so that what grows with steps, images or visitors stands out. A visit is what a browser
asks for: the page, its samples, a random hole, a repair with all its files. Memory is sampled
(bench/resident.py) from the first result on, an epoch, an image or an answer. Growth is the last
tenth over the tenth that follows the first fifth, in which caches fill and modules that are first
needed then are loaded. Appends to bench/results/soak.jsonl, draws docs/results/soak/memory.png, and
ends with code 1 if anything's own memory grew by more than ALLOWED.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.models import Inception3

from bench.common import report
from bench.resident import Curve, draw, growth, recorded, thinned
from config.loading import load_config, save_config
from utils.io.images import encode_png

ROOT = Path(__file__).resolve().parents[1]

ALLOWED = 0.02  # growth
PARTS = ("stage 1", "stage 2", "inpainting", "page", "scoring")  # each uses those before it
HOLE = slice(4, 10)
TRAINING_IMAGES, BATCH = 64, 4
SETTINGS = {
    "tokenizer.training.batch_size": BATCH,
    "tokenizer.training.warmup_steps": 10,
    "tokenizer.training.validate_every": 5,
    "tokenizer.training.checkpoint_every": 10,
    "training.batch_size": BATCH,
    "training.accumulate": 1,
    "training.checkpoint_every": 10,
    "decoding.total_iter": 3,
    "decoding.step_pictures": False,
    "decoding.comparison": False,
    "decoding.batch_size": 64,
}
PICTURE = ROOT / "docs" / "results" / "soak" / "memory.png"
PATIENCE = 600  # seconds for the page to answer on a busy machine
EVENTS = ("open", "partial", "repair")  # of the page; the second draws a random hole
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}  # in networks so small threads only wait


def pixels(rng: np.random.Generator, side: int) -> np.ndarray:
    """An image of coloured patches, (side, side, 3) uint8."""
    small = rng.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
    return small.repeat(4, axis=0).repeat(4, axis=1)


def prepare(folder: Path, images: int, steps: int) -> None:
    """A config, training images, a job of so many images, and weights to score with."""
    epochs = -(-steps * BATCH // TRAINING_IMAGES)
    places = {"run": folder / "run", "data.root": folder / "data"}
    lengths = {"tokenizer.training.epochs": epochs, "training.epochs": epochs}
    overrides = {**SETTINGS, **places, **lengths}.items()
    config = load_config(ROOT / "tests" / "data" / "tiny.yml", list(overrides))
    save_config(config, folder / "tiny.yml")
    stem = Inception3(num_classes=1008, aux_logits=False, init_weights=False).state_dict()
    torch.save(
        {k: v for k, v in stem.items() if k.startswith(("Conv2d", "fc"))}, folder / "stem.pth"
    )
    rng, side = np.random.default_rng(0), config.data.image_size
    mask = np.full((side, side), 255, np.uint8)
    mask[HOLE, HOLE] = 0
    counts = {"data/train": TRAINING_IMAGES, "data/val": BATCH, "job/masked_image": images}
    for place, count in counts.items():
        (folder / place).mkdir(parents=True)
        for i in range(count):
            (folder / place / f"image_{i}.png").write_bytes(encode_png(pixels(rng, side)))
    (folder / "job" / "mask64").mkdir()
    for i in range(images):
        (folder / "job" / "mask64" / f"mask_{i}.png").write_bytes(encode_png(mask))


def commands(folder: Path) -> dict[str, tuple[list[str], str]]:
    """What is run to its end, by name, and what its first result is in the folder.

    The scorer leaves nothing before its end. It is the results that are many, not what they are
    compared with.
    """
    score = ["faster-pytorch-fid/fid_score_gpu.py", "--device", "cpu", "--dims", "64", "--no-cache"]
    score += ["--num-workers", "0", "--batch-size", "64", "--weights", str(folder / "stem.pth")]
    score += ["--predicted-path", str(folder / "out/test_results")]
    config, job = ["--config", str(folder / "tiny.yml")], str(folder / "job")
    repair = ["inpainting.py", *config, "--data", job, "--output", str(folder / "out")]
    return {
        "stage 1": (["training_vqgan.py", *config], "run/tokenizer/log.jsonl"),
        "stage 2": (["training_transformer.py", *config], "run/transformer/log.jsonl"),
        "inpainting": (repair, "out/test_results"),
        "scoring": ([*score, "--gt-path", str(folder / "data/train")], "job"),
    }


def run_script(command: list[str], first_result: Path) -> Curve:
    """Run a script to its end; its memory since its first result."""
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=ALONE, **pipes)
    while process.poll() is None and not first_result.exists():
        time.sleep(0.1)
    with recorded(process.pid) as curve:
        _, said = process.communicate()
    if process.returncode:
        sys.exit(said.decode(errors="replace"))
    return curve


def run_page(config: Path, visits: int) -> Curve:
    """Serve the page and visit it; the server's memory from its first answer on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "app.py", str(config), "--port", str(port)],
        cwd=ROOT,
        env=ALONE,
        stdout=subprocess.DEVNULL,
    )
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
    try:
        while not _answers(address):
            if server.poll() is not None or time.monotonic() > end:
                sys.exit(f"app.py does not answer at {address}")
            time.sleep(0.3)
        with recorded(server.pid) as curve:
            for _ in range(visits):
                visit(address)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
    return curve


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return False
    return True


def visit(address: str) -> None:
    """Open the page, draw a hole, repair the picture, leave."""
    session = secrets.token_hex(6)
    with urllib.request.urlopen(address) as page:
        page.read()
    with urllib.request.urlopen(f"{address}/config") as answer:
        config = json.load(answer)
    values = {part["id"]: part["props"].get("value") for part in config["components"]}
    heartbeat = f"{address}/gradio_api/heartbeat/{session}"
    with urllib.request.urlopen(heartbeat):  # open until the visitor leaves
        for name in EVENTS:
            event = next(e for e in config["dependencies"] if e["api_name"] == name)
            data = [values[part] for part in event["inputs"]]
            found = ask(address, session, event, data)
            for part, value in zip(event["outputs"], found, strict=True):
                update = isinstance(value, dict) and value.get("__type__") == "update"
                values[part] = value.get("value", values[part]) if update else value
        if "Repaired" not in found[-1]:
            sys.exit(f"the page did not repair: {found[-1]}")


def ask(address: str, session: str, event: dict[str, Any], data: list[Any]) -> list[Any]:
    """What an event of the page answers, the last time if several times."""
    body = {"data": data, "fn_index": event["id"], "session_hash": session}
    if not event["queue"]:
        return _post(f"{address}/gradio_api/run/predict", body)["data"]
    _post(f"{address}/gradio_api/queue/join", body)
    stream = f"{address}/gradio_api/queue/data?session_hash={session}"
    with urllib.request.urlopen(stream) as lines:
        for line in lines:
            message = json.loads(line[5:]) if line.startswith(b"data:") else {}
            if message.get("msg") == "process_completed":
                return message["output"]["data"]
    sys.exit(f"{event['api_name']} never ended")


def _post(address: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=20_000, help="to repair and score")
    parser.add_argument("--steps", type=int, default=4_000, help="of training, each stage")
    parser.add_argument("--visits", type=int, default=500, help="to the page")
    args = parser.parse_args()
    curves: dict[str, Curve] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, args.images, args.steps)
        scripts = commands(folder)
        for part in PARTS:
            if part == "page":
                curves[part] = run_page(folder / "tiny.yml", args.visits)
            else:
                curves[part] = run_script(scripts[part][0], folder / scripts[part][1])
            note(part, curves[part], vars(args))
    draw(curves, PICTURE)
    return int(any(growth(curve) > ALLOWED for curve in curves.values()))


def note(part: str, curve: Curve, counts: dict[str, int]) -> None:
    """Append a part's result with its curve, so that a later part that fails loses nothing."""
    result = {
        "part": part,
        **counts,
        "growth": round(growth(curve), 4),
        "peak_mib": round(max(sample.own + sample.files for sample in curve)),
        "own_peak_mib": round(max(sample.own for sample in curve)),
        "seconds": round(curve[-1].seconds),
    }
    report("soak", result, {"seconds, own MiB, files MiB": thinned(curve)})


if __name__ == "__main__":
    sys.exit(main())
