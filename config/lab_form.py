"""Convert a config in the lab's form, a section `model_param` with the lab's names, to ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from config.errors import UserError
from config.section import dotted, schedule_name

REPORT = Path(__file__).with_name("MaskGit.yml")  # defaults for everything the lab's form lacks
KEYS = {  # key below model_param in the lab's form: our keys
    "VQ_Configs.VQ_CKPT_path": ("tokenizer.weights",),
    "num_image_tokens": ("transformer.num_tokens",),
    "num_codebook_vectors": ("transformer.codebook_size", "tokenizer.codebook_size"),
    "choice_temperature": ("decoding.choice_temperature",),
    "gamma_type": ("decoding.mask_schedule",),
    "Transformer_param.num_image_tokens": ("transformer.num_tokens",),
    "Transformer_param.num_codebook_vectors": ("transformer.codebook_size",),
    "Transformer_param.dim": ("transformer.dim",),
    "Transformer_param.n_layers": ("transformer.num_layers",),
    "Transformer_param.n_heads": ("transformer.num_heads",),
    "Transformer_param.num_heads": ("transformer.num_heads",),
    "Transformer_param.hidden_dim": ("transformer.mlp_dim",),
    "Transformer_param.dropout": ("transformer.dropout",),
    "VQ_Configs.VQ_config_path": (),  # the tokenizer's sizes are inferred from its weights
    "training_param.epochs": ("training.epochs",),
    "training_param.batch_size": ("training.batch_size",),
    "training_param.learning_rate": ("training.learning_rate",),
}
NOT_READ = "training_param."  # what else it contains: how a solution trained changes no repair


def from_lab_form(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Values of the section `model_param` under our keys.

    Raises `UserError` for an unknown key and a schedule that is null.
    """
    out = yaml.safe_load(REPORT.read_text(encoding="utf-8"))
    for place, value in dotted(values):
        if place not in KEYS and not f"{place}.".startswith(NOT_READ):
            allowed = ", ".join(KEYS)
            raise UserError(f"{path}: model_param.{place} is not known; allowed are {allowed}")
        for key in KEYS.get(place, ()):
            section, _, name = key.partition(".")
            out[section][name] = value
    schedule = out["decoding"]["mask_schedule"]
    if schedule is None:
        raise UserError(f"{path}: model_param.gamma_type is null; name a schedule, such as cosine")
    out["decoding"]["mask_schedule"] = schedule_name(str(schedule))
    return out
