"""What every script does at its edges: parse arguments, turn a user's mistake into one line."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from fid import (
    INTERRUPTED,
    MISTAKE,
    READER_GONE,
    empty_argument,
    end_import,
    process,
    usable_streams,
)
from fid import whole as whole  # for the scripts

from config.errors import StopRequested, UserError, printable
from config.loading import Override
from config.section import schedule_name as schedule_name  # for the scripts
from config.section import user_path
from utils.io.files import of_project
from utils.io.messages import line_about

Options = dict[str, tuple[str, type, str]]  # flag: config key, type, help

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's numbers of the two settings (mallopt(3))
LARGEST_KEPT, KEPT = 32 * 2**20, 2**30  # bytes: glibc's limit for the first, and of the second
ASKED = "interrupted"
DEFAULT_CONFIG = "config/MaskGit.yml"
LAB_FLAGS = {  # flag: what the lab's scripts call it (docs/from-the-lab.md)
    "--config": ("--MaskGitConfig",),
    "--images": ("--test-maskedimage-path",),
    "--masks": ("--test-mask-path",),
    "--ground-truth": ("--gtcsv-path",),
    "--output": ("--output-path", "--predicted-path", "--out_d_path", "--save_root"),
    "--mask-func": ("--gamma-type",),
    "--transformer": ("--load-transformer-ckpt-path", "--checkpoint-path"),
    "--train": ("--train_d_path",),
    "--val": ("--val_d_path",),
    "--run": ("--checkpoint-path", "--output-path", "--out_d_path", "--save_root"),
    "--accumulate": ("--accum-grad",),
    "--checkpoint-every": ("--save-per-epoch", "--ckpt-interval"),
    "--learning-rate": ("--lr",),
}
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt")
IGNORED_FLAGS = {  # of the lab's scripts: why it does nothing here
    "--num_workers": "tokens are computed once, no process loads images",
    "--partial": "name a smaller folder instead",
    "--save-every-step": "see training.checkpoint_every, in epochs",
    "--warmup-epochs": "see training.warmup_steps",
}


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one-line errors instead of the whole usage.

    Arguments of type `Path` may begin with ~, the user's home folder.
    """

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        self.register("type", Path, user_path)  # a subcommand's parser comes here as well
        words = sys.argv[1:] if args is None else args
        if reason := empty_argument(words):
            self.error(reason)
        return super().parse_known_args([self._as_registered(word) for word in words], namespace)

    def _as_registered(self, word: str) -> str:
        """The registered spelling of a flag, whose hyphens may be underscores or vice versa."""
        flag, equals, value = word.partition("=")
        known = {name.replace("_", "-"): name for name in self._option_string_actions}
        is_flag = flag.startswith("--") and flag not in self._option_string_actions
        return known.get(flag.replace("_", "-"), flag) + equals + value if is_flag else word

    def add_flag(self, flag: str, **settings: Any) -> None:
        """Add a flag, with those of the lab's names for it that no flag before has taken."""
        theirs = set(LAB_FLAGS.get(flag, ())).difference(self._option_string_actions)
        self.add_argument(flag, *sorted(theirs), **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"{self.prog}: error: {printable(message)} (see --help)\n")


def first_line(documentation: str | None) -> str | None:
    """The first line of a module's docstring, which `python -OO` leaves out."""
    return documentation and documentation.splitlines()[0]


def steps_or_all(text: str) -> int | None:
    """The value of --sweet-spot: a number of steps, or the lab's -1 for all."""
    try:
        return None if int(text) == -1 else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None


def run_folder(text: str) -> str:
    """The value of --run: a folder, or, as in the lab, a checkpoint in it."""
    path = user_path(text)
    is_file = path.suffix in CHECKPOINT_SUFFIXES and not path.is_dir()
    return str(path.parent if is_file else path)


def weights_or_run(text: str) -> str:
    """The value of --transformer: a weights file, or, as in the lab, a checkpoint of a run."""
    trained = Path(run_folder(text), "transformer", "transformer.safetensors")
    return str(trained if trained.is_file() and not user_path(text).is_file() else text)


class _Ignored(argparse.Action):
    """Says why a flag of the lab's scripts does nothing here."""

    def __call__(self, _parser: Any, _namespace: Any, _value: Any, flag: str | None = None) -> None:
        print(f"note: {flag} is ignored: {IGNORED_FLAGS[self.option_strings[0]]}", file=sys.stderr)


def add_ignored_flags(parser: ArgumentParser) -> None:
    """Accept the flags of the lab's scripts that have no use here."""
    for flag in IGNORED_FLAGS:
        parser.add_argument(
            flag, action=_Ignored, nargs="?", dest=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


def add_config_arguments(parser: ArgumentParser, options: Options) -> None:
    """Add the arguments of every script's config: a file, keys, and short flags."""
    text = f"YAML file (default {DEFAULT_CONFIG})"
    parser.add_flag("--config", type=Path, default=of_project(DEFAULT_CONFIG), help=text)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one key, e.g. training.learning_rate=1e-4; may be repeated",
    )
    for flag, (key, kind, text) in options.items():
        parser.add_flag(flag, type=kind, default=argparse.SUPPRESS, help=f"{text} ({key})")


def add_start_arguments(parser: ArgumentParser) -> None:
    """Add the arguments for existing runs: resume, restart, changed settings."""
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume",
        nargs="?",
        choices=("auto",),
        const=True,
        default=False,
        help="continue from the last checkpoint; auto: or start (for requeued jobs)",
    )
    start.add_argument("--restart", action="store_true", help="start over and replace the run")
    parser.add_argument(
        "--allow-config-change",
        action="store_true",
        help="continue although settings differ from the checkpoint's",
    )


def as_overrides(args: argparse.Namespace, options: Options) -> list[Override]:
    """The --set overrides, then the flags that were given with the keys that they stand for."""
    given = vars(args)
    names_of = {flag: flag.lstrip("-").replace("-", "_") for flag in options}
    return args.set + [
        (key, given[names_of[flag]], flag)
        for flag, (key, _, _) in options.items()
        if names_of[flag] in given
    ]


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turn termination signals into `StopRequested`, so that unfinished files are cleaned up.

    Those that come several times by themselves, as SIGXCPU every second, do not disturb that.
    """

    def end(number: int, frame: FrameType | None) -> None:
        process.ignore_repeats()
        is_ctrl_c = number == signal.SIGINT
        line = ASKED if is_ctrl_c else f"ended by {signal.Signals(number).name}"
        end_import(frame, line)
        raise KeyboardInterrupt if is_ctrl_c else StopRequested(line)

    with process.handled(end):
        yield


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next tensor; False where it is not glibc.

    By default it returns large blocks to the kernel, which hands them out again page by page: a
    fifth of a forward pass at the lab's size.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGEST_KEPT) and mallopt(TRIM_THRESHOLD, KEPT))


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's main function; show a `UserError` as one line and leave with code 2."""
    os.environ["MPLBACKEND"] = "agg"  # curves go into files; an unknown one would end its import
    keep_freed_memory()
    with usable_streams():
        code, line = _outcome(main)
        if line:
            print(line, file=sys.stderr)
    sys.exit(code)


def _outcome(main: Callable[[], None]) -> tuple[int, str]:
    """The exit code of a main function, and the line to end with; internal errors are raised."""
    try:
        with ended_by_signals():
            main()
            sys.stdout.flush()
    except UserError as error:
        return MISTAKE, f"error: {error}"
    except StopRequested as stopped:
        return INTERRUPTED, str(stopped)
    except KeyboardInterrupt:
        return INTERRUPTED, ASKED
    except BrokenPipeError:
        return READER_GONE, ""
    except (MemoryError, RuntimeError, OSError, UnicodeEncodeError) as error:
        if (line := line_about(error)) is None:
            raise
        return MISTAKE, f"error: {UserError(line)}"
    return 0, ""
