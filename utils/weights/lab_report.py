"""What an import says of a lab solution's networks: every key, and what was read off the shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from config.schema import TokenizerConfig, TransformerConfig
from utils.weights.lab_keys import NAMES_SHOWN, TOKENIZER, TRANSFORMER, Part
from utils.weights.lab_shapes import network_shapes, shapes_of

NOT_READ = {  # what shapes do not tell
    TOKENIZER: ("norm",),
    TRANSFORMER: ("num_heads", "dropout", "attention", "norm", "prior_dim"),
}


@dataclass(frozen=True)
class KeyReport:
    """What became of every key of one network."""

    matched: list[str]
    renamed: dict[str, str]
    """Name here -> name in the file."""
    missing: list[str]
    unexpected: list[str]
    shapes: dict[str, str]
    """Keys of another shape, with the found and the needed one."""

    def problems(self) -> str:
        """What keeps the file from being this network, on one line; empty if nothing does."""
        groups = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": [f"{key} {text}" for key, text in self.shapes.items()],
        }
        return "; ".join(
            f"{len(names)} keys {what}: {', '.join(names[:NAMES_SHOWN])}"
            + (", ..." if len(names) > NAMES_SHOWN else "")
            for what, names in groups.items()
            if names
        )

    def lines(self) -> list[str]:
        """One line a key, in the order of the groups."""
        return [
            *(f"matched     {key}" for key in self.matched),
            *(f"renamed     {old} -> {new}" for new, old in self.renamed.items()),
            *(f"missing     {key}" for key in self.missing),
            *(f"unexpected  {key}" for key in self.unexpected),
            *(f"shape       {key}: {text}" for key, text in self.shapes.items()),
        ]


def key_report(part: Part, description: TokenizerConfig | TransformerConfig) -> KeyReport:
    """Hold the keys of a part against those of the network that it should fill."""
    needed, found = network_shapes(description), shapes_of(part.weights)
    both = [key for key in needed if key in found]
    fits = [key for key in both if needed[key] == found[key]]
    return KeyReport(
        matched=[key for key in fits if key not in part.renamed],
        renamed={key: part.renamed[key] for key in fits if key in part.renamed},
        missing=[key for key in needed if key not in found],
        unexpected=[part.sources[key] for key in found if key not in needed],
        shapes={k: f"{found[k]}, needed {needed[k]}" for k in both if needed[k] != found[k]},
    )


def summary(part: Part, report: KeyReport, description: Any) -> list[str]:
    """What a reader wants to know about one network."""
    variant = f", attention variant {part.naming.title}" if part.kind == TRANSFORMER else ""
    count = sum(value.numel() for value in part.weights.values())
    read = description.model_dump(exclude=set(NOT_READ[part.kind]))
    taken = description.model_dump(include=set(NOT_READ[part.kind]))
    return [
        f"{part.kind}{variant}, {count / 1e6:.2f} M values",
        f"  keys: {len(report.matched)} matched, {len(report.renamed)} renamed, "
        f"{len(report.missing)} missing, {len(report.unexpected)} unexpected, "
        f"{len(report.shapes)} of another shape",
        *(f"  renamed: {text}" for text in _patterns(report.renamed)),
        f"  read off the shapes: {_as_text(read)}",
        f"  not told by the file: {_as_text(taken)}",
    ]


def _patterns(renamed: dict[str, str]) -> list[str]:
    """Renamed keys with the block's number written as i, each pattern once."""
    patterns: dict[str, int] = {}
    for new, old in renamed.items():
        text = re.sub(r"\bblocks\.\d+\.", "blocks.i.", f"{old} -> {new}")
        patterns[text] = patterns.get(text, 0) + 1
    return [f"{text} ({count} times)" for text, count in patterns.items()]


def _as_text(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
