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
    Peak,
    Speed,
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


@pytest.fixture
def measured(monkeypatch) -> list[float]:
    """What the next measurements of the peak find, in FLOP/s; without one, `IndexError`."""
    found: list[float] = []
    monkeypatch.setattr(throughput, "matmul_peak", lambda *_: found.pop(0))
    monkeypatch.setattr(throughput, "ROUND_EVERY", 0.0)
    return found


def test_the_peak_is_measured_and_kept_with_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(throughput.PEAK_SIDE, "cpu", 64)
    monkeypatch.setattr(throughput, "PEAK_SECONDS", 0.001)
    peak = Peak(tmp_path, CPU, torch.float32).best
    assert 1e6 < peak < 1e15
    assert list(json.loads((tmp_path / "matmul_peak.json").read_text()).values()) == [peak]


def test_the_peak_is_the_best_of_rounds_spread_over_the_run_and_its_resumes(tmp_path, measured):
    measured += [4.0, 9.0, 6.0, 5.0, 3.0]
    peak = Peak(tmp_path, CPU, torch.float32)
    for best in (9.0, 9.0):
        peak.measure_again()
        assert peak.best == best
    assert Peak(tmp_path, CPU, torch.float32).best == 9.0
    assert Peak(tmp_path, CPU, torch.bfloat16).best == 3.0, "each dtype has its own"


def test_each_processor_has_a_peak_of_its_own(tmp_path, measured, monkeypatch):
    measured += [9.0, 4.0, 3.0]
    for name, best in (("fast", 9.0), ("slow", 4.0), ("fast", 9.0)):
        monkeypatch.setattr(throughput, "processor", lambda name=name: name)
        assert Peak(tmp_path, CPU, torch.float32).best == best


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_file_of_peaks_is_replaced(tmp_path, measured, text):
    (tmp_path / "matmul_peak.json").write_text(text)
    measured += [5.0]
    assert Peak(tmp_path, CPU, torch.float32).best == 5.0


def test_a_round_waits_until_the_last_one_is_some_time_ago(tmp_path, measured, monkeypatch):
    measured += [4.0]
    peak = Peak(tmp_path, CPU, torch.float32)
    monkeypatch.setattr(throughput, "ROUND_EVERY", 3600.0)
    peak.measure_again()
    assert peak.best == 4.0


def test_a_gpu_is_not_measured_while_it_trains(tmp_path, measured, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "some GPU")
    measured += [4.0]
    peak = Peak(tmp_path, torch.device("cuda"), torch.float32)
    peak.measure_again()
    assert peak.best == 4.0


def test_no_share_is_given_until_the_peak_is_above_all_that_the_run_has_reached(tmp_path, measured):
    measured += [4.0, 8.0]
    peak = Peak(tmp_path, CPU, torch.float32)
    assert [peak.share(flops) for flops in (1.0, 5.0, 2.0)] == [0.25, None, None]
    peak.measure_again()
    assert peak.share(4.0) == 0.5


def test_a_product_in_half_the_time_has_twice_the_peak(monkeypatch):
    monkeypatch.setitem(throughput.PEAK_SIDE, "cpu", 8)
    for seconds, peak in ((0.2, 2 * 8**3 / 0.2), (0.4, 2 * 8**3 / 0.4)):
        monkeypatch.setattr(throughput, "_timed", lambda *_, s=seconds: s)
        assert matmul_peak(CPU, torch.float32) == pytest.approx(peak)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The present time in seconds, to be changed in place."""
    now = [0.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    return now


def test_speed_leaves_pauses_out_and_sums_up_an_epoch(tmp_path, measured, clock):
    measured += [1e9] * 3
    speed = Speed(1e6, Peak(tmp_path, CPU, torch.float32))
    speed.count(100)
    clock[0] = 2.0
    assert speed.look() == {"images_per_second": 50.0, "mfu": pytest.approx(0.05)}
    clock[0] = 60.0  # a validation
    speed.pause()
    speed.count(100)
    clock[0] = 61.0
    assert speed.look() == {"images_per_second": 100.0, "mfu": pytest.approx(0.1)}
    found = speed.epoch()
    assert found["images_per_second"] == pytest.approx(200 / 3)
    assert found["mfu"] == pytest.approx(0.2 / 3)
    assert speed.epoch() == {}


def test_several_devices_share_the_images_and_a_busy_machines_peak_gives_no_share(
    tmp_path, measured, clock
):
    measured += [1e6, 4e7]
    speed = Speed(1e6, Peak(tmp_path, CPU, torch.float32), devices=2)
    speed.count(10)
    clock[0] = 1.0
    assert speed.look() == {"images_per_second": 10.0}, "5e6 FLOP/s a device, 1e6 measured"
    assert speed.epoch() == {"images_per_second": 10.0, "mfu": 0.125}, "5e6 of the later 4e7"
