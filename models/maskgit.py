"""MaskGIT: a frozen tokenizer and a bidirectional transformer over its tokens.

Shapes: B batch, N tokens, H x W pixels, K codebook size, M hidden tokens of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from config.schema import DecodingConfig
from models.conditioning import known_features, known_pixels
from models.cpu_kernels import padded_groups
from models.decode import LogitsOf, StepResult, decode
from models.masking import token_mask_from_holes
from models.parallel import parallel_map
from models.transformer import BidirectionalTransformer
from models.vqgan import VQGAN, full_fp32


class Start(NamedTuple):
    """The encoded and masked images that decoding starts from."""

    token_ids: Tensor  # (B, N) int64
    token_mask: Tensor  # (B, N) bool, True = hidden
    known: Tensor | None  # (B, N, F), for a transformer with conditioning
    pixels: Tensor | None  # (B, 4, H, W), for a decoder with conditioning


class MaskGIT(nn.Module):
    """The two networks composed for inpainting; the tokenizer is frozen."""

    def __init__(
        self, tokenizer: VQGAN, transformer: BidirectionalTransformer, mask_schedule: str
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer.requires_grad_(False).to(memory_format=torch.channels_last)
        self.transformer = transformer
        self.mask_schedule = mask_schedule
        tokenizer.eval()

    def train(self, mode: bool = True) -> MaskGIT:
        """Switch the transformer's mode; the tokenizer stays in eval mode."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def logits_of(
        self, masked_ids: Tensor, token_mask: Tensor, known: Tensor | None = None
    ) -> Tensor:
        """Logits of the K codes at hidden positions, (M, K); the mask id cannot be predicted.

        With several images in a forward pass, the head runs at all positions: the number of hidden
        ones would change the shape of its matrix products, and so their rounding.
        """
        width = self.transformer.config.dim
        groups = [padded_groups(part, width) for part in (masked_ids, token_mask)]
        groups.append([None] * len(groups[0]) if known is None else padded_groups(known, width))

        def logits_of_group(group: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
            ids, mask, features = group
            single = len(ids) == 1
            logits = self.transformer(ids, mask if single else None, features)
            logits = logits if single else logits[mask]  # padding hides nothing, so adds no row
            return logits[:, : self.transformer.mask_token_id]  # (M of the group, K)

        groups = list(zip(*groups, strict=True))
        return torch.cat(parallel_map(logits_of_group, groups, masked_ids.device))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Token ids (B, N) of normalised images (B, 3, H, W)."""
        return self.token_ids(self.latents(images))

    def latents(self, images: Tensor) -> Tensor:
        """Latents before quantisation (B, h, w, C) of normalised images (B, 3, H, W)."""
        with full_fp32(images.device):
            latents = parallel_map(self.tokenizer.latents, padded_groups(images), images.device)
        return torch.cat(latents)[: len(images)]

    def token_ids(self, latents: Tensor) -> Tensor:
        """Nearest codes of latents, (B, h, w, C) -> (B, N)."""
        with full_fp32(latents.device):
            rows = [self.tokenizer.codebook.nearest(batch) for batch in padded_groups(latents)]
        return torch.cat(rows)[: len(latents)].flatten(1)

    @torch.no_grad()
    def start(self, images: Tensor, holes: Tensor) -> Start:
        """Encode and mask images; independent of all decoding settings.

        images: (B, 3, H, W) normalised, holes filled with anything. holes: (B, H, W) bool.
        """
        latents, known = self.latents(images), None
        token_ids = self.token_ids(latents)
        if self.transformer.config.conditioning == "pixels":
            codes = self.tokenizer.codebook.vectors()
            known = known_features(images, holes, latents, codes, self.transformer.config)
        token_mask = token_mask_from_holes(holes, round(token_ids.shape[1] ** 0.5))
        pixels = known_pixels(images, holes) if self.tokenizer.config.conditioned else None
        return Start(token_ids, token_mask, known, pixels)

    @torch.no_grad()
    def finish(
        self,
        start: Start,
        settings: DecodingConfig,
        *,
        seed: int,
        image_ids: Tensor,
        samples: int = 1,
        first_sample: int = 0,
        logits_of: LogitsOf | None = None,
    ) -> Iterator[StepResult]:
        """Decode step by step; the last step's token ids are those of the repaired images.

        image_ids: (B,) int64 on the images' device, which key each image's noise. samples: number
        of repairs of each image, counted from first_sample; repair s of image b is row
        b * samples + s of each step. logits_of: replaces the model's own.
        """
        assert not self.training, "dropout must be off: call eval() first"
        sample_ids = torch.arange(first_sample, first_sample + samples, device=image_ids.device)
        yield from decode(
            logits_of or self.logits_of,
            start.token_ids.repeat_interleave(samples, 0),
            start.token_mask.repeat_interleave(samples, 0),
            settings,
            model_schedule=self.mask_schedule,
            mask_token_id=self.transformer.mask_token_id,
            seed=seed,
            image_ids=image_ids.repeat_interleave(samples),
            sample_ids=sample_ids.repeat(len(image_ids)),
            known=None if start.known is None else start.known.repeat_interleave(samples, 0),
        )
