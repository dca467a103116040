"""What every script does at its edges: parse arguments, turn a user's mistake into one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from config.errors import UserError

USER_MISTAKE = 2  # exit code
INTERRUPTED = 130  # what shells report after Ctrl-C


class ArgumentParser(argparse.ArgumentParser):
    """argparse that answers a wrong argument with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_MISTAKE, f"{self.prog}: error: {message} (see --help)\n")


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's main function; show a `UserError` as one line and leave with code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_MISTAKE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(0)
