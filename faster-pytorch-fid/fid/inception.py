"""The FID InceptionV3, up to its pooled features, with batch norms folded into the convolutions.

It computes what TensorFlow's `inception-2015-12-05` graph computes (Szegedy et al. 2015, as used by
Heusel et al. 2017). Against torchvision's InceptionV3 the differences are:
  * average pools of the A, C and first E blocks exclude the padding from the count;
  * the last E block uses a max pool where the paper has an average pool;
  * the classifier has 1008 logits (not used for features, but present in the weight file).

Three optimisations change nothing but rounding: batch norms, being affine, are folded into their
convolutions (in float64); sibling 1 x 1 convolutions of one input run as one; a 1 x 1 convolution
and an average pool commute, so the pool runs second, on fewer channels.

Shapes: B batch, C channels, H height, W width. Images enter in the range -1..1 at 299 x 299.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fid.files import ScoreError

BATCH_NORM_EPS = 1e-3
LOGITS = 1008
LAST_LAYER = {64: "pool_1", 192: "pool_2", 768: "Mixed_6e", 2048: "Mixed_7c"}  # by dims


class Conv(nn.Conv2d):
    """Convolution + folded batch norm + ReLU, (B, C, H, W) -> (B, C', H', W')."""

    sources: Mapping[str, int] = {}  # concatenated layers of the weight file: width

    def forward(self, images: Tensor) -> Tensor:
        return F.relu_(super().forward(images))


class Siblings(Conv):
    """Several 1 x 1 convolutions of one input run as one; returns one (B, C', H, W) each."""

    def __init__(self, in_channels: int, **sources: int) -> None:
        super().__init__(in_channels, sum(sources.values()), 1)
        self.sources = sources

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return super().forward(images).split(list(self.sources.values()), dim=1)


class PoolConv(Conv):
    """The pool branch: 3 x 3 average pool (padding excluded), 1 x 1 convolution, ReLU.

    Both are linear and the pool's weights sum to 1, so they commute; convolving first is cheaper.
    """

    def forward(self, images: Tensor) -> Tensor:
        projected = nn.Conv2d.forward(self, images)
        return F.relu_(F.avg_pool2d(projected, 3, stride=1, padding=1, count_include_pad=False))


class InceptionA(nn.Module):
    """35 x 35 block: 1x1, 5x5, double 3x3 and pool branches, C -> 224 + pool channels."""

    def __init__(self, in_channels: int, pool_channels: int) -> None:
        super().__init__()
        self.heads = Siblings(in_channels, branch1x1=64, branch5x5_1=48, branch3x3dbl_1=64)
        self.branch5x5_2 = Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = PoolConv(in_channels, pool_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, five, double = self.heads(x)
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(double))
        return torch.cat([one, self.branch5x5_2(five), double, self.branch_pool(x)], dim=1)


class InceptionB(nn.Module):
    """Reduction from 35 x 35 to 17 x 17, 288 -> 768 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = Conv(288, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(288, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], dim=1)


class InceptionC(nn.Module):
    """17 x 17 block: 1x1, 7x7 and double 7x7 (as 1x7 and 7x1) and pool branches, 768 -> 768."""

    def __init__(self, mid: int) -> None:
        super().__init__()
        self.heads = Siblings(768, branch1x1=192, branch7x7_1=mid, branch7x7dbl_1=mid)
        self.branch7x7_2 = Conv(mid, mid, (1, 7), padding=(0, 3))
        self.branch7x7_3 = Conv(mid, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_2 = Conv(mid, mid, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = Conv(mid, mid, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = Conv(mid, mid, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = Conv(mid, 192, (1, 7), padding=(0, 3))
        self.branch_pool = PoolConv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, seven, double = self.heads(x)
        seven = self.branch7x7_3(self.branch7x7_2(seven))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(double))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([one, seven, double, self.branch_pool(x)], dim=1)


class InceptionD(nn.Module):
    """Reduction from 17 x 17 to 8 x 8, 768 -> 1280 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = Siblings(768, branch3x3_1=192, branch7x7x3_1=192)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three, seven = self.heads(x)
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(seven)))
        return torch.cat([self.branch3x3_2(three), seven, F.max_pool2d(x, 3, stride=2)], dim=1)


class InceptionE(nn.Module):
    """8 x 8 block whose 3x3 and double 3x3 branches fork into 1x3 and 3x1, C -> 2048."""

    def __init__(self, in_channels: int, max_pool: bool) -> None:
        super().__init__()
        self.heads = Siblings(in_channels, branch1x1=320, branch3x3_1=384, branch3x3dbl_1=448)
        self.branch3x3_2a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_2 = Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.max_pool = max_pool  # in the pool branch, as in the network's last block
        self.branch_pool = Conv(in_channels, 192, 1) if max_pool else PoolConv(in_channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, three, double = self.heads(x)
        double = self.branch3x3dbl_2(double)
        pooled = self.branch_pool(F.max_pool2d(x, 3, stride=1, padding=1) if self.max_pool else x)
        forks = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        forks += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([one, *forks, pooled], dim=1)


class FIDInception(nn.Sequential):
    """Pooled features of the FID InceptionV3, (B, 3, 299, 299) in -1..1 -> (B, dims).

    dims: 64 and 192 (first and second max pool), 768 (before the auxiliary classifier) or 2048
    (pool_3, the FID's), each averaged over its pixels.
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        for name, layer in _layers().items():
            self.add_module(name, layer)
            if name == LAST_LAYER[dims]:
                break

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).mean(dim=(2, 3))


def _layers() -> dict[str, nn.Module]:
    """All layers in order, under the weight file's names."""
    return {
        "Conv2d_1a_3x3": Conv(3, 32, 3, stride=2),
        "Conv2d_2a_3x3": Conv(32, 32, 3),
        "Conv2d_2b_3x3": Conv(32, 64, 3, padding=1),  # (B, 64, 147, 147)
        "pool_1": nn.MaxPool2d(3, stride=2),  # (B, 64, 73, 73)
        "Conv2d_3b_1x1": Conv(64, 80, 1),
        "Conv2d_4a_3x3": Conv(80, 192, 3),
        "pool_2": nn.MaxPool2d(3, stride=2),  # (B, 192, 35, 35)
        "Mixed_5b": InceptionA(192, 32),
        "Mixed_5c": InceptionA(256, 64),
        "Mixed_5d": InceptionA(288, 64),  # (B, 288, 35, 35)
        "Mixed_6a": InceptionB(),
        "Mixed_6b": InceptionC(128),
        "Mixed_6c": InceptionC(160),
        "Mixed_6d": InceptionC(160),
        "Mixed_6e": InceptionC(192),  # (B, 768, 17, 17)
        "Mixed_7a": InceptionD(),
        "Mixed_7b": InceptionE(1280, max_pool=False),
        "Mixed_7c": InceptionE(2048, max_pool=True),  # (B, 2048, 8, 8)
    }


def build_inception(dims: int, weights: Mapping[str, Tensor], origin: str) -> FIDInception:
    """Build the network from a weight file's tensors, folded; `origin` names the file in errors.

    Raises `ScoreError` if a layer is missing or has the wrong shape.
    """
    _expect(weights, "fc.weight", (LOGITS, 2048), origin)
    with torch.device("meta"):  # every tensor is replaced, so none is initialised
        network = FIDInception(dims)
    for name, module in network.named_modules():
        if isinstance(module, Conv):
            block = name.rpartition(".")[0]
            layers = module.sources or {name.rpartition(".")[2]: module.out_channels}
            folded = [
                _fold(weights, f"{block}.{layer}".lstrip("."), out, module, origin)
                for layer, out in layers.items()
            ]
            kernel, bias = (torch.cat(parts) for parts in zip(*folded, strict=True))
            kernel = kernel.to(torch.float32, memory_format=torch.channels_last)
            module.weight = nn.Parameter(kernel, requires_grad=False)
            module.bias = nn.Parameter(bias.float(), requires_grad=False)
    return network.eval()


def _fold(
    weights: Mapping[str, Tensor], layer: str, out: int, conv: Conv, origin: str
) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a layer with its batch norm folded in, both float64.

    norm(k * x) = scale (k * x) + (beta - mean scale), scale = gamma / sqrt(var + eps).
    """
    kernel = _expect(
        weights, f"{layer}.conv.weight", (out, conv.in_channels, *conv.kernel_size), origin
    )
    gamma, beta, mean, var = (
        _expect(weights, f"{layer}.bn.{name}", (out,), origin)
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / torch.sqrt(var + BATCH_NORM_EPS)
    return kernel * scale[:, None, None, None], beta - mean * scale


def _expect(weights: Mapping[str, Tensor], key: str, shape: tuple[int, ...], origin: str) -> Tensor:
    """The tensor of that name in float64; `ScoreError` if it is missing or misshapen."""
    tensor = weights.get(key)
    found = "missing" if tensor is None else " x ".join(map(str, tensor.shape))
    wanted = " x ".join(map(str, shape))
    if found != wanted:
        raise ScoreError(
            f"{origin}: not the FID InceptionV3's weights: {key!r} is {found}, expected {wanted}"
        )
    return tensor.double()
