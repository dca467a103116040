"""Import checkpoints of a lab solution: convert them to our form, with a config that runs them.

python -m utils.weights.import_lab VQGAN.pt transformer.pt --out runs/lab

writes <out>/vqgan.safetensors, <out>/transformer.safetensors, <out>/config.yml, and <out>/keys.txt,
which lists every key of the files and how it was converted.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from config.decoding import RULES
from config.errors import UserError
from config.loading import Override, load_config, save_config
from config.schema import Config
from utils.cli import ArgumentParser, add_config_arguments, first_line, run
from utils.io.files import atomic, content_hash, write_text
from utils.weights.description import TOKENIZER, TRANSFORMER, WEIGHTS_FILES, without_values
from utils.weights.lab_file import read_lab_file
from utils.weights.lab_keys import LabFile, Part, one_of_each
from utils.weights.lab_layouts import LAYOUTS
from utils.weights.lab_naming import UNUSED, Roles, Settled
from utils.weights.lab_questions import assumed
from utils.weights.lab_shapes import KeyReport, cure, describe, key_report, not_followed
from utils.weights.store import fill, save_weights

NOT_READ = {  # settings that shapes do not determine
    TOKENIZER: ("norm",),
    TRANSFORMER: ("num_heads", "dropout", "attention", "norm", "prior_dim"),
}

UNSUPPORTED = {  # blocks of public solutions; no file reveals it, though a name may suggest it
    "query-softmax": "its softmax runs over the queries instead of the keys",
    "merged-heads": "its heads are merged without moving them next to their token, or split so",
    "no-softmax": "it takes no softmax of the scores",
    "relu": "its MLP uses ReLU instead of GELU",
    "rms-norm": "its norms are RMSNorm instead of LayerNorm",
}


class Imported(NamedTuple):
    """Converted networks, and what to tell about them."""

    config: Config
    lines: list[str]
    """All there is to print, the notes among them."""
    notes: list[str]
    """What was assumed or left out."""
    attention: str
    """What the layers of attention are called; empty without a transformer."""


def import_lab(
    paths: list[Path],
    out: Path,
    base: Config,
    *,
    entry: str | None = None,
    roles: Roles | None = None,
    attention: str | None = None,
    choice: Mapping[str, Path] | None = None,
) -> Imported:
    """Convert the networks in some files.

    ``base`` gives settings that the files do not contain; entry, roles and attention (one of
    LAYOUTS) resolve ambiguities. choice: the file to take each network from, maybe none of
    ``paths``; others are left out. The config computes in fp32, so that logits match the lab's.
    Raises `UserError`, and writes nothing, unless every key of every file is accounted for.
    """
    settled = Settled(entry, roles or {}, attention, base.transformer.num_heads)
    files = [read_lab_file(path, settled) for path in paths]
    parts = one_of_each(files, choice)
    lines = [line for f in files for line in (f"{f.name}:", *(f"  {note}" for note in f.notes))]
    notes = [note for file in files for note in file.notes]
    keys, problems = [], []
    descriptions: dict[str, Any] = {}
    for kind, (file, part) in parts.items():
        description = describe(part, getattr(base, kind), file.name)
        descriptions[kind] = description
        report = key_report(part, description)
        found = _assumed(part, description, getattr(base, kind))
        lines += [*_summary(part, report, description), *(f"  {text}" for text in found)]
        notes += found
        keys += [f"# {file.name}: {kind}", *report.lines()]
        if report.problems():
            problems.append(f"{file.name}: {kind}: {report.problems()}{cure(part, description)}")
    if problems:
        print("\n".join(lines))
        raise UserError("; ".join(problems))
    written = {os.path.realpath(out / WEIGHTS_FILES[kind]) for kind in parts}
    for path in paths:
        if os.path.realpath(path) in written:
            raise UserError(f"{path}: would be replaced; name another --out")
    config = _config(base, out, descriptions)
    _write(out, config, parts, keys)
    naming = parts[TRANSFORMER][1].naming.title if TRANSFORMER in parts else ""
    return Imported(config, lines, notes, naming)


def _summary(part: Part, report: KeyReport, description: Any) -> list[str]:
    """Lines about the keys and shapes of one network."""
    variant = f", attention variant {part.naming.title}" if part.kind == TRANSFORMER else ""
    count = sum(value.numel() for value in part.weights.values())
    read = description.model_dump(exclude=set(NOT_READ[part.kind]))
    return [
        f"{part.kind}{variant}, {count / 1e6:.2f} M values",
        f"  keys: {len(report.matched)} matched, {len(report.renamed)} renamed, "
        f"{len(report.missing)} missing, {len(report.unexpected)} unexpected, "
        f"{len(report.shapes)} of another shape",
        *(f"  renamed: {text}" for text in _patterns(report.renamed)),
        f"  read from the shapes: {_as_text(read)}",
    ]


def _assumed(part: Part, description: Any, expected: Any) -> list[str]:
    """Notes on what shapes do not determine; expected: the network's section of the base config."""
    taken = description.model_dump(include=set(NOT_READ[part.kind]))
    attention = [f"assumed: {assumed(part.naming)}; compare with the source"]
    return [
        f"assumed, not determined by shapes: {_as_text(taken)}",
        *(attention if part.kind == TRANSFORMER else []),
        *not_followed(description, expected),
    ]


def _patterns(renamed: dict[str, str]) -> list[str]:
    """Renamed keys with block numbers replaced by i, each pattern once."""
    patterns: dict[str, int] = {}
    for new, old in renamed.items():
        text = re.sub(r"\bblocks\.\d+\.", "blocks.i.", f"{old} -> {new}")
        patterns[text] = patterns.get(text, 0) + 1
    return [f"{text} ({count} times)" for text, count in patterns.items()]


def _as_text(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _config(base: Config, out: Path, descriptions: dict[str, Any]) -> Config:
    """The base config with the described networks and their files, made consistent."""
    values: dict[str, Any] = base.model_dump() | {"run": out, "precision": "fp32"}
    for kind, description in descriptions.items():
        values[kind] |= description.model_dump() | {"weights": out / WEIGHTS_FILES[kind]}
    patch = 2 ** len(values[TOKENIZER]["downsample_after"])
    if TRANSFORMER in descriptions:
        values["data"]["image_size"] = math.isqrt(values[TRANSFORMER]["num_tokens"]) * patch
        if TOKENIZER not in descriptions:
            values[TOKENIZER]["codebook_size"] = values[TRANSFORMER]["codebook_size"]
    else:
        values[TRANSFORMER]["num_tokens"] = (values["data"]["image_size"] // patch) ** 2
        values[TRANSFORMER]["codebook_size"] = values[TOKENIZER]["codebook_size"]
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        rows = "; of the rows of tok_emb one is the mask's" if "codebook_size" in message else ""
        raise UserError(f"the files do not fit together: {message}{rows}") from None


def _write(
    out: Path, config: Config, parts: dict[str, tuple[LabFile, Part]], keys: list[str]
) -> None:
    """Load the weights strictly; write them in float32 with their source, and how to use them."""
    for kind, (file, part) in parts.items():
        source = Path(file.name)
        network = fill(without_values(getattr(config, kind)), part.weights, source)
        notes = {"source": source.name, "source_sha256": content_hash([source])}
        notes |= {"attention": part.naming.as_text()}
        weights = network.state_dict()
        save_weights(out / WEIGHTS_FILES[kind], weights, getattr(config, kind), notes)
    write_text(out / "keys.txt", "\n".join(keys) + "\n")
    with atomic(out / "config.yml") as temporary:
        save_config(config, temporary)


def role_map(text: str) -> Roles:
    """Parse `blocks.0.attn.a=q,...` into layers of any block and their roles, for argparse."""
    roles: Roles = {}
    for item in text.split(","):
        layer, _, role = item.strip().partition("=")
        role = {"out": "o", "output": "o"}.get(role, role)
        if role not in ("o", UNUSED) and not re.fullmatch(r"(?!.*(.).*\1)[qkv]+", role):
            raise ArgumentTypeError(
                f"'{item}' is not LAYER=ROLE; roles are q, k, v, o, qkv and {UNUSED}"
            )
        roles[re.sub(r"^blocks\.\d+\.", "", layer)] = role
    return roles


def _base(args: Namespace) -> Config:
    """The base config with the requested decode rule."""
    rule: list[Override] = [("decoding.rule", args.rule)] if args.rule else []
    base = load_config(args.config, [*rule, *args.set])
    is_labs = args.rule is not None and args.rule.startswith("lab")
    if is_labs and base.decoding.mask_schedule == "cosine":  # 16 of 19 mean cos(pi q / 2)
        rule.append(("decoding.mask_schedule", "maskgit_cosine"))
        base = load_config(args.config, [*rule, *args.set])
    return base


def main() -> None:
    parser = ArgumentParser(description=first_line(__doc__))
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help=".pt file of the lab")
    parser.add_argument("--out", "--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--entry", help="which of several networks in a file, e.g. ema")
    parser.add_argument(
        "--map",
        type=role_map,
        metavar="LAYER=ROLE,...",
        help="what attention layers are, where names do not say it, e.g. blocks.0.attn.a=q; "
        f"roles: q, k, v, o, or qkv in the order of the rows, or {UNUSED}",
    )
    parser.add_argument(
        "--attention",
        choices=(*LAYOUTS, *UNSUPPORTED),
        help="layout of the solution's matrices, or what its blocks compute; no file specifies it",
    )
    parser.add_argument(
        "--rule", choices=RULES, help="how it decodes; by the lab's rules cosine is maskgit_cosine"
    )
    add_config_arguments(parser, {})
    args = parser.parse_args()
    if args.attention in UNSUPPORTED:
        raise UserError(
            f"--attention {args.attention}: {UNSUPPORTED[args.attention]}; such weights give other "
            "logits here. Let the solution repair the images itself, and score its results folder"
        )
    base = _base(args)
    imported = import_lab(args.files, args.out, base, entry=args.entry, roles=args.map,
                          attention=args.attention)  # fmt: skip
    print("\n".join(imported.lines))
    for kind in (TOKENIZER, TRANSFORMER):
        if getattr(imported.config, kind).weights is None:
            print(f"no {kind} in these files: give one to inpainting.py with --{kind}")
    path = shlex.quote(str(args.out / "config.yml"))
    print(f"run it: python inpainting.py --config {path} --data DIR")


if __name__ == "__main__":
    run(main)
