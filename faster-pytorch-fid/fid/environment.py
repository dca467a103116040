"""Leftover environment variables that would make library imports or valid files fail."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

BAR = "no bar can have it"
ALLOCATOR = "allowed are OPTION:VALUE, separated by commas"
TQDM = "TQDM_"
BAR_SETTINGS = {  # settings for all progress bars, and how tqdm parses them on import
    **dict.fromkeys(("DISABLE", "LEAVE", "DYNAMIC_NCOLS", "COLOUR"), str),
    **dict.fromkeys(("MININTERVAL", "MAXINTERVAL", "MINITERS", "DELAY", "SMOOTHING"), float),
    **dict.fromkeys(("NCOLS", "NROWS"), int),
}
ALLOCATORS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
OPTION = r"\s*\w+\s*:\s*(\[[^\]]*\]|[^\s,:=\[\]'\"]+)\s*"
READERS = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")


def leave_out_unreadable() -> None:
    """Unset variables that make tqdm or PyTorch fail on import or in later use.

    `torch.load` always gets `weights_only` explicitly; with both READERS set it would fail.
    """
    for name in READERS:
        os.environ.pop(name, None)
    for name in list(os.environ):
        if name.startswith(TQDM):
            _try(name, BAR_SETTINGS.get(name.removeprefix(TQDM), _none), BAR)
        elif name in ALLOCATORS:
            _try(name, _options, ALLOCATOR)


def _try(name: str, read: Callable[[str], Any], reason: str) -> None:
    """Unset a variable that cannot be parsed, with a note."""
    try:
        read(os.environ[name])
    except ValueError:
        text = f"note: {name}={os.environ.pop(name)!a} is ignored; {reason}\n"
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or disk full
            sys.stderr.write(text)


def _none(_text: str) -> None:
    raise ValueError


def _options(text: str) -> None:
    """Raise `ValueError` for allocator options that would make PyTorch abort with a C++ trace."""
    if text.strip() and not re.fullmatch(f"{OPTION}(,{OPTION})*,?", text):
        raise ValueError
