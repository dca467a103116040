"""Pretrained networks: released with the project, in a folder, or on the Hugging Face Hub."""

from __future__ import annotations

from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, SupportsIndex

from config.errors import StopRequested, UserError
from config.loading import load_config
from config.schema import Config, TokenizerConfig, TransformerConfig
from config.section import user_path
from utils.device import is_main
from utils.io.files import ROOT
from utils.io.messages import message_of, note, note_once
from utils.weights.description import WEIGHTS_FILES, read_header

if TYPE_CHECKING:
    import torch  # takes seconds

OF_TRAINING = {"dropout"}  # network settings without effect at inference
FLAT_FILLS = {"grey", "mean"}
DECODING = "decoding.yml"  # the best decoding settings for these networks


def pretrained_folder(name: str | Path) -> Path:
    """A folder with both networks: a path, relative to here or the project, or a Hub name.

    Raises `UserError` for a name that is none of these.
    """
    given = user_path(name)
    for folder in (given, ROOT / name):
        if all((folder / file).is_file() for file in WEIGHTS_FILES.values()):
            return folder
    if given.exists():
        raise UserError(f"{name}: has no {' and '.join(WEIGHTS_FILES.values())}")
    try:
        from huggingface_hub import constants, snapshot_download
    except ImportError:
        raise UserError(
            f"{name}: no such folder; a name on the Hugging Face Hub needs pip install "
            "huggingface_hub"
        ) from None
    user_path(constants.HF_HUB_CACHE)  # without a home it would be made in the current folder
    try:
        return Path(snapshot_download(str(name)))
    except StopRequested:
        raise
    except Exception as error:  # httpx has its own, and others for proxies that it cannot use
        reason = message_of(error)
        raise UserError(f"{name}: no such folder, and not found on the Hub ({reason})") from None


def pretrained_config(
    folder: Path, device: str | torch.device = "auto", seed: SupportsIndex = 0
) -> Config:
    """A config for the networks of a folder, with their decoding settings."""
    places = [(f"{part}.weights", str(folder / name)) for part, name in WEIGHTS_FILES.items()]
    overrides = [("device", str(device)), ("seed", index(seed)), *places]
    return load_config(folder / DECODING, overrides)


def or_pretrained(config: Config) -> Config:
    """The config, with the networks of `pretrained` if its run has no weights yet; a note says so.

    Explicitly configured weights are never replaced, nor is only one of the two networks.
    """
    own = (config.tokenizer_weights, config.transformer_weights)
    is_named = config.tokenizer.weights or config.transformer.weights
    if config.pretrained is None or is_named or any(path.exists() for path in own):
        return config
    folder = pretrained_folder(config.pretrained)
    if is_main():
        text = f"{config.run} has no weights yet; using the released ones in {folder}"
        note_once(text, text)
    sections = {
        part: getattr(config, part).model_copy(update={"weights": folder / name})
        for part, name in WEIGHTS_FILES.items()
    }
    return config.model_copy(update=sections)


def as_loaded(config: Config, networks: dict[str, TokenizerConfig | TransformerConfig]) -> Config:
    """The config with the networks as loaded; notes list what differed and what does not fit."""
    sections = {}
    for name, network in networks.items():
        section, found = getattr(config, name), network.model_dump()
        said = section.model_dump(include=section.model_fields_set & found.keys())
        differ = [k for k in said if said[k] != found[k] and k not in OF_TRAINING]
        others = [f"{name}.{k} {found[k]}, not {said[k]}" for k in differ]
        if others and is_main():
            note(f"{getattr(config, f'{name}_weights')}: overrides the config: {'; '.join(others)}")
        sections[name] = section.model_copy(update=found)
    weights, ours = config.transformer_weights, config.data.normalisation
    pixels = read_header(weights).get("pixels", ours)
    if pixels != ours and is_main():
        note(f"{weights}: was trained with {pixels}; the config says {ours}")
    loaded, fill = config.model_copy(update=sections), config.decoding.hole_fill
    if loaded.transformer.conditioning == "pixels" and fill in FLAT_FILLS and is_main():
        note(
            f"decoding.hole_fill is {fill}; networks that see known pixels need the fill that they "
            "were trained with, for the released ones biharmonic"
        )
    return loaded
