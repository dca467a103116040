"""A lab solution as its description reads, written with nothing but PyTorch: three variants.

It shares no code with `models/`. Attribute names give the lab's keys. Shapes: B batch, N tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class GroupNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gn = nn.GroupNorm(32, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.gn(x)


class ResidualBlock(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        first, second = nn.Conv2d(a, b, 3, 1, 1), nn.Conv2d(b, b, 3, 1, 1)
        self.block = nn.Sequential(GroupNorm(a), Swish(), first, GroupNorm(b), Swish(), second)
        self.wider = a != b
        if self.wider:
            self.channel_up = nn.Conv2d(a, b, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.wider:
            return self.channel_up(x) + self.block(x)
        return x + self.block(x)


class NonLocalBlock(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = GroupNorm(c)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = self.norm(x)
        q, k, v = (f(y).reshape(b, c, h * w) for f in (self.q, self.k, self.v))
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / c**0.5, dim=2)
        attended = torch.einsum("bij,bcj->bci", weights, v)
        return x + self.proj_out(attended.reshape(b, c, h, w))


class DownSampleBlock(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, 2, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class UpSampleBlock(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


class Encoder(nn.Module):
    def __init__(self, c: list[int], latent: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, c[0], 3, 1, 1)]
        for i in range(len(c) - 1):
            layers += [ResidualBlock(c[i], c[i + 1]), ResidualBlock(c[i + 1], c[i + 1])]
            if i in (2, 4):
                layers += [DownSampleBlock(c[i + 1])]
        top = c[-1]
        layers += [ResidualBlock(top, top), NonLocalBlock(top), ResidualBlock(top, top)]
        layers += [GroupNorm(top), Swish(), nn.Conv2d(top, latent, 3, 1, 1)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Decoder(nn.Module):
    def __init__(self, c: list[int], latent: int) -> None:
        super().__init__()
        top = c[-1]
        layers: list[nn.Module] = [nn.Conv2d(latent, top, 3, 1, 1)]
        layers += [ResidualBlock(top, top), NonLocalBlock(top), ResidualBlock(top, top)]
        width, resolution = top, 16
        for i in (4, 3, 2, 1, 0):
            for _ in range(3):
                layers += [ResidualBlock(width, c[i])]
                width = c[i]
                if resolution == 16:
                    layers += [NonLocalBlock(width)]
            if i in (4, 2):
                layers += [UpSampleBlock(width)]
                resolution *= 2
        layers += [GroupNorm(width), nn.Conv2d(width, 3, 3, 1, 1)]
        self.model = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.model(z)


class Codebook(nn.Module):
    def __init__(self, size: int, latent: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, latent)


class LabVQGAN(nn.Module):
    """The report's tokenizer. Widths are those of the levels, from the image on."""

    def __init__(self, encoder: list[int], decoder: list[int], latent: int, size: int) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(encoder, latent), Decoder(decoder, latent)
        self.codebook = Codebook(size, latent)
        self.quant_conv, self.post_quant_conv = (nn.Conv2d(latent, latent, 1) for _ in range(2))

    def encode(self, images: Tensor) -> Tensor:
        """Images -> flat indices (B, N) of the nearest codes."""
        z = self.quant_conv(self.encoder(images))  # (B, C, h, w)
        flat = z.movedim(1, -1).flatten(1, 2)  # (B, N, C)
        codes = self.codebook.embedding.weight
        rows = [((row[:, None] - codes) ** 2).sum(-1).argmin(1) for row in flat]  # (N, K, C)
        return torch.stack(rows)

    def decode(self, indices: Tensor) -> Tensor:
        """Flat indices (B, N) -> images."""
        side = int(indices.shape[1] ** 0.5)
        z = self.codebook.embedding(indices).view(len(indices), side, side, -1).movedim(-1, 1)
        return self.decoder(self.post_quant_conv(z))


class FusedAttention(nn.Module):
    """One product for q, k and v: the report's, or with a bias."""

    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=bias), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, dim = x.shape
        d = dim // self.heads
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(2, 3) * d**-0.5, dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, dim))


class SeparateAttention(nn.Module):
    """Three products and a loop over the heads."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.width = dim // heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.output_layer = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        heads = zip(
            *(f(x).split(self.width, dim=2) for f in (self.query, self.key, self.value)),
            strict=True,
        )
        out = [torch.softmax(torch.bmm(q, k.mT) / self.width**0.5, dim=2) @ v for q, k, v in heads]
        return self.output_layer(torch.cat(out, dim=2))


class EncoderBlock(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, variant: str) -> None:
        super().__init__()
        self.Attention = (
            SeparateAttention(dim, heads)
            if variant == "separate"
            else FusedAttention(dim, heads, bias=variant == "fused")
        )
        self.LayerNorm1, self.LayerNorm2 = (nn.LayerNorm(dim, eps=1e-12) for _ in range(2))
        self.MLP = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.LayerNorm1(x + self.Attention(x))
        return self.LayerNorm2(x + self.MLP(x))


class LabTransformer(nn.Module):
    """The report's transformer without its dropout."""

    def __init__(
        self,
        dim: int,
        heads: int,
        layers: int,
        hidden: int,
        tokens: int,
        size: int,
        variant: str,
    ) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(size + 1, dim)
        self.pos_emb = nn.Parameter(torch.zeros(tokens, dim))
        self.LN = nn.LayerNorm(dim, eps=1e-12)
        self.blocks = nn.Sequential(
            *(EncoderBlock(dim, heads, hidden, variant) for _ in range(layers))
        )
        self.Token_Prediction = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim, eps=1e-12)
        )
        self.bias = nn.Parameter(torch.zeros(tokens, size + 1))

    def forward(self, indices: Tensor) -> Tensor:
        """Indices (B, N), mask id included -> logits (B, N, K + 1)."""
        x = self.blocks(self.LN(self.tok_emb(indices) + self.pos_emb))
        return self.Token_Prediction(x) @ self.tok_emb.weight.t() + self.bias


class LabMaskGIT(nn.Module):
    """The whole model, with the mask's id as a buffer."""

    def __init__(self, vqgan: LabVQGAN, transformer: LabTransformer) -> None:
        super().__init__()
        self.vqgan, self.transformer = vqgan, transformer
        size = len(vqgan.codebook.embedding.weight)
        self.register_buffer("mask_token_tensor", torch.tensor(size))


def fill_randomly(network: nn.Module, seed: int) -> nn.Module:
    """Seeded weights that keep activations near 1: matrices by fan-in, norms near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "gn." in name or "LN" in name or "LayerNorm" in name or "Prediction.2" in name:
                weight.copy_(name.endswith("weight") + 0.1 * noise)
            elif weight.ndim < 2:
                weight.copy_(0.1 * noise)
            elif "emb" in name or name == "bias":
                weight.copy_(noise / weight.shape[1] ** 0.5)
            else:
                weight.copy_(noise / weight[0].numel() ** 0.5)
    return network.eval()
