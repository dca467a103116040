"""Token cache: the frozen tokenizer encodes a folder once, and the token ids are kept on disk.

The key includes the tokenizer's weights, the images' contents and the augmentation, so a stale
cache is never used.
Shapes: n images, V views, N tokens.
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError
from typing import Literal

import numpy as np
import torch
from fid.files import naming
from torch import Tensor
from tqdm import tqdm

from config.errors import UserError
from config.schema import DataConfig, TokenizerConfig
from models.parallel import one_thread, parallel_map, workers
from models.vqgan import VQGAN, full_fp32
from utils.data import augment
from utils.data.augment import PLAIN_VIEWS, Views, split_images
from utils.data.datasets import normalise
from utils.data.pairs import list_images
from utils.io.files import atomic, content_hash
from utils.io.messages import note

CPU_BATCH = 16  # larger ones fall out of the processor's cache
GPU_BATCH = 128  # a layer of the lab's encoder takes 2 MiB an image


def cached_tokens(
    vqgan: VQGAN,
    data: DataConfig,
    split: Literal["train", "val"],
    cache: Path,
    device: torch.device,
) -> np.ndarray:
    """Token ids of a split's images in all views, (n, V, N) uint16, memory-mapped.

    Views are the image, its mirror image and, in training, `data.views` - 2 augmented ones. Built
    with a progress bar when there is none for these weights and images. Two processes may build it
    at once: both write the same bytes, and the last rename wins.
    """
    count = data.views if split == "train" else PLAIN_VIEWS
    extra = [count, augment.AUGMENT_VERSION] if count > PLAIN_VIEWS else []
    path = cache / f"{split}-{_key(vqgan, data, split, extra)}.npy"
    return _kept(path, lambda: _encode(vqgan, data, split, count, device))


def _kept(path: Path, build: Callable[[], np.ndarray]) -> np.ndarray:
    """The array of a file, which is built and written whole if there is none, or a damaged one.

    It is mapped so that PyTorch may write to it and the file stays as it is. Where the file cannot
    be written, the array stays in memory, and each process builds its own.
    """
    try:
        with naming(path):
            rows = np.load(path, mmap_mode="c")
        if rows.dtype == np.uint16 and rows.ndim == 3:
            return rows
        print(f"{path}: no token cache, made again", file=sys.stderr)
    except FileNotFoundError:
        pass
    except (ValueError, EOFError, SyntaxError, TokenError):  # the last two from its header
        print(f"{path}: damaged token cache, made again", file=sys.stderr)
    content = io.BytesIO()  # into a file NumPy writes by itself and does not notice a full disk
    rows = build()
    np.save(content, rows)
    try:
        with atomic(path) as temporary:
            temporary.write_bytes(content.getbuffer())
    except UserError as error:  # a read-only data set
        note(f"tokens are not cached: {error}")
        return rows
    return np.load(path, mmap_mode="c")


def _key(vqgan: VQGAN, data: DataConfig, split: Literal["train", "val"], extra: list) -> str:
    """Cache key of 16 hexadecimal digits: weights, pixels, their normalisation and ``extra``."""
    digest = hashlib.sha256(content_hash(list_images(data.folder(split))).encode())
    digest.update(repr((data.image_size, data.mean, data.std)).encode())
    architecture = set(TokenizerConfig.model_fields) - {"decoder_conditioning"}  # weights say so
    digest.update(vqgan.config.model_dump_json(include=architecture).encode())
    for name, value in vqgan.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    if extra:
        digest.update(repr(extra).encode())
    return digest.hexdigest()[:16]


@one_thread()
def _encode(
    vqgan: VQGAN,
    data: DataConfig,
    split: Literal["train", "val"],
    count: int,
    device: torch.device,
) -> np.ndarray:
    """Token ids of ``count`` views of each image."""
    views = Views(split_images(data, split), count)
    size = GPU_BATCH if device.type == "cuda" else CPU_BATCH * workers()
    vqgan, rows = vqgan.to(device, memory_format=torch.channels_last), []
    total = len(views) * count
    with tqdm(total=total, desc=f"tokens of {split}", unit="image", dynamic_ncols=True) as bar:
        for start in range(0, len(views), size):
            part = slice(start, start + size)
            each = [_token_ids(vqgan, views.of(part, view, device), data) for view in range(count)]
            rows.append(torch.stack(each, dim=1).cpu().numpy().astype(np.uint16))
            bar.update(len(rows[-1]) * count)
    return np.concatenate(rows)


def _token_ids(vqgan: VQGAN, images: Tensor, data: DataConfig) -> Tensor:
    """Token ids (B, N) of images (B, 3, H, W) uint8, on their device."""
    size = len(images) if images.is_cuda else CPU_BATCH
    with full_fp32(images.device):
        parts = normalise(images, data.mean, data.std).split(size)
        return torch.cat(parallel_map(vqgan.encode, parts, images.device))
