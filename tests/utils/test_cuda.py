"""Everything on a real GPU against the CPU: logits, tokens, repairs, both stages, sweep, scorer.

Skipped without one. CUDA_TESTS_DEVICE=cpu runs the same programs without a GPU, so that they work
when somebody has one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fid.extraction import exact_products
from fid.features import BACKENDS, BackendOptions
from fid.metrics import frechet_distance
from fid.statistics import FeatureStatistics
from safetensors.torch import load_file
from torch import Tensor

from config.errors import StopRequested
from config.loading import load_config, save_config
from config.schema import Config
from models.conditioning import known_pixels
from models.noise import gumbel
from utils.app.records import repair as repair_in_steps
from utils.data.datasets import InpaintingSet, to_uint8
from utils.device import Compute
from utils.inpainting.inpainter import Inpainter
from utils.io.files import read_rows
from utils.io.images import encode_png, load_rgb
from utils.training.tokenizer import train_tokenizer
from utils.training.transformer import load_tokens, train_transformer
from utils.training.transformer_step import TransformerTrainer
from utils.weights.store import load_tokenizer

ROOT = Path(__file__).parents[2]
DEVICE = torch.device(os.environ.get("CUDA_TESTS_DEVICE", "cuda"))
ON_GPU = DEVICE.type == "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="no CUDA GPU here"),
]
only_on_a_gpu = pytest.mark.skipif(not ON_GPU, reason="a GPU's own: fp16 is not scaled on a CPU")
RELEASED = ROOT / "models" / "pretrained" / "cats64" / "vqgan.safetensors"
IMAGES = 256
BATCHES = (1, 7, 64, 256)
MEAN, STD = ([0.5] * 3,) * 2


def pixels(folder: Path) -> np.ndarray:
    """Results of a repair in the order of their names, (n, H, W, 3) uint8."""
    results = sorted((folder / "test_results").glob("*.png"))
    return np.stack([np.asarray(load_rgb(path)) for path in results])


@pytest.fixture
def many(tmp_path: Path) -> InpaintingSet:
    """256 images of 4 x 4 coloured patches with holes of any size."""
    rng, folder = np.random.default_rng(2), tmp_path / "many"
    for part in ("test", "masked_image", "mask64"):
        (folder / part).mkdir(parents=True)
    for index in range(IMAGES):
        truth = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        hole = np.zeros((16, 16), bool)
        height, width = rng.integers(1, 17, 2)
        hole[:height, :width] = True
        parts = {
            "test/image": truth,
            "masked_image/image": np.where(hole[..., None], np.uint8(128), truth),
            "mask64/mask": np.where(hole, 0, 255).astype(np.uint8),
        }
        for name, content in parts.items():
            (folder / f"{name}_{index:03d}.png").write_bytes(encode_png(content))
    return InpaintingSet(folder)


# Networks and repairs


def test_logits_are_those_of_the_cpu(transformer):
    token_ids = torch.randint(0, 16, (7, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), exact_products():
        expected = transformer(token_ids)
        found = transformer.to(DEVICE)(token_ids.to(DEVICE)).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_tokens_of_the_released_tokenizer_are_those_of_the_cpu():
    config = load_config(ROOT / "config" / "cats64.yml")
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    images = torch.from_numpy(images.repeat(8, 1).repeat(8, 2)).permute(0, 3, 1, 2) / 127.5 - 1
    vqgan = load_tokenizer(RELEASED, config.tokenizer)
    with torch.inference_mode(), exact_products():
        expected = vqgan.encode(images)
        found = vqgan.to(DEVICE).encode(images.to(DEVICE)).cpu()
        assert torch.equal(found, expected)
        known = known_pixels(images, torch.zeros(4, 64, 64, dtype=torch.bool))
        found = vqgan.decode(expected.to(DEVICE), known.to(DEVICE)).cpu()
        wanted = vqgan.cpu().decode(expected, known)
        difference = to_uint8(found, MEAN, STD).int() - to_uint8(wanted, MEAN, STD).int()
    assert difference.abs().max() <= 1


def test_noise_is_that_of_the_cpu():
    images = torch.tensor([0, 1, 999, 2**40])
    expected = gumbel(3, images, 2, 1, 256)
    found = gumbel(3, images.to(DEVICE), 2, 1, 256).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # the logarithm's last bits


@pytest.mark.parametrize("rule", ["listing", "maskgit"])
def test_repairs_are_those_of_the_cpu(repair, many, rule):
    settings = {"decoding.rule": rule, "decoding.total_iter": 6}
    expected = pixels(repair(settings, many)).astype(int)
    found = pixels(repair(settings | {"device": str(DEVICE)}, many))
    assert np.abs(found - expected).max() <= 1


def test_repairs_do_not_depend_on_the_batch(repair, many):
    settings = {"device": str(DEVICE), "decoding.total_iter": 4}
    first, *others = [
        pixels(repair(settings | {"decoding.batch_size": size}, many)) for size in BATCHES
    ]
    for other in others:
        assert (other == first).all()


def test_the_page_shows_every_step_of_a_repair(weights, changed, job):
    config = changed(weights, {"device": str(DEVICE)})
    item = InpaintingSet(job)[4]
    steps = list(repair_in_steps(Inpainter(config), config, item.image, item.hole))
    assert len(steps) == config.decoding.total_iter
    assert not steps[-1].hidden.any()


# Training

WAYS = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "known pixels": {"transformer.conditioning": "pixels", "masking.hole_share": 0.8},
    "activations computed twice": {"training.checkpoint_activations": True},
    **({"compiled": {"training.compile": True}} if ON_GPU else {}),
}
PLAIN = {"precision": "fp32", "training.checkpoint_activations": False, "training.compile": False}


@pytest.fixture
def twenty_steps(weights, changed) -> Config:
    """Twenty optimiser steps over 11 images, with clipping and an average."""
    return changed(
        weights,
        {
            "device": str(DEVICE),
            "training.epochs": 10,
            "training.batch_size": 6,
            "training.accumulate": 1,
            "training.max_grad_norm": 1.0,
            "training.ema_half_life": 20.0,
        },
    )


def losses(config: Config) -> list[float]:
    rows = read_rows(config.run / "transformer" / "log.jsonl")
    return [row["train_loss"] for row in rows]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("values", WAYS.values(), ids=WAYS)
def test_twenty_steps_learn_as_they_do_on_the_cpu(
    twenty_steps, changed, tmp_path, monkeypatch, values
):
    resident = "utils.training.token_batches.MAX_RESIDENT_BYTES"
    monkeypatch.setattr(resident, 0)  # masks are drawn on the host
    train_transformer(changed(twenty_steps, values), resume=False)
    section = {"tokenizer.weights": twenty_steps.tokenizer_weights, "run": tmp_path / "on_cpu"}
    on_cpu = changed(twenty_steps, {**values, **PLAIN, "device": "cpu", **section})
    train_transformer(on_cpu, resume=False)
    assert len(losses(on_cpu)) == 10
    assert losses(twenty_steps) == pytest.approx(losses(on_cpu), rel=0.02)
    assert losses(twenty_steps)[-1] < losses(twenty_steps)[0]


@only_on_a_gpu
@pytest.mark.usefixtures("quick")
def test_an_infinite_gradient_of_the_first_fp16_step_changes_no_weight(twenty_steps, changed):
    config = changed(twenty_steps, {"precision": "fp16"})
    compute = Compute.of(config)
    trainer = TransformerTrainer(config, load_tokens(config, compute.device), compute)
    trainer.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**60)  # overflows fp16
    before = [weight.clone() for weight in trainer.transformer.parameters()]
    trainer.accumulate(trainer.token_batches(torch.arange(6), 0, 0))
    trainer.take_step()
    after = list(trainer.transformer.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert trainer.scaler.get_scale() < 2.0**60


@pytest.mark.usefixtures("quick")
def test_a_run_stopped_after_its_first_fp16_step_goes_on_as_if_it_had_not(
    twenty_steps, changed, tmp_path, stop_after
):
    stopped = changed(twenty_steps, {"precision": "fp16"})
    section = {"tokenizer.weights": stopped.tokenizer_weights, "run": tmp_path / "whole"}
    whole = changed(stopped, section)
    train_transformer(whole, resume=False)
    stop_after(1)
    with pytest.raises(StopRequested):
        train_transformer(stopped, resume=False)
    stop_after(10**6)
    train_transformer(stopped, resume=True)
    assert losses(stopped) == pytest.approx(losses(whole), rel=1e-3)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stage_1_trains(config, changed, precision):
    path = train_tokenizer(
        changed(config, {"device": str(DEVICE), "precision": precision}), resume=False
    )
    assert all(torch.isfinite(weight).all() for weight in load_file(path).values())


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stage_1_trains_a_decoder_on_known_pixels_and_sampled_tokens(
    weights, changed, tmp_path, precision
):
    values = {"device": str(DEVICE), "precision": precision, "run": tmp_path / "decoder"}
    values |= {"tokenizer.decoder_conditioning": "pixels", "tokenizer.training.decoder_only": True}
    values |= {"tokenizer.training.transformer": weights.transformer_weights}
    path = train_tokenizer(changed(weights, values), resume=False, start=weights.tokenizer_weights)
    trained = load_file(path)
    assert all(torch.isfinite(weight).all() for weight in trained.values())
    assert trained["decoder.known.0.last.weight"].any()


def test_processes_share_a_training(weights, changed, tmp_path):
    processes = max(1, min(2, torch.cuda.device_count())) if ON_GPU else 2
    config = changed(weights, {"device": str(DEVICE), "training.epochs": 1})
    save_config(config, tmp_path / "shared.yml")
    command = [*(sys.executable, "-m", "torch.distributed.run", "--standalone")]
    command += [f"--nproc-per-node={processes}", str(ROOT / "training_transformer.py")]
    said = subprocess.run(
        [*command, "--config", str(tmp_path / "shared.yml")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert np.isfinite(losses(config)).all()


# Sweep and scorer


def test_a_sweep_scores_its_settings(weights, changed, job, tmp_path):
    save_config(changed(weights, {"device": str(DEVICE)}), tmp_path / "sweep.yml")
    (tmp_path / "grid.yml").write_text("total_iter: [2, 3]\n")
    command = [sys.executable, "sweep.py", "grid", tmp_path / "grid.yml", "--seeds", "1"]
    command += ["--config", tmp_path / "sweep.yml", "--data", job, "--output", tmp_path / "out"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert list((tmp_path / "out").rglob("*.csv"))


def features(images: Tensor, device: torch.device) -> FeatureStatistics:
    backend = BACKENDS["efficientnet-lite0"](BackendOptions(None, None, None))
    network = backend.network.to(device)
    statistics = FeatureStatistics(backend.dims, keep_features=True)
    with torch.inference_mode(), exact_products():
        statistics.update(network(backend.prepare(images.to(device))))
    return statistics


def test_features_and_distance_are_those_of_the_cpu():
    images = np.random.default_rng(0).integers(0, 256, (2, 24, 3, 8, 8), dtype=np.uint8)
    images = torch.from_numpy(images).repeat_interleave(8, 3).repeat_interleave(8, 4)
    on_cpu = [features(part, torch.device("cpu")) for part in images]
    found = [features(part, DEVICE) for part in images]
    scale = on_cpu[0].features().abs().max()
    difference = (found[0].features().cpu() - on_cpu[0].features()).abs().max()
    assert difference <= 1e-4 * scale
    assert frechet_distance(*found)[0] == pytest.approx(frechet_distance(*on_cpu)[0], rel=1e-4)


def test_the_scorer_gives_the_distance_of_the_cpu(repair, many, tmp_path):
    output = repair({"decoding.total_iter": 2}, many)
    found = {}
    for device in ("cpu", str(DEVICE)):
        path = tmp_path / f"{device.replace(':', '_')}.json"
        command = [sys.executable, "faster-pytorch-fid/fid_score_gpu.py", "--device", device]
        command += ["--features", "efficientnet-lite0", "--json", str(path)]
        command += ["--predicted-path", str(output / "test_results")]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr
        found[device] = next(iter(json.loads(path.read_text())["scores"].values()))
    assert found[str(DEVICE)] == pytest.approx(found["cpu"], rel=1e-4)
