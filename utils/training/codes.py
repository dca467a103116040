"""The codebook in training: which latents become which codes, and what moves the codes.

Shapes: B batch, h x w token grid, C latent channels, M = B h w latents of a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from config.schema import TokenizerTraining
from models.quantizer import Codebook, CodebookAverages
from utils import distributed

COLLAPSED = 0.1  # share of codes in use below which a codebook counts as collapsed


class Codes:
    """Quantises latents, restarts unused codes and counts those in use.

    All processes know the latents of the whole batch, so their codebooks stay equal.
    """

    def __init__(
        self, codebook: Codebook, settings: TokenizerTraining, device: torch.device
    ) -> None:
        """codebook: on the device already."""
        self.codebook, self.settings = codebook, settings
        self.averages = CodebookAverages(codebook, settings.codebook_decay, settings.restart_below)
        self.averages.to(device)
        self.placed = False  # until the first batch that is quantised puts them onto its latents
        size = len(codebook.embedding.weight)
        self.chosen = torch.zeros(size, dtype=torch.bool, device=device)

    def adopt(self, latents: int) -> None:
        """Take over trained codes; latents: how many a batch has."""
        self.averages.adopt(self.codebook, latents)
        self.placed = True

    def quantise(
        self, latents: Tensor, count: int, restarting: bool, generator: torch.Generator
    ) -> Tensor:
        """Codes of latents, (B, h, w, C) each; the averages follow all ``count`` images.

        restarting: whether unused codes move onto latents, as all do at first.
        """
        flat = distributed.all_rows(latents.detach(), count).flatten(0, 2)  # (M, C)
        if restarting or not self.placed:
            self.averages.restart(self.codebook, flat, generator)
            self.placed = True
        token_ids = self.nearest(latents)
        self.averages.update(flat, distributed.all_rows(token_ids, count).flatten())
        if self.settings.codebook == "ema":
            self.averages.move(self.codebook)
        return self.codebook.lookup(token_ids)

    def nearest(self, latents: Tensor) -> Tensor:
        """Token ids of latents, (B, h, w, C) -> (B, h, w), noted as codes in use."""
        token_ids = self.codebook.nearest(latents.detach())
        self.chosen[token_ids.flatten()] = True
        return token_ids

    def lookup(self, token_ids: Tensor) -> Tensor:
        """Codes of tokens, (B, h, w) -> (B, h, w, C), noted as codes in use."""
        self.chosen[token_ids.flatten()] = True
        return self.codebook.lookup(token_ids)

    def remark(self, may_warn: bool) -> str:
        """What the progress bar says of them; the main process warns where their use collapses."""
        used = self.in_use()
        if used < COLLAPSED and may_warn and distributed.is_main():
            tqdm.write(
                f"codebook collapse: {used:.0%} of the codes in use; encoder and codes drift "
                "apart, raise restart_below or commitment_weight, or lower learning_rate"
            )
        return f"codes {used:.0%}"

    def in_use(self) -> float:
        """Share of the codes that were chosen since the last call, asked of all processes."""
        share = (distributed.total(self.chosen.float()) > 0).float().mean().item()
        self.chosen.zero_()
        return share
