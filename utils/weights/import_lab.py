"""Read checkpoints of a lab solution and write them as ours, with a config that runs them.

python -m utils.weights.import_lab VQGAN.pt transformer.pt --out runs/lab

writes <out>/vqgan.safetensors, <out>/transformer.safetensors, <out>/config.yml, and <out>/keys.txt,
which names every key of the files and what became of it.
"""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from config.decoding import RULES
from config.errors import UserError
from config.loading import load_config, save_config
from config.schema import Config
from models.transformer import BidirectionalTransformer
from models.vqgan import VQGAN
from utils.cli import ArgumentParser, add_config_arguments, first_line, run
from utils.io.files import atomic, content_hash, write_text
from utils.weights.lab_attention import Roles, role_map
from utils.weights.lab_keys import TOKENIZER, TRANSFORMER, LabFile, Part
from utils.weights.lab_report import key_report, summary
from utils.weights.lab_shapes import describe
from utils.weights.store import fill, read_lab_file, save_weights

WEIGHTS_FILES = {TOKENIZER: "vqgan.safetensors", TRANSFORMER: "transformer.safetensors"}
UNSUPPORTED = {  # attention that two public solutions compute
    "query-softmax": "its softmax runs over the queries instead of the keys",
    "merged-heads": "its heads are merged without moving them next to their token",
}


def import_lab(
    paths: list[Path],
    out: Path,
    base: Config,
    *,
    entry: str | None = None,
    roles: Roles | None = None,
) -> tuple[Config, list[str]]:
    """Convert the networks of some files; returns the config that runs them and what to print.

    ``base`` gives all that files do not tell; entry and roles are those of `read_keys`, which
    settle what a file leaves open. The config computes in fp32, so that logits are the lab's.
    Nothing is written unless every key of every file
    has its place. Raises `UserError` otherwise.
    """
    files = [read_lab_file(path, entry, roles) for path in paths]
    parts = _one_of_each(files)
    lines = [line for f in files for line in (f"{f.name}:", *(f"  {note}" for note in f.notes))]
    keys, problems = [], []
    descriptions: dict[str, Any] = {}
    for kind, (file, part) in parts.items():
        description = describe(part, getattr(base, kind), file.name)
        descriptions[kind] = description
        report = key_report(part, description)
        lines += summary(part, report, description)
        keys += [f"# {file.name}: {kind}", *report.lines()]
        if report.problems():
            problems.append(f"{file.name}: {kind}: {report.problems()}")
    if problems:
        print("\n".join(lines))
        raise UserError("; ".join(problems))
    config = _config(base, out, descriptions)
    for kind, (file, part) in parts.items():
        _convert(file, part, descriptions[kind], out)
    write_text(out / "keys.txt", "\n".join(keys) + "\n")
    with atomic(out / "config.yml") as temporary:
        save_config(config, temporary)
    return config, lines


def _one_of_each(files: list[LabFile]) -> dict[str, tuple[LabFile, Part]]:
    """Each network with the file that holds it; two of a kind leave no choice but to ask."""
    parts: dict[str, tuple[LabFile, Part]] = {}
    for file in files:
        for kind, part in file.parts.items():
            if kind in parts:
                raise UserError(
                    f"{file.name}: a second {kind}, after that of {parts[kind][0].name}"
                )
            parts[kind] = (file, part)
    return parts


def _config(base: Config, out: Path, descriptions: dict[str, Any]) -> Config:
    """The base with the described networks and their files; both halves made to agree."""
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
        raise UserError(f"the files do not fit together: {message}") from None


def _convert(file: LabFile, part: Part, description: Any, out: Path) -> None:
    """Fill the network strictly and write it in float32 with where it came from."""
    network = (VQGAN if part.kind == TOKENIZER else BidirectionalTransformer)(description)
    fill(network, part.weights, Path(file.name))
    notes = {"source": Path(file.name).name, "source_sha256": content_hash([Path(file.name)])}
    notes |= {"attention": part.naming.as_text()}
    save_weights(out / WEIGHTS_FILES[part.kind], network.state_dict(), description, notes)


def _of_rule(rule: str | None) -> list[tuple[str, str]]:
    """Settings of a solution's decode rule; "cosine" is the paper's in most of the lab's."""
    if rule is None:
        return []
    curve = [("decoding.mask_schedule", "maskgit_cosine")] if rule.startswith("lab") else []
    return [("decoding.rule", rule), *curve]


def main() -> None:
    parser = ArgumentParser(description=first_line(__doc__))
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help=".pt file of the lab")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--entry", help="which of several networks in a file, e.g. ema")
    parser.add_argument(
        "--map",
        type=role_map,
        metavar="LAYER=ROLE,...",
        help="what attention layers are, where names do not say it, e.g. blocks.0.attn.a=q; "
        "roles: q, k, v, o, or qkv in the order of the rows",
    )
    parser.add_argument(
        "--attention",
        choices=("standard", *UNSUPPORTED),
        default="standard",
        help="how the solution computes attention, which no file tells",
    )
    parser.add_argument(
        "--rule",
        choices=RULES,
        help="decode rule of the solution (docs/decoding.md); those of the lab come with their "
        "cosine, cos(pi r / 2)",
    )
    add_config_arguments(parser, {})
    args = parser.parse_args()
    if args.attention in UNSUPPORTED:
        raise UserError(
            f"--attention {args.attention}: {UNSUPPORTED[args.attention]}; such weights give other "
            "logits here. Let the solution repair the images itself, and score its results folder"
        )
    base = load_config(args.config, [*args.set, *_of_rule(args.rule)])
    config, lines = import_lab(args.files, args.out, base, entry=args.entry, roles=args.map)
    print("\n".join(lines))
    for kind in (TOKENIZER, TRANSFORMER):
        if getattr(config, kind).weights is None:
            print(f"no {kind} in these files: give one to inpainting.py with --{kind}")
    path = shlex.quote(str(args.out / "config.yml"))
    print(f"run it: python inpainting.py --config {path} --data DIR")


if __name__ == "__main__":
    run(main)
