"""What every script does at its edges: parse arguments, turn a user's mistake into one line."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable
from typing import NoReturn

from config.errors import StopRequested, UserError

Options = dict[str, tuple[str, type, str]]  # flag: config key, type, help

USER_MISTAKE = 2  # exit code
OUT_OF_REACH = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
INTERRUPTED = 130  # what shells report after Ctrl-C
DEFAULT_CONFIG = "config/MaskGit.yml"


class ArgumentParser(argparse.ArgumentParser):
    """argparse that answers a wrong argument with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_MISTAKE, f"{self.prog}: error: {message} (see --help)\n")


def add_config_arguments(parser: ArgumentParser, options: Options) -> None:
    """The arguments by which every script is told its config: a file, keys, and short flags."""
    parser.add_argument(
        "--config", default=DEFAULT_CONFIG, help=f"YAML file (default {DEFAULT_CONFIG})"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one key, e.g. training.lr=1e-4; may be repeated",
    )
    for flag, (key, kind, text) in options.items():
        parser.add_argument(flag, type=kind, help=f"{text} ({key})")


def as_overrides(args: argparse.Namespace, options: Options) -> list[str]:
    """The --set overrides, then the flags that were given, as ``section.key=value``."""
    given = {
        key: getattr(args, flag.lstrip("-").replace("-", "_"))
        for flag, (key, _, _) in options.items()
    }
    return args.set + [f"{key}={value}" for key, value in given.items() if value is not None]


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's main function; show a `UserError` as one line and leave with code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_MISTAKE)
    except OSError as error:
        if error.errno not in OUT_OF_REACH:
            raise
        print(f"error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        sys.exit(USER_MISTAKE)
    except StopRequested as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(0)
