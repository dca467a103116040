"""MaskGIT: a frozen tokenizer and a bidirectional transformer over its tokens.

Shapes: B batch, N tokens, H x W pixels, K codebook size, M hidden tokens of the whole batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.schema import DecodingConfig, MaskingConfig
from models.decode import OnStep, decode
from models.masking import draw_token_mask, token_mask_from_holes
from models.transformer import BidirectionalTransformer
from models.vqgan import VQGAN


def masked_token_loss(
    transformer: BidirectionalTransformer,
    token_ids: Tensor,
    masking: MaskingConfig,
    generator: torch.Generator,
) -> Tensor:
    """Masked visual token modelling: mean cross-entropy in nats of the original tokens, scalar.

    token_ids: (B, N). The loss covers all tokens (the report's code) or the hidden ones (MaskGIT
    eq. 1), as `masking.loss_on` says.
    """
    token_mask = draw_token_mask(*token_ids.shape, masking, generator).to(token_ids.device)
    return token_loss(transformer, token_ids, token_mask, masking)


def token_loss(
    transformer: BidirectionalTransformer,
    token_ids: Tensor,
    token_mask: Tensor,
    masking: MaskingConfig,
) -> Tensor:
    """Mean cross-entropy for a given mask: (B, N) ids, (B, N) bool -> scalar; 0 if none counts."""
    masked_ids = token_ids.masked_fill(token_mask, transformer.mask_token_id)
    scored = torch.ones_like(token_mask) if masking.loss_on == "all" else token_mask
    logits = transformer(masked_ids, None if masking.loss_on == "all" else scored)
    total = F.cross_entropy(
        logits.flatten(0, -2).float(),
        token_ids[scored],
        reduction="sum",
        label_smoothing=masking.label_smoothing,
    )
    return total / scored.sum().clamp(min=1)


class MaskGIT(nn.Module):
    """Composes the two networks for inpainting; the tokenizer never trains."""

    def __init__(
        self, tokenizer: VQGAN, transformer: BidirectionalTransformer, mask_schedule: str
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer.requires_grad_(False)
        self.transformer = transformer
        self.mask_schedule = mask_schedule
        tokenizer.eval()

    def train(self, mode: bool = True) -> MaskGIT:
        """Switch the transformer's mode; the tokenizer stays in eval mode."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def logits_of(self, masked_ids: Tensor, token_mask: Tensor) -> Tensor:
        """Logits of the K codes at hidden places, (M, K); the mask id cannot be predicted."""
        return self.transformer(masked_ids, token_mask)[:, : self.transformer.mask_token_id]

    @torch.no_grad()
    def inpaint(
        self,
        images: Tensor,
        holes: Tensor,
        settings: DecodingConfig,
        *,
        seed: int,
        image_ids: Tensor,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Token ids of the repaired images, (B, N).

        images: (B, 3, H, W) normalised, holes filled with anything. holes: (B, H, W) bool.
        image_ids: (B,) int64 on the images' device, which key each image's noise.
        """
        assert not self.training, "dropout must be off: call eval() first"
        with torch.autocast(images.device.type, enabled=False):  # a token must not hang on rounding
            token_ids = self.tokenizer.encode(images)
        grid = round(token_ids.shape[1] ** 0.5)
        return decode(
            self.logits_of,
            token_ids,
            token_mask_from_holes(holes, grid),
            settings,
            model_schedule=self.mask_schedule,
            mask_token_id=self.transformer.mask_token_id,
            seed=seed,
            image_ids=image_ids,
            on_step=on_step,
        )
