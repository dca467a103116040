"""Removed settings, and what to use instead."""

from __future__ import annotations

from typing import Any, NamedTuple


class Removed(NamedTuple):
    """A removed setting."""

    off: Any
    """The value without effect, which earlier versions wrote into every config."""
    advice: str
    """What to do if it had another value."""


REMOVED = {
    "tokenizer.normalize_codes": Removed(
        False, "codes of unit length used fewer codes; train such a tokenizer again"
    ),
    "tokenizer.training.perceptual": Removed(
        "efficientnet-lite0", "it is always efficientnet-lite0; leave the key out"
    ),
    "tokenizer.training.augment": Removed(
        0.0, "augmented views did not improve stage 1 (docs/tokenizer.md); leave the key out"
    ),
    "tokenizer.training.adversarial_rate": Removed(
        1.0, "the discriminator learns at the rate of the other networks; leave the key out"
    ),
    "training.lr_step_epochs": Removed(50, "use training.lr_schedule: cosine instead"),
    "training.lr_step_factor": Removed(0.1, "use training.lr_schedule: cosine instead"),
    "data.hole_views": Removed(
        0, "holes are drawn for each image and epoch, with transformer.conditioning pixels"
    ),
    "transformer.relative_bias": Removed(
        False, "use transformer.conv_kernel: 3 instead, and train such weights again"
    ),
    "masking.shape": Removed("random", "tokens are hidden one by one; leave the key out"),
    "masking.min_ratio": Removed(0.0, "leave the key out"),
    "decoding.dilate": Removed(
        0, "what a hole spoils around it is the tokenizer's to mend (docs/tokenizer.md)"
    ),
    "decoding.top_k": Removed(None, "lower decoding.temperature instead"),
    "decoding.top_p": Removed(1.0, "lower decoding.temperature instead"),
    "search.subset": Removed(1.0, "shorten the trials with search.steps instead"),
    "search.rungs": Removed(4, "trials are always compared at four points; leave the key out"),
    "search.cost": Removed(0.3, "Optuna's median pruner saves time instead; leave the key out"),
}

REMOVED_VALUES = {  # removed values of settings that still exist
    ("training.lr_schedule", "step"): "use cosine, which falls to a hundredth by itself",
}


def without_removed(values: dict[str, Any], class_name: str) -> dict[str, Any]:
    """A section's values without its removed keys that were switched off.

    class_name: of the section, e.g. TokenizerTraining for tokenizer.training.
    """
    name_of_section = class_name.removesuffix("Config").removesuffix("Section")
    gone = {}
    for key, removed in REMOVED.items():
        section, _, name = key.rpartition(".")
        if section.title().replace(".", "") == name_of_section:
            gone[name] = removed.off
    return {
        name: value for name, value in values.items() if name not in gone or value != gone[name]
    }
