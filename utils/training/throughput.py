"""How fast training is: images a second, and the share of the machine's matrix-product peak (MFU).

Model FLOPs, not hardware FLOPs: two per weight and position, three times that for a step with its
backward pass (Chowdhery et al. 2022, appendix B). The formula is in docs/training.md.
Shapes: N tokens, D width, K codebook size, C code channels.
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path

import torch

from config.schema import TokenizerConfig, TransformerConfig
from models.parallel import threads, workers
from models.vqgan import VQGAN
from utils.io.files import write_text

STEP = 3  # FLOPs of a training step over those of its forward pass
PEAK_SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product is timed
PEAK_ROUNDS, PEAK_SECONDS = 5, 0.1  # rounds at a run's start, and their minimum duration
ROUND_EVERY = 30.0  # seconds between single rounds during a run
WARM_UP = 3  # products before the first round


def forward_flops(network: TransformerConfig) -> float:
    """FLOPs of one image through the transformer: matrix products of its blocks and its head."""
    tokens, dim, vocabulary = network.num_tokens, network.dim, network.codebook_size + 1
    weights = 4 * dim * dim + 2 * dim * network.mlp_dim  # q, k, v, projection; MLP
    if network.conv_kernel:
        weights += dim * network.conv_kernel**2
    scores = 2 * tokens * dim  # a place's row of q k^T, and of the probabilities times v
    head = dim * dim + dim * vocabulary
    if network.prior_dim:
        codes = network.prior_dim
        head += (codes + 1) * (tokens + 2 * dim) + codes * vocabulary
    return 2.0 * tokens * (network.num_layers * (weights + scores) + head)


def training_flops(network: TransformerConfig) -> float:
    """FLOPs of one image in a training step; all positions count, whatever the loss covers."""
    return STEP * forward_flops(network)


def tokenizer_flops(network: TokenizerConfig, image_size: int, decoder_only: bool) -> float:
    """FLOPs of one image in a step of stage 1, in the VQGAN alone, without the losses' networks.

    A frozen encoder counts its forward pass only.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        vqgan, images = VQGAN(network), torch.empty(1, 3, image_size, image_size)
        known = torch.empty(1, 4, image_size, image_size) if network.conditioned else None
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        latents = vqgan.quant_conv(vqgan.encoder(images))
        encoding = counter.get_total_flops()
        vqgan.decode_latents(latents, known)
    decoding = counter.get_total_flops() - encoding
    return (1 if decoder_only else STEP) * encoding + STEP * decoding


def matmul_peak(device: torch.device, dtype: torch.dtype, rounds: int = PEAK_ROUNDS) -> float:
    """FLOP/s of a square matrix product, the fastest of ``rounds``; five take about a second.

    On a CPU the product uses as many threads as images are shared among.
    """
    side = PEAK_SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, products = 0.0, 1
    with threads(workers()), torch.inference_mode():
        for _ in range(WARM_UP):
            a @ b
        for _ in range(rounds):
            seconds = _timed(a, b, products)
            while seconds < PEAK_SECONDS:
                products *= 2
                seconds = _timed(a, b, products)
            best = max(best, products * 2 * side**3 / seconds)
    return best


def processor() -> str:
    """The CPU's model name on Linux, where `platform` knows only the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _timed(a: torch.Tensor, b: torch.Tensor, products: int) -> float:
    """Seconds for this many products."""
    began = _now(a.device)
    for _ in range(products):
        a @ b
    return _now(a.device) - began


def _now(device: torch.device) -> float:
    """Seconds on a clock, after synchronising the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Peak:
    """The fastest matrix product of a run and its resumes, in FLOP/s, stored in the run folder.

    A CPU may be busy at any measurement, so more rounds follow at intervals. A GPU is measured
    only at the start, to leave its memory to the training.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
        self.key = f"{device.type} {name} {workers()} threads {dtype}"
        self.path, self.device, self.dtype = folder / "matmul_peak.json", device, dtype
        self.best, self.reached = self._known().get(self.key, 0.0), 0.0
        self._measure(PEAK_ROUNDS)

    def measure_again(self) -> None:
        """Add a round on a CPU, unless the last one was less than `ROUND_EVERY` seconds ago."""
        if self.device.type == "cpu" and time.monotonic() - self.measured >= ROUND_EVERY:
            self._measure(1)

    def share(self, flops: float) -> float | None:
        """A speed in FLOP/s as a share of the peak.

        None once the run itself has been faster than the products: then the peak is unknown.
        """
        self.reached = max(self.reached, flops)
        return flops / self.best if self.reached <= self.best else None

    def _measure(self, rounds: int) -> None:
        found = matmul_peak(self.device, self.dtype, rounds)
        self.measured = time.monotonic()
        if found > self.best:
            self.best = found
            write_text(self.path, json.dumps(self._known() | {self.key: found}, indent=1) + "\n")

    def _known(self) -> dict[str, float]:
        """Peaks by hardware and dtype; none in a damaged file."""
        try:
            known = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


class Speed:
    """Images per second since the last look, and their share of the peak."""

    def __init__(self, flops_per_image: float, peak: Peak | None, devices: int = 1) -> None:
        """peak: of one device; None leaves the share out."""
        self.flops, self.peak = flops_per_image / devices, peak
        self.images, self.began = 0, time.perf_counter()
        self.all_images, self.all_seconds = 0, 0.0

    def pause(self) -> None:
        """Exclude the time since the last look."""
        self.images, self.began = 0, time.perf_counter()

    def count(self, images: int) -> None:
        self.images += images

    def look(self) -> dict[str, float]:
        """Numbers since the last look or pause; synchronise the device before."""
        seconds = time.perf_counter() - self.began
        self.all_images += self.images
        self.all_seconds += seconds
        found = self._numbers(self.images / seconds)
        if self.peak is not None:
            self.peak.measure_again()
        self.pause()
        return found

    def epoch(self) -> dict[str, float]:
        """Numbers for the log, over all looks since the last call; {} if there were none."""
        if not self.all_images:
            return {}
        rate = self.all_images / self.all_seconds
        self.all_images, self.all_seconds = 0, 0.0
        return self._numbers(rate)

    def _numbers(self, rate: float) -> dict[str, float]:
        """Images per second, and MFU if the peak is known."""
        share = None if self.peak is None else self.peak.share(rate * self.flops)
        return {"images_per_second": rate} | ({} if share is None else {"mfu": share})
