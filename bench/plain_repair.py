"""The baseline of bench.inpaint: the report's decoding as a plain loop (spec section 6)."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config.schema import Config
from models.transformer import BidirectionalTransformer
from utils.data.datasets import InpaintingSet, normalise, to_uint8
from utils.device import pick_device
from utils.io.images import save_png
from utils.weights.store import load_tokenizer, load_transformer


@torch.no_grad()
def plain(config: Config, dataset: InpaintingSet, output: Path) -> float:
    """Repair a dataset one image at a time; seconds, weights already loaded."""
    device = pick_device("auto")
    tokenizer = load_tokenizer(config.tokenizer_weights, config.tokenizer).to(device)
    transformer = load_transformer(config.transformer_weights, config.transformer).to(device)
    began = time.perf_counter()
    for item in dataset:
        image = normalise(item.image[None].copy(), config.data.mean, config.data.std).to(device)
        token_ids = tokenizer.encode(image)[0]
        grid = math.isqrt(len(token_ids))
        patches = item.hole.reshape(grid, item.hole.shape[0] // grid, grid, -1)
        hidden = torch.from_numpy(patches.any(axis=(1, 3)).ravel()).to(device)
        pictures, masks, hidden_at_start = [item.image], [], int(hidden.sum())
        for t in range(config.decoding.total_iter):
            progress = (t + 1) / config.decoding.total_iter
            token_ids, hidden = plain_step(
                transformer, token_ids, hidden, hidden_at_start, progress
            )
            decoded = tokenizer.decode(token_ids[None])
            pictures.append(to_uint8(decoded, config.data.mean, config.data.std)[0].cpu().numpy())
            masks.append(255 * (~hidden).view(grid, grid).byte().cpu().numpy())
        save_png(output / f"image_{item.index:03d}.png", pictures[-1])
        save_png(output / f"steps_{item.index}.png", np.concatenate(pictures, axis=1))
        save_png(output / f"masks_{item.index}.png", np.concatenate(masks, axis=1))
    return time.perf_counter() - began


def plain_step(
    transformer: BidirectionalTransformer,
    token_ids: Tensor,
    hidden: Tensor,
    hidden_at_start: int,
    progress: float,
) -> tuple[Tensor, Tensor]:
    """One step of the report's rule, cosine on cosine, for one image, (N,) and (N,)."""
    r = (1 + math.cos(math.pi * (1 - progress))) / 2
    shown = torch.where(hidden, transformer.mask_token_id, token_ids)
    probabilities = transformer(shown[None])[0, :, : transformer.mask_token_id].softmax(-1)
    best, tokens = probabilities.max(-1)
    noise = -(-torch.rand_like(best).log()).log()
    confidence = torch.where(hidden, best + 4.5 * (1 - r) * noise, torch.inf)
    stay = math.ceil((1 + math.cos(math.pi * r)) / 2 * hidden_at_start - 1e-11)
    still_hidden = torch.zeros_like(hidden)
    still_hidden[confidence.argsort()[:stay]] = True
    return torch.where(hidden, tokens, token_ids), still_hidden & hidden
