"""What a script meets before its libraries are imported, and libraries that cannot be.

The suite has the same start, since it imports this package first (utils/__init__.py).
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from types import FrameType, TracebackType

MISTAKE = 2  # exit code
TQDM = "TQDM_"
BAR_SETTINGS = {  # what a user may set of all progress bars, and how tqdm reads it on import
    **dict.fromkeys(("DISABLE", "LEAVE", "DYNAMIC_NCOLS", "COLOUR"), str),
    **dict.fromkeys(("MININTERVAL", "MAXINTERVAL", "MINITERS", "DELAY", "SMOOTHING"), float),
    **dict.fromkeys(("NCOLS", "NROWS"), int),
}
IMPORTING = "<frozen importlib"  # how the files of Python's own import are called
INSTALLED = ("site-packages", "dist-packages")  # folders of libraries


def leave_out_unreadable() -> None:
    """Forget variables of progress bars that end tqdm on import, or bars of ours later."""
    for name in [name for name in os.environ if name.startswith(TQDM)]:
        try:
            BAR_SETTINGS[name.removeprefix(TQDM)](os.environ[name])
        except (KeyError, ValueError):
            text = f"note: {name}={os.environ.pop(name)!a} is ignored; no bar can have it\n"
            with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or full
                sys.stderr.write(text)


def failed_import(error: BaseException) -> str | None:
    """Which library could not be imported and why, in a line; None for any other error.

    It may be missing or broken, find too little memory, or dislike a variable of its own.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        is_import = frame.f_code.co_name == "<module>"
        if is_import and any(folder in frame.f_code.co_filename for folder in INSTALLED):
            library = frame.f_globals["__name__"].partition(".")[0]
            reason = next(filter(None, map(str.strip, str(error).splitlines())), repr(error))
            return f"{library} cannot be imported: {reason}"
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
        return f"{error.name} is not installed for {sys.executable}; activate its environment"
    return None


def is_importing(frame: FrameType | None) -> bool:
    """Whether a frame belongs to an import that has not ended."""
    while frame and not frame.f_code.co_filename.startswith(IMPORTING):
        frame = frame.f_back
    return frame is not None


def in_one_line() -> None:
    """Let Ctrl-C and libraries that cannot be imported end a program with one line, code 2.

    Errors of ours keep their traceback, and so does everything in an interactive session.
    """
    sys.excepthook = _say


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Stands in for Python's own `sys.excepthook`."""
    if hasattr(sys, "ps1"):
        sys.__excepthook__(kind, error, trace)
    elif kind is KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # then Python ends by the signal itself
    elif line := failed_import(error):
        print(f"error: {line}", file=sys.stderr, flush=True)
        os._exit(MISTAKE)
    else:
        sys.__excepthook__(kind, error, trace)
