"""The number of heads that a lab file states among its settings, as no tensor's shape does."""

from __future__ import annotations

import re
from collections.abc import Iterator

from config.errors import UserError
from config.schema import TransformerConfig
from utils.weights.lab_naming import Naming, Settled

HEADS = re.compile(r"(?:num_|n_?)(?:attn_|attention_)?heads?|heads")
ASSUMED = TransformerConfig().num_heads  # the lab's, which nobody had to choose
MAX_DEPTH = 5  # of nested settings


def ask_heads(content: object, naming: Naming, name: str, settled: Settled) -> list[str]:
    """Notes on numbers of heads that a file states, unless one is the number used.

    Raises `UserError` if the number used is only assumed. --attention answers.
    """
    heads = naming.heads or settled.heads
    stated = dict(_stated(content, "", 0))
    if not heads or not stated or heads in stated.values():
        return []
    shown = ", ".join(f"{key} {number}" for key, number in stated.items())
    if heads != ASSUMED or naming.heads or settled.layout is not None:
        return [f"the file says {shown}; taken are {heads} heads"]
    raise UserError(
        f"{name}: the file says {shown}, but transformer.num_heads is {heads}; say --set "
        f"transformer.num_heads={next(iter(stated.values()))} or, if these are not its heads, "
        "--attention standard of utils.weights.import_lab"
    )


def _stated(content: object, path: str, depth: int) -> Iterator[tuple[str, int]]:
    """Key and value of every number of heads in dictionaries and attributes of objects."""
    settings = getattr(content, "attributes", content)
    if not isinstance(settings, dict) or depth > MAX_DEPTH:
        return
    for key, value in settings.items():
        if isinstance(key, str) and HEADS.fullmatch(key) and type(value) is int and value > 0:
            yield f"{path}{key}", value
        yield from _stated(value, f"{path}{key}.", depth + 1)
