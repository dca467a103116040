"""Compare the keys of a lab file with those of the network to be loaded."""

from __future__ import annotations

from dataclasses import dataclass

from config.schema import TokenizerConfig, TransformerConfig
from utils.weights.description import network_shapes, shapes_of
from utils.weights.lab_keys import NAMES_SHOWN, Part


@dataclass(frozen=True)
class KeyReport:
    """How every key of one network was matched."""

    matched: list[str]
    renamed: dict[str, str]
    """Name here -> name in the file."""
    missing: list[str]
    unexpected: list[str]
    shapes: dict[str, str]
    """Keys of another shape, with the found and the needed one."""

    def problems(self) -> str:
        """Why the file does not fit the network, on one line; empty if it does."""
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
        """One line per key, by group."""
        return [
            *(f"matched     {key}" for key in self.matched),
            *(f"renamed     {old} -> {new}" for new, old in self.renamed.items()),
            *(f"missing     {key}" for key in self.missing),
            *(f"unexpected  {key}" for key in self.unexpected),
            *(f"shape       {key}: {text}" for key, text in self.shapes.items()),
        ]


def key_report(part: Part, description: TokenizerConfig | TransformerConfig) -> KeyReport:
    """Compare the keys of a part with those of the network to be loaded."""
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
