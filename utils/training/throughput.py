"""How fast training is: images a second, and the share of the machine's matrix-product peak (MFU).

FLOPs are those that the model's formula needs, not those that a program spends: two for each weight
of a matrix product and place, three times that for a step with its backward pass (Chowdhery et al.
2022, appendix B). docs/training.md writes the formula out.
Shapes: N tokens, D width, K codebook size, C code channels.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from config.schema import TokenizerConfig, TransformerConfig
from models.vqgan import VQGAN
from utils.device import autocast
from utils.io.files import write_text

STEP = 3  # FLOPs of a step, in those of its forward pass
PEAK_SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product is timed
PEAK_ROUNDS, PEAK_SECONDS = 5, 0.1  # the fastest of this many rounds of at least this length
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
    """FLOPs of one image in a training step; all places count, however many the loss covers."""
    return STEP * forward_flops(network)


def tokenizer_flops(network: TokenizerConfig, image_size: int, decoder_only: bool) -> float:
    """FLOPs of one image in a step of stage 1, in products of the VQGAN; other networks add more.

    An encoder that does not train needs its forward pass alone.
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


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product, the fastest of some rounds; takes about a second."""
    side = PEAK_SIDE[device.type]
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    if dtype != torch.float32:  # as autocast would hand them over
        a, b = a.to(dtype), b.to(dtype)
    best, products = 0.0, 1
    with torch.inference_mode(), autocast(device, dtype):
        for _ in range(WARM_UP):
            a @ b
        for _ in range(PEAK_ROUNDS):
            seconds = _timed(a, b, products, device)
            while seconds < PEAK_SECONDS:
                products *= 2
                seconds = _timed(a, b, products, device)
            best = max(best, products * 2 * side**3 / seconds)
    return best


def _timed(a: torch.Tensor, b: torch.Tensor, products: int, device: torch.device) -> float:
    """Seconds that this many products take."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(products):
        a @ b
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cached_peak(folder: Path, device: torch.device, dtype: torch.dtype) -> float:
    """`matmul_peak`, measured once for a run and kept in its folder, by hardware."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    key = f"{device.type} {gpu} {torch.get_num_threads()} threads {dtype}"
    path = folder / "matmul_peak.json"
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    if key not in known:
        known[key] = matmul_peak(device, dtype)
        write_text(path, json.dumps(known, indent=1) + "\n")
    return known[key]


class Speed:
    """Images a second since the last look, and what share of the peak that is."""

    def __init__(self, flops_an_image: float, peak: float) -> None:
        """peak: FLOP/s of all devices together."""
        self.share_an_image = flops_an_image / peak
        self.images, self.began = 0, time.perf_counter()
        self.all_images, self.all_seconds = 0, 0.0

    def pause(self) -> None:
        """Leave out the time from the last look until now."""
        self.images, self.began = 0, time.perf_counter()

    def count(self, images: int) -> None:
        """Count images that were trained on."""
        self.images += images

    def look(self) -> tuple[float, float]:
        """Images a second and MFU since the last look or pause; the device must have caught up."""
        seconds = time.perf_counter() - self.began
        self.all_images += self.images
        self.all_seconds += seconds
        rate = self.images / seconds
        self.pause()
        return rate, rate * self.share_an_image

    def epoch(self) -> dict[str, float]:
        """Numbers for the log, over all looks since the last call; none where nothing was seen."""
        if not self.all_images:
            return {}
        rate = self.all_images / self.all_seconds
        self.all_images, self.all_seconds = 0, 0.0
        return {"images_per_second": rate, "mfu": rate * self.share_an_image}
