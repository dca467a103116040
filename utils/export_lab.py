"""Write our weights under the key names of a lab solution.

python -m utils.export_lab --config runs/lab/config.yml --variant separate --out handed-in

writes <out>/VQGAN.pt and <out>/transformer.pt, or with --whole one file, <out>/maskgit.pt: plain
dictionaries of float32 tensors for `torch.load(file, weights_only=True)`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from config.errors import UserError
from config.loading import load_config
from config.schema import Config, TokenizerConfig, TransformerConfig
from utils.checkpoint import load_tokenizer, load_transformer
from utils.cli import ArgumentParser, add_config_arguments, as_overrides, run
from utils.files import atomic
from utils.lab_keys import PREFIXES, REPORT, TOKENIZER, TRANSFORMER, VARIANTS, Weights, to_lab

OPTIONS = {  # flag: key that it overrides, type, help
    "--transformer": ("transformer.weights", str, "transformer weights file"),
    "--tokenizer": ("tokenizer.weights", str, "tokenizer weights file"),
}
NAMES = {TOKENIZER: "VQGAN.pt", TRANSFORMER: "transformer.pt"}
WHOLE = "maskgit.pt"
ONLY_HERE = {  # settings that change the function but not the shapes: a lab solution lacks them
    "norm": {"group", "post"},
    "normalize_codes": {False},
    "prior_dim": {0},
    "conv_kernel": {0},
}


def export_lab(config: Config, out: Path, variant: str, whole: bool) -> list[str]:
    """Write both networks of a config for a lab solution; returns lines that tell what it needs.

    Raises `UserError` for networks that no lab solution can compute.
    """
    networks = {
        TOKENIZER: load_tokenizer(config.tokenizer_weights, config.tokenizer),
        TRANSFORMER: load_transformer(config.transformer_weights, config.transformer),
    }
    for kind, network in networks.items():
        _check_lab_can(kind, network.config)
    parts = {kind: to_lab(kind, net.state_dict(), variant) for kind, net in networks.items()}
    if whole:
        prefix = {kind: text for text, kind in PREFIXES.items()}
        joined = {prefix[kind] + key: w for kind, part in parts.items() for key, w in part.items()}
        written = {out / WHOLE: joined}
    else:
        written = {out / NAMES[kind]: part for kind, part in parts.items()}
    for path, weights in written.items():
        _save(path, weights)
    lines = [f"{path}: {len(weights)} keys" for path, weights in written.items()]
    return lines + [line for kind, net in networks.items() for line in _needs(kind, net.config)]


def _check_lab_can(kind: str, description: TokenizerConfig | TransformerConfig) -> None:
    """Refuse what a lab solution would load and then compute differently."""
    for key, allowed in ONLY_HERE.items():
        found = getattr(description, key, None)
        if found is not None and found not in allowed:
            known = allowed & {getattr(type(description)(), key)}
            raise UserError(
                f"{kind}.{key} is {found}: no lab solution computes that; allowed is {known.pop()}"
            )


def _needs(kind: str, description: TokenizerConfig | TransformerConfig) -> list[str]:
    """Settings in which the network differs from the lab's, which the solution must take over."""
    lab, ours = type(description)().model_dump(), description.model_dump()
    other = {k: v for k, v in ours.items() if v != lab[k] and k not in ("attention", "qkv_bias")}
    text = ", ".join(f"{key} {value}" for key, value in other.items())
    return [f"the solution's {kind} must be built with: {text}"] if other else []


def _save(path: Path, weights: Weights) -> None:
    with atomic(path) as temporary:
        torch.save({key: value.contiguous() for key, value in weights.items()}, temporary)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add_config_arguments(parser, OPTIONS)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--variant", choices=VARIANTS, default=REPORT, help="how attention's keys are called"
    )
    parser.add_argument("--whole", action="store_true", help="both networks in one file")
    args = parser.parse_args()
    config = load_config(args.config, as_overrides(args, OPTIONS))
    print("\n".join(export_lab(config, args.out, args.variant, args.whole)))


if __name__ == "__main__":
    run(main)
