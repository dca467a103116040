"""The sides of bench.repair: each fills the same holes of the same images.

Shapes: n images, B batch, N tokens, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from bench.unet import UNet, repaired
from utils.data.datasets import normalise
from utils.data.fill import fill_hole
from utils.inpainting.inpainter import Inpainter
from utils.io.images import HOLE_COLOUR

BATCH = 16
SIDES = ("grey", "biharmonic", "telea", "unet", "ours", "bf16", "true_tokens")
PRODUCTS = {"linear", "conv2d", "matmul", "__matmul__", "scaled_dot_product_attention"}


def side(
    name: str, inpainter: Inpainter, truth: np.ndarray, holes: np.ndarray, unet: UNet | None
) -> np.ndarray | None:
    """Repairs by one side, (n, H, W, 3) uint8, or None if it is unavailable."""
    masked = np.where(holes[..., None], np.uint8(HOLE_COLOUR), truth)
    if name == "grey":
        return masked
    if name == "biharmonic":
        pairs = zip(masked, holes, strict=True)
        return np.stack([fill_hole(*pair, "biharmonic") for pair in pairs])
    if name == "telea":
        return _telea(masked, holes)
    if name == "unet":
        return None if unet is None else repaired(unet, masked, holes, inpainter.config)
    if name == "bf16":
        with _in_bf16(inpainter):
            return side("ours", inpainter, truth, holes, unet)
    return np.concatenate(list(_decoded(inpainter, truth, masked, holes, name)))


class Rounded(TorchFunctionMode):
    """Rounds inputs and outputs of products to bfloat16, as autocast does, computing in fp32.

    On a CPU without bfloat16, autocast would be a hundred times slower.
    """

    def __torch_function__(
        self, function: Callable, _types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function.__name__ not in PRODUCTS:
            return function(*args, **(kwargs or {}))
        rounded = [x.bfloat16().float() if isinstance(x, Tensor) else x for x in args]
        return function(*rounded, **(kwargs or {})).bfloat16().float()


@contextmanager
def _in_bf16(inpainter: Inpainter) -> Iterator[None]:
    """Round in transformer and decoder, not in the encoder."""
    assert inpainter.dtype == torch.float32, "the config asks for bf16 already"

    def rounding(compute: Callable) -> Callable:
        def rounded(*arguments: Any) -> Tensor:
            with Rounded():
                return compute(*arguments)

        return rounded

    transformer, tokenizer = inpainter.maskgit.transformer, inpainter.maskgit.tokenizer
    with (
        patch.object(transformer, "forward", rounding(transformer.forward)),
        patch.object(tokenizer, "decode", rounding(tokenizer.decode)),
    ):
        yield


def _telea(masked: np.ndarray, holes: np.ndarray) -> np.ndarray | None:
    """OpenCV's filling by fast marching (Telea 2004), or None where OpenCV is missing."""
    try:
        import cv2
    except ImportError:
        return None
    pairs = zip(masked, holes.astype(np.uint8), strict=True)
    return np.stack([cv2.inpaint(*pair, 3, cv2.INPAINT_TELEA) for pair in pairs])


def _decoded(
    inpainter: Inpainter, truth: np.ndarray, masked: np.ndarray, holes: np.ndarray, name: str
) -> Iterator[np.ndarray]:
    """Repairs batch by batch; only true_tokens sees the true pixels in holes."""
    data = inpainter.config.data
    for start in tqdm(range(0, len(truth), BATCH), name, dynamic_ncols=True):
        part = slice(start, start + BATCH)
        if name == "true_tokens":
            pixels = normalise(truth[part], data.mean, data.std).to(inpainter.device)
            token_ids = inpainter.maskgit.encode(pixels)
        else:
            places = list(range(start, start + len(truth[part])))
            token_ids = inpainter.trace(masked[part], holes[part], places).token_ids[-1]
        yield inpainter.pixels(token_ids, masked[part], holes[part])
