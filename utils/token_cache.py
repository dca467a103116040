"""The tokenizer is frozen, so its work is done once: token ids of a folder, kept on disk.

A cache is keyed by the tokenizer's weights and the images' contents, so a stale one is never used.
Shapes: n images, N tokens.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from config.schema import DataConfig, TokenizerConfig
from models.vqgan import VQGAN
from utils.data import ImageFolder, normalise
from utils.files import atomic, content_hash
from utils.images import list_images

BATCH = 16  # larger ones fall out of the processor's cache
AS_IS, MIRRORED = 0, 1  # places of an image and its mirror image in the cache


def cached_tokens(
    vqgan: VQGAN, data: DataConfig, split: str, cache: Path, device: torch.device
) -> np.ndarray:
    """Token ids of a split and of its mirror images, (n, 2, N) uint16, memory-mapped.

    Built with a progress bar when there is none for these weights and images. Two processes may
    build it at once: both write the same bytes, and the last rename wins.
    """
    path = cache / f"{split}-{_key(vqgan, data, split)}.npy"
    if not path.exists():
        tokens = _encode(vqgan, data, split, device)
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.save(file, tokens)
            file.flush()
    return np.load(path, mmap_mode="r")


def as_token_ids(rows: np.ndarray, device: torch.device) -> Tensor:
    """Rows of a cache (B, N) uint16 -> token ids (B, N) int64 on the device."""
    return torch.from_numpy(rows.astype(np.int64)).to(device, non_blocking=True)


def _key(vqgan: VQGAN, data: DataConfig, split: str) -> str:
    """Sixteen hexadecimal digits that change with the weights, the pixels or their scaling."""
    digest = hashlib.sha256(content_hash(list_images(data.folder(split))).encode())
    digest.update(repr((data.image_size, data.mean, data.std)).encode())
    architecture = set(TokenizerConfig.model_fields)
    digest.update(vqgan.config.model_dump_json(include=architecture).encode())
    for name, value in vqgan.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _encode(vqgan: VQGAN, data: DataConfig, split: str, device: torch.device) -> np.ndarray:
    """Encode every image and its mirror image in fp32, (n, 2, N) uint16."""
    images = ImageFolder(data.folder(split), data.image_size).images
    vqgan = vqgan.to(device, memory_format=torch.channels_last)
    rows = []
    for batch in tqdm(images.split(BATCH), f"tokens of {split}", dynamic_ncols=True):
        inputs = normalise(batch.to(device), data.mean, data.std)
        both = torch.stack([vqgan.encode(inputs), vqgan.encode(inputs.flip(3))], dim=1)
        rows.append(both.cpu().numpy().astype(np.uint16))
    return np.concatenate(rows)
