"""Vector quantisation with a learned codebook (van den Oord et al. 2017, Razavi et al. 2019).

`Codebook` contains the codes; everything else is for training only.
Shapes: B batch, h x w token grid, C latent channels, M = B h w latents of a batch, K codebook size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Codebook(nn.Module):
    """The K codes; `embedding.weight` is (K, C)."""

    def __init__(self, codebook_size: int, latent_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, latent_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / codebook_size, 1.0 / codebook_size)

    def vectors(self) -> Tensor:
        """The codes, (K, C)."""
        return self.embedding.weight

    def nearest(self, latents: Tensor) -> Tensor:
        """Index of the nearest code by Euclidean distance (eq. 1): (..., C) -> (...), in fp32."""
        codes, flat = self.vectors(), latents.reshape(-1, latents.shape[-1])
        with torch.autocast(flat.device.type, enabled=False):
            distances = codes.pow(2).sum(1) - 2 * flat @ codes.T  # |z|^2 does not change the order
        return distances.argmin(1).view(latents.shape[:-1])

    def lookup(self, token_ids: Tensor) -> Tensor:
        """Codes of the tokens, (...) -> (..., C)."""
        return F.embedding(token_ids, self.vectors())


class CodebookAverages(nn.Module):
    """Exponential moving averages of the codes, and the restart of dead codes.

    All codes start unused, so the first restart initialises the codebook from the first batch.
    """

    use: Tensor  # (K,) average number of latents of a batch that choose each code
    total: Tensor  # (K, C) average sum of those latents

    def __init__(self, codebook: Codebook, decay: float, restart_below: float) -> None:
        super().__init__()
        weight = codebook.embedding.weight
        self.decay, self.restart_below = decay, restart_below
        self.register_buffer("use", torch.zeros(len(weight)))
        self.register_buffer("total", torch.zeros_like(weight))

    @torch.no_grad()
    def restart(self, codebook: Codebook, latents: Tensor, generator: torch.Generator) -> None:
        """Move every code used far less than the mean onto a random latent of (M, C).

        Its use is set to the mean, which gives it time to attract latents.
        """
        dead = self.use <= self.restart_below * self.use.mean()
        picks = torch.randint(len(latents), (len(dead),), generator=generator)
        picks = picks.pin_memory() if latents.is_cuda else picks
        picks = picks.to(latents.device, non_blocking=True)
        mean_use = len(latents) / len(self.use)
        _replace(codebook.embedding.weight, dead, latents[picks])
        _replace(self.total, dead, latents[picks] * mean_use)
        self.use.masked_fill_(dead, mean_use)

    @torch.no_grad()
    def adopt(self, codebook: Codebook, latents: int) -> None:
        """Start from trained codes, each equally used in batches of that many latents."""
        mean_use = latents / len(self.use)
        self.use.fill_(mean_use)
        self.total.copy_(codebook.embedding.weight * mean_use)

    @torch.no_grad()
    def update(self, latents: Tensor, token_ids: Tensor) -> None:
        """Update the averages with a batch's latents (M, C) and their codes (M,).

        Counts with `index_add_`, since `bincount` would sync with the GPU.
        """
        ones = torch.ones_like(token_ids, dtype=self.use.dtype)
        count = torch.zeros_like(self.use).index_add_(0, token_ids, ones)
        total = torch.zeros_like(self.total).index_add_(0, token_ids, latents)
        self.use.lerp_(count, 1 - self.decay)
        self.total.lerp_(total, 1 - self.decay)

    @torch.no_grad()
    def move(self, codebook: Codebook) -> None:
        """Put each code at the mean of its latents (van den Oord et al. 2017, eqs. 6 to 8)."""
        mean = self.total / self.use.clamp(min=torch.finfo(self.use.dtype).tiny)[:, None]
        _replace(codebook.embedding.weight, self.use > 0, mean)


def _replace(rows: Tensor, where: Tensor, new: Tensor) -> None:
    """Replace rows of (K, C) where (K,) bool is True, without a device sync."""
    rows.copy_(torch.where(where[:, None], new, rows))


def commitment_loss(latents: Tensor, codes: Tensor) -> Tensor:
    """Squared distance that pulls latents to their codes, averaged over elements."""
    return F.mse_loss(latents, codes.detach())


def codebook_loss(latents: Tensor, codes: Tensor) -> Tensor:
    """Squared distance that pulls codes to the latents, used instead of moving averages."""
    return F.mse_loss(codes, latents.detach())


def straight_through(latents: Tensor, codes: Tensor) -> Tensor:
    """The codes, with the gradient of the latents."""
    return latents + (codes - latents).detach()


def perplexity(counts: Tensor) -> Tensor:
    """Effective number of codes in use, exp of the entropy of their shares, (K,) -> scalar."""
    share = counts / counts.sum()
    return torch.special.entr(share).sum().exp()
