"""Score images against their ground truth: FID and more, from the command line.

    python faster-pytorch-fid/fid_score_gpu.py --predicted-path test_results --device cuda:0

Exit codes: 0 scored or verified, 1 a certificate disagrees, 2 a usage or file error.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # python -P leaves it out

import fid  # first: Ctrl-C and failed imports end in one line

# isort: split
import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from fid import INTERRUPTED, MISTAKE, READER_GONE
from fid.files import ScoreError, check_place, note, of_the_machine, user_path
from fid.inputs import MAX_BOOTSTRAP_SAMPLES, METRICS, PATHS, Settings
from fid.names import MANIFEST
from fid.pixels import Size
from fid.process import Ranks, handled, leave

DISAGREES = 1
SCORES = ("gt_path", "mask_path", "train_path", "metrics", "bootstrap_samples", "legacy", "seed")


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors and paths resolved by `user_path`."""

    def parse_args(self, arguments: list[str] | None = None) -> argparse.Namespace:
        self.register("type", Path, lambda text: Path(user_path(text)))
        words = sys.argv[1:] if arguments is None else arguments
        if reason := fid.empty_argument(words):
            self.error(reason)
        return super().parse_args(words)

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"error: {ScoreError(message)} (see --help)\n")


def metric_names(text: str) -> tuple[str, ...]:
    """A comma-separated list of metrics, or all; the distance itself is always computed."""
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in ("all", *METRICS):
            raise argparse.ArgumentTypeError(f"{name!r} is none of all, {', '.join(METRICS)}")
    return METRICS if "all" in names else names


def build_parser() -> argparse.ArgumentParser:
    """The command line. Settings that are not given are None; `Settings` has their defaults."""
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("images").add_argument
    add("paths", nargs="*", type=user_path, metavar="PATH", help="predicted, then ground truth")
    text = "folder, .zip or .csv of images, or .npz of statistics"
    add("--predicted-path", type=user_path, help=text)
    truth = "the same for the ground truth; default: the predicted folder's manifest, test_gt.csv"
    add("--gt-path", "--gtcsv-path", type=user_path, help=truth)
    text = "hole masks (255 known, 0 hole, unless the manifest says inverted); default: its own"
    add("--mask-path", type=user_path, help=text)
    text = "training images of the network: how close repairs are to them"
    add("--train-path", type=user_path, help=text)
    add("--recursive", action="store_true", default=None, help="read the folders' sub-folders too")
    add("--resize", type=Size.read, metavar="WxH", help="one size for all images (bicubic): 64x64")
    _add_scores(parser.add_argument_group("scores").add_argument)
    _add_results(parser.add_argument_group("results"))
    return parser


def _add_scores(add: Callable[..., argparse.Action]) -> None:
    text = "feature network: inception (default), efficientnet-lite0 or another of README.md"
    add("--features", metavar="NAME", help=text)
    add("--dims", type=int, help="feature size; inception: 64, 192, 768 or 2048 (default)")
    text = "FID weight file; default: cached or downloaded"
    add("--weights", metavar="FILE", type=user_path, help=text)
    add("--weights-dir", type=Path, help="where that file is kept; default: torch hub's folder")
    names = ",".join(METRICS) + ", or all (default fid)"
    add("--metrics", type=metric_names, help=names)
    redraws, seeds = fid.whole(1, MAX_BOOTSTRAP_SAMPLES), fid.whole(0, 2**32 - 1)
    add("--bootstrap-samples", type=redraws, help="of the interval (default 100)")
    text = "pytorch-fid's matrix root with eps 1e-6"
    add("--legacy", action="store_true", default=None, help=text)
    add("--seed", type=seeds, help="of KID subsets and bootstrap (default 2020)")
    add("--device", default="auto", help="auto, cpu or cuda:N (default auto)")
    add("--batch-size", type=fid.whole(1), help="images at once on a GPU (default 16)")
    readers = "threads that read for a GPU; a CPU's read their own"
    add("--num-workers", dest="workers", type=fid.whole(0), default=4, help=readers)


def _add_results(group: argparse._ArgumentGroup) -> None:
    add, alone = group.add_argument, group.add_mutually_exclusive_group().add_argument
    saved = "only write the .npz of --predicted-path's statistics (pytorch-fid reads it)"
    alone("--save-stats", metavar="FILE", nargs="?", const=False, type=Path, help=saved)
    alone("--json", metavar="FILE", type=Path, help="write a certificate")
    alone("--verify", metavar="FILE", type=Path, help="recompute a certificate")
    add("--keep-features", action="store_true", help="with --save-stats: for KID and the others")
    add("--cache-dir", type=Path, help="where reference statistics are kept")
    add("--no-cache", action="store_true", help="neither read nor write reference statistics")


def refuse_unread(args: argparse.Namespace) -> None:
    """Raise `ScoreError` for a flag that would be ignored."""
    unread, how = ("keep_features",), "needs --save-stats"
    if args.save_stats is not None:
        unread, how = SCORES, "--save-stats reads the predicted images alone and scores nothing"
    for name in unread:
        if not any(getattr(args, name) is absent for absent in (None, False)):  # 0 is a seed
            raise ScoreError(f"--{name.replace('_', '-')}: {how}")


def sort_paths(args: argparse.Namespace) -> None:
    """Assign positional paths like pytorch-fid: predicted images, then ground truth.

    With --save-stats: the images to read, and the .npz to write, which may come first.
    """
    if args.save_stats is not None and not (args.predicted_path or args.paths):
        raise ScoreError("--save-stats: name the folder to read and the .npz to write")
    given = ([str(args.save_stats)] if args.save_stats else []) + args.paths  # False: flag alone
    words = iter(given if args.save_stats is None else sorted(given, key=_is_npz))
    args.predicted_path = args.predicted_path or next(words, None)
    if args.predicted_path is None:
        raise ScoreError("--predicted-path is missing")
    if args.save_stats is None:
        args.gt_path = args.gt_path or next(words, None)
    else:
        folder = args.predicted_path.rstrip("/")
        if os.path.basename(folder) in ("", ".", ".."):  # next to the folder that it stands for
            folder = os.path.abspath(args.predicted_path)
        args.save_stats = Path(next(words, f"{folder}.npz"))
        if not _is_npz(args.save_stats):  # perhaps images, which it would replace
            raise ScoreError(f"{args.save_stats}: --save-stats writes a file that ends in .npz")
    if (extra := next(words, None)) is not None:
        raise ScoreError(f"{extra}: one path too many, expected at most 2")


def _is_npz(path: Path | str) -> bool:
    return Path(path).suffix.lower() == ".npz"


def default_cache_dir() -> Path | None:
    """The user's cache folder (XDG_CACHE_HOME moves it); None for a user without a home."""
    try:
        return Path(user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "faster-pytorch-fid")
    except ScoreError:
        note("reference statistics are not cached: no home folder")
        return None


def settings_from(args: argparse.Namespace) -> Settings:
    """Arguments as settings."""
    args.cache_dir = None if args.no_cache else args.cache_dir or default_cache_dir()
    found = {f.name: getattr(args, f.name) for f in dataclasses.fields(Settings)}
    return Settings(**{name: value for name, value in found.items() if value is not None})


def main(args: argparse.Namespace, ranks: Ranks) -> int:
    """Do what the arguments ask; the exit code."""
    refuse_unread(args)
    if not args.verify:
        sort_paths(args)
    from fid import certificate, scoring  # imported here: PyTorch takes seconds

    if args.verify:
        stated = certificate.read(args.verify)
        take_stated(args, stated["settings"])
    settings = settings_from(args)
    if place := args.json or args.save_stats:
        ranks.on_first(lambda: check_place(place))
    if args.json and (args.json.suffix.lower() != ".json" or args.json.name == MANIFEST):
        raise ScoreError(f"{args.json}: --json writes a file that ends in .json, no {MANIFEST}")
    if args.save_stats:
        scoring.save_predicted_statistics(settings, ranks, args.save_stats, args.keep_features)
        if ranks.rank == 0:
            print(f"wrote {args.save_stats}, statistics of {args.predicted_path}")
        return 0
    outcome = scoring.score(settings, ranks)
    if ranks.rank > 0:
        return 0
    try:
        print(*certificate.table(outcome), sep="\n")  # first: a full disk does not cost the score
        for text in certificate.notes(outcome):
            note(text)
    finally:  # nor does a reader that is gone cost the certificate
        if args.json:
            certificate.write(args.json, certificate.build(settings, outcome, args.json.parent))
    if args.verify:
        found = certificate.build(settings, outcome, args.verify.parent)
        lines = [f"differs: {ScoreError(line)}" for line in certificate.differences(stated, found)]
        end = f"{len(lines)} differences" if lines else "verified"
        print(*lines, f"{args.verify}: {end}", sep="\n")
        return DISAGREES if lines else 0
    return 0


def take_stated(args: argparse.Namespace, stated: dict[str, Any]) -> None:
    """Use a certificate's settings, without the cache; --batch-size, paths and --weights from the
    command line override the certificate's.

    Raises `ScoreError` for another setting that differs, and for paths without a flag.
    """
    if args.paths:
        reason = "with --verify, paths are named by --predicted-path and --gt-path"
        raise ScoreError(f"{args.paths[0]}: {reason}")
    given = {name: value for name in stated if (value := getattr(args, name)) is not None}
    for name, value in given.items():
        if name not in (*PATHS, "batch_size") and value != stated[name]:
            flag = name.replace("_", "-")
            raise ScoreError(f"--{flag}: --verify uses the certificate's; leave the flag out")
    vars(args).update(stated | given, no_cache=True)


def run(arguments: list[str] | None = None) -> int:
    """Parse and run; a user's mistake becomes one line and exit code 2."""
    with fid.usable_streams():
        ranks = Ranks()
        try:
            args = build_parser().parse_args(arguments)
            with handled(leave):
                ranks = Ranks.start()
                code = main(args, ranks)
                sys.stdout.flush()
                return code
        except ScoreError as error:
            if ranks.rank == 0:
                print(f"error: {error}", file=sys.stderr)
            return MISTAKE
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:
            return READER_GONE
        except (MemoryError, RuntimeError, OSError) as error:
            if (line := of_the_machine(error)) is None:
                raise
            print(f"error: {ScoreError(line)}", file=sys.stderr)
            return MISTAKE
        finally:
            ranks.stop()


if __name__ == "__main__":
    sys.exit(run())
