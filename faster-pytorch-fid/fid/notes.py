"""What to know before a score is compared with others: printed with it and kept in certificates."""

from __future__ import annotations

from pathlib import Path

from fid.extraction import size_of
from fid.features import FID_HASH_PREFIX
from fid.images import ImageSet
from fid.metrics import KERNEL_SUBSET_SIZE
from fid.scoring import Outcome
from fid.statistics import holds


def notes(outcome: Outcome) -> list[str]:
    """Caveats for comparing these scores with others."""
    found, scores, dims = [], outcome.scores, outcome.backend.dims
    known = [count for count in outcome.counts if count is not None]
    if known and min(known) < dims:
        found.append(
            f"{min(known)} images are fewer than the {dims} feature dimensions: the distance is "
            "biased upward, compare it only with scores of as many images"
        )
    if outcome.backend.key("u_ids") in scores and sum(known) < 2 * dims:  # Cover 1965
        found.append(
            f"a hyperplane separates nearly any {sum(known)} images in {dims} features, so P-IDS "
            "and U-IDS are low for any images"
        )
    if outcome.backend.key("u_ids") in scores and outcome.backend.key("p_ids") not in scores:
        found.append("P-IDS is left out: the images do not pair with the ground truth")
    if scores.get(outcome.backend.key("kid") + "_mean", 0) < 0:
        found.append(
            "the kernel distance may be negative near 0: it is unbiased for independent sets, and "
            "repairs that resemble their own ground truth lower it"
        )
    if outcome.route == "legacy" and f"{outcome.backend.key('fid')}_low" in scores:
        found.append("the interval is that of the distance without --legacy")
    if outcome.subset_size not in (None, KERNEL_SUBSET_SIZE):
        found.append(f"the kernel distance is of subsets of {outcome.subset_size} images")
    sides = outcome.inputs.predicted, outcome.inputs.reference
    files = [side for side in sides if isinstance(side, Path)]
    name = outcome.backend.name
    text = f"does not say how its features were made; taken for {name}, resized as here"
    found += [f"{file} {text}" for file in files if not holds(file, "backend")]  # pytorch-fid's
    if files and outcome.backend.key("p_ids") in scores:
        found.append(f"P-IDS takes the rows of {files[0]} for those of the other side, in order")
    found += _unequal(outcome)
    sha256 = outcome.backend.weights_sha256
    if name == "inception" and not sha256.startswith(FID_HASH_PREFIX):
        found.append(
            f"not the public FID weights (sha256 begins {sha256[:8]}, theirs {FID_HASH_PREFIX})"
            ": compare only with scores of the same weights"
        )
    return found


def _unequal(outcome: Outcome) -> list[str]:
    """Notes about a number or size that differs between images and ground truth."""
    found, (count1, count2), inputs = [], outcome.counts, outcome.inputs
    sets = [side for side in (inputs.predicted, inputs.reference) if isinstance(side, ImageSet)]
    if None not in outcome.counts and count1 != count2:
        is_shared = len(sets) == 2 and len(sets[1]) == count1
        text = "share {}, which count once in KID, precision, recall, density and coverage"
        text = text if is_shared else "are compared with {}"
        found.append(f"{count1} images {text.format(f'{count2} of ground truth')}")
    sizes = [size_of(side) for side in (inputs.predicted, inputs.reference)]
    if None not in sizes and sizes[0] != sizes[1]:
        found.append(
            f"the images have {sizes[0]} pixels, the ground truth {sizes[1]}: the distance is of "
            "that too (see --resize)"
        )
    return found
