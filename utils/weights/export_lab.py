"""Export our weights under the key names of a lab solution.

python -m utils.weights.export_lab --config runs/lab/config.yml --variant separate --out handed-in

writes <out>/VQGAN.pt and <out>/transformer.pt, or with --whole one file, <out>/maskgit.pt: plain
dictionaries of float32 tensors for `torch.load(file, weights_only=True)`.
"""

from __future__ import annotations

from pathlib import Path

from config.errors import UserError
from config.loading import load_config
from config.schema import Config, TokenizerConfig, TransformerConfig
from utils.cli import ArgumentParser, add_config_arguments, as_overrides, first_line, run
from utils.io.files import atomic
from utils.weights.description import TOKENIZER, TRANSFORMER, read_header
from utils.weights.lab_file import read_lab_file
from utils.weights.lab_keys import PREFIXES, to_lab
from utils.weights.lab_layouts import LAYOUTS
from utils.weights.lab_naming import VARIANTS, Naming, Settled
from utils.weights.store import load_tokenizer, load_transformer, write_tensors

OPTIONS = {  # flag: key that it overrides, type, help
    "--transformer": ("transformer.weights", str, "transformer weights file"),
    "--tokenizer": ("tokenizer.weights", str, "tokenizer weights file"),
}
NAMES = {TOKENIZER: "VQGAN.pt", TRANSFORMER: "transformer.pt"}
WHOLE = "maskgit.pt"
ONLY_HERE = {  # settings that change the function but not the shapes: what lab solutions compute
    "norm": {"group", "post"},
    "prior_dim": {0},
    "conv_kernel": {0},
    "conditioning": {"none"},
    "decoder_conditioning": {"none"},
}


def export_lab(config: Config, out: Path, naming: Naming, whole: bool) -> list[str]:
    """Write both networks of a config for a lab solution; returns lines to print.

    Raises `UserError` for networks that lab solutions do not implement.
    """
    networks = {
        TOKENIZER: load_tokenizer(config.tokenizer_weights, config.tokenizer),
        TRANSFORMER: load_transformer(config.transformer_weights, config.transformer),
    }
    for kind, network in networks.items():
        _check_lab_can(kind, network.config)
    parts = {kind: to_lab(kind, net.state_dict(), naming) for kind, net in networks.items()}
    if whole:
        prefix = {kind: text for text, kind in PREFIXES.items()}
        joined = {prefix[kind] + key: w for kind, part in parts.items() for key, w in part.items()}
        written = {out / WHOLE: joined}
    else:
        written = {out / NAMES[kind]: part for kind, part in parts.items()}
    for path, weights in written.items():
        with atomic(path) as temporary:
            write_tensors(temporary, {key: value.contiguous() for key, value in weights.items()})
    lines = [f"{path}: {len(weights)} keys" for path, weights in written.items()]
    return lines + [line for kind, net in networks.items() for line in _needs(kind, net.config)]


def _check_lab_can(kind: str, description: TokenizerConfig | TransformerConfig) -> None:
    """Raise `UserError` for settings that a lab solution would load but compute differently."""
    for key, allowed in ONLY_HERE.items():
        found = getattr(description, key, None)
        if found is not None and found not in allowed:
            known = allowed & {getattr(type(description)(), key)}
            raise UserError(
                f"{kind}.{key} is {found}: no lab solution computes that; allowed is {known.pop()}"
            )


def _needs(kind: str, description: TokenizerConfig | TransformerConfig) -> list[str]:
    """Settings that differ from the lab's defaults, which the solution must adopt."""
    lab, ours = type(description)().model_dump(), description.model_dump()
    other = {k: v for k, v in ours.items() if v != lab[k] and k not in ("attention", "qkv_bias")}
    text = ", ".join(f"{key} {value}" for key, value in other.items())
    return [f"the solution's {kind} must be built with: {text}"] if other else []


def _naming(
    config: Config, variant: str | None, like: Path | None, layout: str | None = None
) -> Naming:
    """The naming of attention keys to write; layout: that of ``like``, one of LAYOUTS."""
    if like is not None:
        settled = Settled(layout=layout, heads=config.transformer.num_heads)
        return read_lab_file(like, settled).part(TRANSFORMER).naming
    if variant is not None:
        return VARIANTS[variant]
    imported = read_header(config.transformer_weights).get("attention")
    return Naming.from_text(imported) if imported else VARIANTS["report"]


def main() -> None:
    parser = ArgumentParser(description=first_line(__doc__))
    add_config_arguments(parser, OPTIONS)
    parser.add_argument("--out", "--output", type=Path, required=True, help="folder to write")
    names = parser.add_mutually_exclusive_group()
    names.add_argument(
        "--variant",
        choices=VARIANTS,
        help="how attention's keys are called (default as in the file that was imported)",
    )
    names.add_argument("--like", type=Path, metavar="FILE", help="name them as this lab file does")
    parser.add_argument("--attention", choices=LAYOUTS, help="how the matrices of --like lie")
    parser.add_argument("--whole", action="store_true", help="both networks in one file")
    args = parser.parse_args()
    if args.attention and not args.like:
        parser.error("--attention says how the matrices of --like FILE lie; give both")
    config = load_config(args.config, as_overrides(args, OPTIONS))
    naming = _naming(config, args.variant, args.like, args.attention)
    print("\n".join(export_lab(config, args.out, naming, args.whole)))


if __name__ == "__main__":
    run(main)
