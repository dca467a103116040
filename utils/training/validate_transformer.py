"""Comparable validation metrics of a transformer in training, and sample repairs.

The images, mask ratios, masks and holes are the same every time.
Shapes: n images, B batch, N tokens, M hidden tokens of the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from config.schema import Config
from models.noise import uniform
from models.parallel import parallel_map
from models.transformer import BidirectionalTransformer
from utils.data.augment import AS_IS
from utils.data.pairs import list_images
from utils.device import autocast
from utils.io.images import HOLE_COLOUR, load_rgb
from utils.io.pictures import tile

if TYPE_CHECKING:
    from utils.training.holed import Seen

MASK_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
MASK_SEED = 2022  # of the validation masks, whatever the run's seed
BATCH, USUAL_TOKENS = 64, 256  # images a forward pass, fewer if they have more tokens
SHOWN = 8  # images that are repaired to be looked at, spread over val/
HOLE_SEED = 2022  # of their holes, likewise


@torch.inference_mode()
def validate(
    transformer: BidirectionalTransformer,
    val: np.ndarray,
    device: torch.device,
    dtype: torch.dtype,
    seen: Seen | None = None,
) -> dict[str, float]:
    """Cross-entropy in nats and accuracy on hidden tokens, by mask ratio and their means.

    val: (n, 2, N) cached tokens. Every image hides at least one. seen: these images with holes,
    for a network with conditioning; ratios are then shares of a hole's tokens that are still
    hidden. The network is left in eval mode.
    """
    transformer.eval()
    size = max(1, BATCH * USUAL_TOKENS // max(USUAL_TOKENS, val.shape[2]))

    def sums_of(start: int) -> Tensor:
        rows = slice(start, start + size)
        token_ids = torch.from_numpy(val[rows, AS_IS].astype(np.int64))
        token_ids = token_ids.to(device, non_blocking=True)
        image_ids = torch.arange(start, start + len(token_ids), device=device)
        sums = torch.zeros(len(MASK_RATIOS), 3, dtype=torch.float64, device=device)
        for index, ratio in enumerate(MASK_RATIOS):
            noise = uniform(MASK_SEED, image_ids, index, 0, token_ids.shape[1])
            inputs, known = token_ids, None
            if seen is not None:
                hidden, known = seen.hidden[rows], seen.known[rows]
                inputs = torch.where(hidden, token_ids, seen.token_ids[rows])
                noise = noise.masked_fill(~hidden, 1.0)
            lowest = noise == noise.amin(1, keepdim=True)  # hides something of a small grid too
            token_mask = (noise < ratio) | lowest
            sums[index] = _hidden_sums(transformer, token_ids, token_mask, inputs, known)
        return sums

    with autocast(device, dtype):
        sums = sum(parallel_map(sums_of, range(0, len(val), size), device))
    sums = sums.cpu()  # columns loss, hits, tokens
    loss, accuracy = (sums[:, i] / sums[:, 2] for i in (0, 1))
    numbers = {"val_loss": loss.mean().item(), "val_accuracy": accuracy.mean().item()}
    for index, ratio in enumerate(MASK_RATIOS):
        numbers[f"val_loss_{ratio}"] = loss[index].item()
        numbers[f"val_accuracy_{ratio}"] = accuracy[index].item()
    return numbers


def _hidden_sums(
    transformer: BidirectionalTransformer,
    token_ids: Tensor,
    token_mask: Tensor,
    inputs: Tensor,
    known: Tensor | None,
) -> Tensor:
    """Summed loss, number of correct predictions, number of hidden tokens, (3,) float64."""
    masked_ids = inputs.masked_fill(token_mask, transformer.mask_token_id)
    logits = transformer(masked_ids, token_mask, known).float()  # (M, K + 1)
    targets = token_ids[token_mask]
    loss = F.cross_entropy(logits, targets, reduction="sum")
    hits = (logits.argmax(-1) == targets).sum()
    return torch.stack([loss.double(), hits.double(), token_mask.sum().double()])


def val_repairs(config: Config) -> Tensor:
    """Masked, repaired and true val images in three rows, (rows, columns, 3) uint8.

    Repaired with the weights files of the run and the config's decoding; holes are like the lab's.
    """
    from utils.data.holes import DEFAULT_SHARE, draw_hole
    from utils.inpainting.inpainter import Inpainter  # a run may end before its first picture

    paths = list_images(config.data.folder("val"))
    chosen = np.linspace(0, len(paths) - 1, min(SHOWN, len(paths))).astype(int).tolist()
    truth = np.stack([np.asarray(load_rgb(paths[index])) for index in chosen])
    side = truth.shape[1]
    holes = np.stack([draw_hole("lab", side, DEFAULT_SHARE, HOLE_SEED, i) for i in chosen])
    masked = np.where(holes[..., None], np.uint8(HOLE_COLOUR), truth)
    decoding = config.decoding.model_copy(update={"samples": 1})
    inpainter = Inpainter(config.model_copy(update={"decoding": decoding}))
    trace = inpainter.trace(masked, holes, chosen)
    repaired = inpainter.pixels(trace.token_ids[-1], masked, holes)
    rows = [*masked, *repaired, *truth]
    return torch.from_numpy(tile(rows, len(rows), len(chosen)))
