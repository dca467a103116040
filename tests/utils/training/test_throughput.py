"""FLOPs against PyTorch's own count, the measured peak, and images a second."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from config.schema import TransformerConfig
from models.transformer import BidirectionalTransformer
from utils.training import throughput
from utils.training.throughput import (
    Speed,
    cached_peak,
    forward_flops,
    matmul_peak,
    tokenizer_flops,
    training_flops,
)

CPU = torch.device("cpu")
SIZES = {"dim": 32, "num_heads": 4, "num_layers": 3, "mlp_dim": 48, "num_tokens": 16}


@pytest.mark.parametrize("more", [{}, {"prior_dim": 8}, {"conv_kernel": 3}])
def test_the_formula_counts_what_pytorch_counts_in_matrix_products(more):
    config = TransformerConfig(**SIZES, codebook_size=20, dropout=0.0, **more)
    network = BidirectionalTransformer(config)
    token_ids = torch.randint(21, (5, 16))
    with FlopCounterMode(display=False) as counter:
        network(token_ids)
    assert 5 * forward_flops(config) == counter.get_total_flops()


def test_the_lab_network_needs_40_gflop_a_forward_pass():
    assert forward_flops(TransformerConfig()) == pytest.approx(40e9, rel=0.05)


def test_a_step_needs_three_forward_passes():
    config = TransformerConfig(**SIZES, codebook_size=20)
    assert training_flops(config) == 3 * forward_flops(config)


def test_a_step_of_stage_1_counts_an_encoder_that_does_not_train_once(tokenizer):
    images = torch.zeros(1, 3, 16, 16)
    with FlopCounterMode(display=False) as counter:
        latents = tokenizer.quant_conv(tokenizer.encoder(images))
    encode = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        tokenizer.decode_latents(latents)
    decode = counter.get_total_flops()
    assert encode > 0
    assert tokenizer_flops(tokenizer.config, 16, False) == 3 * (encode + decode)
    assert tokenizer_flops(tokenizer.config, 16, True) == encode + 3 * decode


def test_the_peak_is_measured_and_kept_with_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(throughput.PEAK_SIDE, "cpu", 64)
    monkeypatch.setattr(throughput, "PEAK_SECONDS", 0.001)
    peak = cached_peak(tmp_path, CPU, torch.float32)
    assert 1e6 < peak < 1e15
    assert list(json.loads((tmp_path / "matmul_peak.json").read_text()).values()) == [peak]
    monkeypatch.setattr(throughput, "matmul_peak", lambda *_: 5.0)
    assert cached_peak(tmp_path, CPU, torch.float32) == peak, "measured once"
    assert cached_peak(tmp_path, CPU, torch.bfloat16) == 5.0, "but for each arithmetic"


def test_a_damaged_file_of_peaks_is_measured_anew(tmp_path, monkeypatch):
    (tmp_path / "matmul_peak.json").write_text("{")
    monkeypatch.setattr(throughput, "matmul_peak", lambda *_: 5.0)
    assert cached_peak(tmp_path, CPU, torch.float32) == 5.0


def test_a_product_in_half_the_time_has_twice_the_peak(monkeypatch):
    monkeypatch.setitem(throughput.PEAK_SIDE, "cpu", 8)
    for seconds, peak in ((0.2, 2 * 8**3 / 0.2), (0.4, 2 * 8**3 / 0.4)):
        monkeypatch.setattr(throughput, "_timed", lambda *_, s=seconds: s)
        assert matmul_peak(CPU, torch.float32) == pytest.approx(peak)


def test_speed_leaves_pauses_out_and_sums_up_an_epoch(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    speed = Speed(flops_an_image=1e6, peak=1e9)
    speed.count(100)
    now[0] = 2.0
    assert speed.look() == (50.0, pytest.approx(0.05))
    now[0] = 60.0  # a validation
    speed.pause()
    speed.count(100)
    now[0] = 61.0
    assert speed.look() == (100.0, pytest.approx(0.1))
    found = speed.epoch()
    assert found["images_per_second"] == pytest.approx(200 / 3)
    assert found["mfu"] == pytest.approx(0.2 / 3)
    assert speed.epoch() == {}
