"""What must happen before the libraries are imported, which takes seconds and may fail.

Importing this module, which comes first and imports almost nothing, installs hooks that end a
script in one line on Ctrl-C and failed imports.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

MISTAKE, INTERRUPTED = 2, 130  # exit codes
IMPORTING = "<frozen importlib"  # file name prefix of Python's import machinery
INSTALLED = ("site-packages", "dist-packages")  # folders of installed libraries
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


def end_in_one_line(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A `sys.excepthook` that reports Ctrl-C and failed imports in one line, exit code 2.

    Our own bugs keep their traceback, as does everything in an interactive session.
    """
    if hasattr(sys, "ps1"):
        sys.__excepthook__(kind, error, trace)
    elif kind is KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # Python then exits through the signal
    elif line := failed_import(error):
        print(f"error: {line}", file=sys.stderr, flush=True)
        os._exit(MISTAKE)
    else:
        sys.__excepthook__(kind, error, trace)


def interrupt(_number: int, frame: FrameType | None) -> None:
    """What Python does on Ctrl-C, except in the middle of an import."""
    end_import(frame, "interrupted")
    raise KeyboardInterrupt


def end_import(frame: FrameType | None, line: str) -> None:
    """End the process with a line if the frame belongs to an import in progress.

    There Python may drop an exception, and C++ that cannot pass it on aborts.
    """
    while frame and not frame.f_code.co_filename.startswith(IMPORTING):
        frame = frame.f_back
    if frame and not hasattr(sys, "ps1"):
        print(line, file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)


def failed_import(error: BaseException) -> str | None:
    """Which library could not be imported and why, on one line; None for any other error.

    It may be missing, broken, out of memory, or misconfigured by an environment variable.
    """
    trace = error.__traceback__
    while trace:
        frame, trace = trace.tb_frame, trace.tb_next
        is_import = frame.f_code.co_name == "<module>"
        if is_import and any(folder in frame.f_code.co_filename for folder in INSTALLED):
            library = frame.f_globals["__name__"].partition(".")[0]
            reason = next(filter(None, map(str.strip, str(error).splitlines())), repr(error))
            return f"{library} cannot be imported: {reason}"
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
        return f"{error.name} is not installed for {sys.executable}; activate its environment"
    return None


def _install() -> None:
    """Install both hooks; Ctrl-C that is ignored or handled otherwise stays so."""
    sys.excepthook = end_in_one_line
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, interrupt)


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


_install()
