"""Score images against their ground truth: FID and more, from the command line.

    python faster-pytorch-fid/fid_score_gpu.py --predicted-path test_results --device cuda:0

Exit codes: 0 scored or verified, 1 a certificate does not agree, 2 a mistake in the call or files.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).parent))  # which python -P leaves out

from fid import MAX_BOOTSTRAP_SAMPLES, METRICS, Settings, Size
from fid.certificate import build_certificate, differences, read_certificate, write_certificate
from fid.extraction import default_workers
from fid.features import BACKENDS
from fid.files import ScoreError, check_place, of_the_machine
from fid.images import FILTERS
from fid.process import READER_GONE, Ranks, handled, usable_streams
from fid.scoring import Outcome, notes, save_predicted_statistics, score, table

DISAGREES, MISTAKE, INTERRUPTED = 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """argparse that answers a wrong argument with one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"error: {message} (see --help)\n")


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A reader of whole numbers from low to high."""

    def read(text: str) -> int:
        if not text.isdigit() or int(text) < low or int(text) > (high or int(text)):
            limits = f"from {low}" + (f" to {high:,}" if high else "")
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {limits}")
        return int(text)

    return read


def metric_names(text: str) -> tuple[str, ...]:
    """A comma-separated choice of metrics, or all; the distance itself always comes along."""
    names = METRICS if text == "all" else tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in METRICS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of all, {', '.join(METRICS)}")
    return names


def size(text: str) -> Size:
    """Width and height, and the filter if it is not bicubic: 64x64 or 64x64:lanczos."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})(?::(\w+))?", text)
    if not found or (found[3] or "bicubic") not in FILTERS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no WIDTHxHEIGHT or WIDTHxHEIGHT:FILTER with one of {', '.join(FILTERS)}"
        )
    return Size(int(found[1]), int(found[2]), found[3] or "bicubic")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_images(parser.add_argument_group("images"))
    _add_scores(parser.add_argument_group("scores"))
    _add_results(parser.add_argument_group("results"))
    return parser


def _add_images(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("paths", nargs="*", metavar="PATH", help="predicted and ground truth, as in pytorch-fid")
    add("--predicted-path", help="folder, .zip or .csv of images, or .npz of statistics")
    truth = "the same for the ground truth; default: the predicted folder's manifest, test_gt.csv"
    add("--gt-path", "--gtcsv-path", help=truth)
    add("--mask-path", help="hole masks (255 known, 0 hole); default: the manifest's")
    add("--train-path", help="images that the network learned from: how near repairs are to them")
    add("--recursive", action="store_true", help="read the folders' sub-folders too")
    add("--resize", type=size, metavar="WxH", help="bring all images to one size (bicubic): 64x64")


def _add_scores(group: argparse._ArgumentGroup) -> None:
    add, of_metrics = group.add_argument, ",".join(METRICS) + ", or all (default fid)"
    add("--features", choices=BACKENDS, default="inception", help="feature network")
    add("--dims", type=int, help="feature size; inception: 64, 192, 768 or 2048 (default)")
    add("--weights", metavar="FILE", help="FID weight file; default: cached or downloaded")
    add("--weights-dir", type=Path, help="where that file is kept; default: torch hub's folder")
    add("--metrics", type=metric_names, default=("fid",), help=of_metrics)
    redraws, seeds = whole(1, MAX_BOOTSTRAP_SAMPLES), whole(0, 2**32 - 1)
    add("--bootstrap-samples", type=redraws, default=100, help="of the interval (default 100)")
    add("--legacy", action="store_true", help="pytorch-fid's matrix root with eps 1e-6")
    add("--seed", type=seeds, default=2020, help="of KID subsets and bootstrap (default 2020)")
    add("--device", default="auto", help="auto, cpu or cuda:N (default auto)")
    add("--batch-size", type=whole(1), default=16, help="images at once on a GPU (default 16)")
    readers, text = default_workers(), "threads that read for a GPU; a CPU's read their own"
    add("--num-workers", dest="workers", type=whole(0), default=readers, help=text)


def _add_results(group: argparse._ArgumentGroup) -> None:
    add, written = group.add_argument, group.add_mutually_exclusive_group()
    written.add_argument(
        "--save-stats",
        metavar="FILE",
        nargs="?",
        const=Path(),
        type=Path,
        help="only write the .npz of --predicted-path's statistics (pytorch-fid reads it)",
    )
    written.add_argument("--json", metavar="FILE", type=Path, help="write a certificate")
    written.add_argument("--verify", metavar="FILE", type=Path, help="recompute a certificate")
    add("--keep-features", action="store_true", help="with --save-stats: for KID and the others")
    add("--cache-dir", type=Path, help="where reference statistics are kept")
    add("--no-cache", action="store_true", help="neither read nor write reference statistics")


def default_cache_dir() -> Path | None:
    """The user's cache folder (XDG_CACHE_HOME moves it); None for a user without a home."""
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        print("note: reference statistics are not cached: no home folder", file=sys.stderr)
        return None
    return Path(home) / "faster-pytorch-fid"


def sort_paths(args: argparse.Namespace) -> None:
    """Give the paths without a flag their meaning, as pytorch-fid's two folders have it.

    After --save-stats the first is what to read, the second the file to write.
    """
    given = list(args.paths)
    save = args.save_stats
    if save not in (None, Path()) and args.predicted_path is None and len(given) == 1:
        given.insert(0, str(save))  # --save-stats FOLDER FILE
        args.save_stats = Path()
    names = ["predicted_path", "gt_path" if args.save_stats is None else "save_stats"]
    free = [name for name in names if getattr(args, name) in (None, Path())]
    if len(given) > len(free):
        raise ScoreError(f"{given[len(free)]}: one path too many, expected at most {len(free)}")
    for name, path in zip(free, given, strict=False):
        setattr(args, name, Path(path) if name == "save_stats" else path)
    if args.save_stats == Path():
        if args.predicted_path is None:
            raise ScoreError("--save-stats: name the folder to read and the .npz to write")
        args.save_stats = Path(f"{args.predicted_path.rstrip('/')}.npz")


def settings_from(args: argparse.Namespace) -> Settings:
    """Arguments as settings."""
    if args.predicted_path is None:
        raise ScoreError("--predicted-path is missing")
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)}
    given["resize"] = Size(*args.resize) if args.resize else None
    given["cache_dir"] = None if args.no_cache else args.cache_dir or default_cache_dir()
    return Settings(**given)


def report(outcome: Outcome) -> None:
    """Print the scores, then on stderr what a reader must know about them."""
    print(*table(outcome), sep="\n")
    for note in notes(outcome):
        print(f"note: {note}", file=sys.stderr)


def verify(args: argparse.Namespace, ranks: Ranks) -> int:
    """Recompute what a certificate states, from scratch; print every difference.

    Paths, --device and --weights given on the command line replace the certificate's.
    """
    stated = read_certificate(args.verify)
    given = {
        name: getattr(args, name)
        for name in ("predicted_path", "gt_path", "mask_path", "train_path", "weights")
        if getattr(args, name) is not None
    }
    for name, value in (stated["settings"] | given).items():
        setattr(args, name, tuple(value) if isinstance(value, list) else value)
    settings = dataclasses.replace(settings_from(args), cache_dir=None)
    outcome = score(settings, ranks)
    if ranks.rank > 0:
        return 0
    lines = differences(stated, build_certificate(settings, outcome, args.verify.parent))
    report(outcome)
    for line in lines:
        print(f"differs: {line}")
    print(f"{args.verify}: " + (f"{len(lines)} differences" if lines else "verified"))
    return DISAGREES if lines else 0


def main(args: argparse.Namespace, ranks: Ranks) -> int:
    """Do what the arguments ask; the exit code."""
    if args.verify:
        return verify(args, ranks)
    sort_paths(args)
    settings = settings_from(args)
    if place := args.json or args.save_stats:
        ranks.on_first(lambda: check_place(place))
    if args.save_stats:
        save_predicted_statistics(settings, ranks, args.save_stats, args.keep_features)
        if ranks.rank == 0:
            print(f"wrote {args.save_stats}, statistics of {args.predicted_path}")
        return 0
    outcome = score(settings, ranks)
    if ranks.rank == 0:
        report(outcome)  # first, so that a full disk does not cost the score
        if args.json:
            write_certificate(args.json, build_certificate(settings, outcome, args.json.parent))
    return 0


def run(arguments: list[str] | None = None) -> int:
    """Parse, work, and turn a mistake into one line and code 2."""
    with usable_streams():
        args, ranks = build_parser().parse_args(arguments), Ranks()
        try:
            with handled(signal.default_int_handler):  # clears up as Ctrl-C does
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
            print(f"error: {line}", file=sys.stderr)
            return MISTAKE
        finally:
            ranks.stop()


if __name__ == "__main__":
    sys.exit(run())
