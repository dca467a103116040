"""Variables of libraries, left by other programs, that would end an import or refuse good files."""

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
BAR_SETTINGS = {  # what a user may set of all progress bars, and how tqdm reads it on import
    **dict.fromkeys(("DISABLE", "LEAVE", "DYNAMIC_NCOLS", "COLOUR"), str),
    **dict.fromkeys(("MININTERVAL", "MAXINTERVAL", "MINITERS", "DELAY", "SMOOTHING"), float),
    **dict.fromkeys(("NCOLS", "NROWS"), int),
}
ALLOCATORS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
OPTION = r"\s*\w+\s*:\s*(\[[^\]]*\]|[^\s,:=\[\]'\"]+)\s*"
READERS = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")


def leave_out_unreadable() -> None:
    """Forget variables that end tqdm or PyTorch on import, or bars and readers of ours later.

    The readers say by themselves what they read; where both variables are set, PyTorch reads none.
    """
    for name in READERS:
        os.environ.pop(name, None)
    for name in list(os.environ):
        if name.startswith(TQDM):
            _try(name, BAR_SETTINGS.get(name.removeprefix(TQDM), _none), BAR)
        elif name in ALLOCATORS:
            _try(name, _options, ALLOCATOR)


def _try(name: str, read: Callable[[str], Any], reason: str) -> None:
    """Forget a variable that cannot be read, with a note."""
    try:
        read(os.environ[name])
    except ValueError:
        text = f"note: {name}={os.environ.pop(name)!a} is ignored; {reason}\n"
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or full
            sys.stderr.write(text)


def _none(_text: str) -> None:
    raise ValueError


def _options(text: str) -> None:
    """PyTorch ends the process, with a trace of C++, where its options have another form."""
    if text.strip() and not re.fullmatch(f"{OPTION}(,{OPTION})*,?", text):
        raise ValueError
