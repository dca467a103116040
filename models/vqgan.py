"""The VQGAN that turns images into tokens and back (Esser et al. 2021).

`TokenizerConfig` describes the lab's network as well as the small ones. Attribute names match the
keys of the lab's checkpoints, so that they load with `load_state_dict(..., strict=True)`.

Shapes: B batch, C latent channels, h x w token grid, N = h * w tokens, K codebook size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.schema import TokenizerConfig
from models.conditioning import KnownPixels
from models.quantizer import Codebook


class Norm(nn.Module):
    """Group normalisation over the image, or layer normalisation at each position.

    Statistics over the image let a hole change every token; statistics per position do not.
    There are 32 groups, or one where the width is not a multiple of 32.
    """

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        groups = 32 if channels % 32 == 0 else 1
        self.gn = nn.GroupNorm(groups, channels, eps=1e-6)
        self.per_position = kind == "position"

    def forward(self, x: Tensor) -> Tensor:
        if not self.per_position:
            return self.gn(x)
        x = x.permute(0, 2, 3, 1)  # (B, h, w, C), contiguous when x is channels_last
        x = F.layer_norm(x, x.shape[-1:], self.gn.weight, self.gn.bias, self.gn.eps)
        return x.permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Two times norm, swish, convolution; plus the input. (B, c_in, h, w) -> (B, c_out, h, w)."""

    def __init__(self, c_in: int, c_out: int, kernel: int, norm: str) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Norm(c_in, norm),
            nn.SiLU(),
            nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2),
            Norm(c_out, norm),
            nn.SiLU(),
            nn.Conv2d(c_out, c_out, kernel, padding=kernel // 2),
        )
        self.channel_up = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.channel_up(x) + self.block(x)


class NonLocalBlock(nn.Module):
    """One-head attention over all positions, with a residual. (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.norm = Norm(channels, norm)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (f(h).flatten(2) for f in (self.q, self.k, self.v))  # (B, C, N)
        scores = q.transpose(1, 2) @ k * x.shape[1] ** -0.5  # (B, N, N)
        attended = v @ scores.softmax(-1).transpose(1, 2)  # (B, C, N)
        return x + self.proj_out(attended.view_as(x))


class DownSampleBlock(nn.Module):
    """Halve the grid: kernel 3 padded by one right and below (the lab's), or kernel 2 unpadded."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, stride=2)
        self.padding = (0, kernel - 2, 0, kernel - 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class UpSampleBlock(nn.Module):
    """Double the grid: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _middle(channels: int, kernel: int, norm: str, attention: bool) -> list[nn.Module]:
    """Residual, attention, residual: the middle block of encoder and decoder."""
    attend = [NonLocalBlock(channels, norm)] if attention else []
    first, last = (ResidualBlock(channels, channels, kernel, norm) for _ in range(2))
    return [first, *attend, last]


class Encoder(nn.Module):
    """Images (B, 3, 64, 64) -> latents (B, C, 16, 16)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        c, kernels, norm = config.encoder_channels, config.encoder_kernels, config.norm
        layers: list[nn.Module] = [nn.Conv2d(3, c[0], 3, padding=1)]
        for level, kernel in enumerate(kernels):
            widths = [c[level]] + [c[level + 1]] * config.encoder_blocks
            layers += [ResidualBlock(a, b, kernel, norm) for a, b in pairwise(widths)]
            if level in config.downsample_after:
                layers.append(DownSampleBlock(c[level + 1], config.downsample_kernel))
        last = kernels[-1]
        layers += _middle(c[-1], last, norm, config.encoder_attention)
        layers += [Norm(c[-1], norm), nn.SiLU()]
        layers.append(nn.Conv2d(c[-1], config.latent_dim, last, padding=last // 2))
        self.model = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


class Decoder(nn.Module):
    """Latents (B, C, 16, 16) -> images (B, 3, 64, 64). No swish before the last convolution.

    With conditioning, known pixels are added to the features at the start of each scale.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        c, norm = config.decoder_channels, config.norm
        attention = config.decoder_attention
        layers: list[nn.Module] = [nn.Conv2d(config.latent_dim, c[-1], 3, padding=1)]
        layers += _middle(c[-1], 3, norm, attention)
        width, at_token_grid, factor = c[-1], True, 2 ** len(config.upsample_after)
        known = {"0": KnownPixels(factor, width)} if config.conditioned else {}
        for level in reversed(range(len(c))):
            for _ in range(config.decoder_blocks):
                layers.append(ResidualBlock(width, c[level], 3, norm))
                width = c[level]
                if at_token_grid and attention:
                    layers.append(NonLocalBlock(width, norm))
            if level in config.upsample_after:
                layers.append(UpSampleBlock(width))
                at_token_grid, factor = False, factor // 2
                if config.conditioned:
                    known[str(len(layers) - 1)] = KnownPixels(factor, width)
        layers += [Norm(width, norm), nn.Conv2d(width, 3, 3, padding=1)]
        self.model, self.known = nn.Sequential(*layers), nn.ModuleDict(known)

    def forward(self, latents: Tensor, known: Tensor | None = None) -> Tensor:
        return self.model[-1](self.trunk(latents, known))

    def trunk(self, latents: Tensor, known: Tensor | None = None) -> Tensor:
        """All but the last convolution, (B, C, 16, 16) -> features (B, c, 64, 64)."""
        assert (known is not None) == bool(self.known), "known pixels go with conditioning"
        x = latents
        for number, layer in enumerate(self.model[:-1]):
            x = layer(x)
            if str(number) in self.known:
                x = x + self.known[str(number)](known)
        return x


class VQGAN(nn.Module):
    """Encoder, codebook and decoder. Images are normalised by the data's mean and std."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.codebook = Codebook(config.codebook_size, config.latent_dim)
        self.quant_conv = nn.Conv2d(config.latent_dim, config.latent_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_dim, config.latent_dim, 1)

    def latents(self, images: Tensor) -> Tensor:
        """Latents before quantisation, (B, 3, H, W) -> (B, h, w, C)."""
        return self.quant_conv(self.encoder(images)).permute(0, 2, 3, 1).float()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> token ids (B, N), row by row."""
        return self.codebook.nearest(self.latents(images)).flatten(1)

    @torch.no_grad()
    def encode_to_z(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images -> quantised latents (B, C, h, w) and flat token ids (B, N)."""
        token_ids = self.encode(images)
        return self._grid(self.codebook.lookup(token_ids)), token_ids

    @torch.no_grad()
    def decode(self, token_ids: Tensor, known: Tensor | None = None) -> Tensor:
        """Decode token ids (B, N) -> images (B, 3, H, W).

        known: (B, 4, H, W) of `known_pixels`, for a decoder with conditioning.
        """
        return self.decode_latents(self._grid(self.codebook.lookup(token_ids)), known)

    def decode_latents(self, z_q: Tensor, known: Tensor | None = None) -> Tensor:
        """Quantised latents (B, C, h, w) -> images (B, 3, H, W)."""
        return self.decoder(self.post_quant_conv(z_q), known)

    @staticmethod
    def _grid(codes: Tensor) -> Tensor:
        """(B, N, C) -> (B, C, h, w) for a square grid."""
        side = round(codes.shape[1] ** 0.5)
        return codes.transpose(1, 2).unflatten(2, (side, side))


@contextmanager
def full_fp32(device: torch.device) -> Iterator[None]:
    """Encode without autocast, TF32 (cuDNN's default) or auto-tuned kernels.

    The nearest code of a latent must not depend on rounding, on a GPU as on a CPU.
    """
    exact = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        with torch.autocast(device.type, enabled=False), exact:
            yield
    finally:
        matmul.allow_tf32 = before
