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
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parent))  # which python -P leaves out

from fid.certificate import build_certificate, differences, read_certificate, write_certificate
from fid.crops import FILTERS, Size
from fid.extraction import Ranks, default_workers
from fid.features import BACKENDS, default_weights_dir
from fid.files import ScoreError, check_place, of_the_machine
from fid.inputs import MAX_BOOTSTRAP_SAMPLES, METRICS, Settings
from fid.scoring import Outcome, notes, save_predicted_statistics, score
from fid.streams import READER_GONE, handled, usable_streams

DISAGREES, MISTAKE, INTERRUPTED = 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """argparse that answers a wrong argument with one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"error: {message} (see --help)\n")


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def redraws(text: str) -> int:
    """A number of bootstrap samples that ends within a day."""
    if positive(text) > MAX_BOOTSTRAP_SAMPLES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is too large, allowed are 1 to {MAX_BOOTSTRAP_SAMPLES}"
        )
    return int(text)


def natural(text: str) -> int:
    """A whole number from 0 to 2^32 - 1, what random generators take as a seed."""
    if not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^32 - 1")
    return int(text)


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
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", help="predicted and ground truth, as in pytorch-fid")
    add("--predicted-path", help="folder, .zip or .csv of images, or .npz of statistics")
    add(
        *("--gt-path", "--gtcsv-path"),
        help="the same for the ground truth; default: the predicted folder's manifest, test_gt.csv",
    )
    add("--recursive", action="store_true", help="read the folders' sub-folders too")
    add("--train-path", help="images that the network learned from: how near repairs are to them")
    add("--resize", type=size, metavar="WxH", help="bring all images to one size (bicubic): 64x64")
    add("--mask-path", help="hole masks (255 known, 0 hole); default: the manifest's")
    add("--device", default="auto", help="auto, cpu or cuda:N (default auto)")
    add("--batch-size", type=positive, default=16, help="images at once (default 16)")
    add("--num-workers", type=natural, default=default_workers(), help="loading processes, 0: none")
    add("--features", choices=BACKENDS, default="inception", help="feature network")
    add("--dims", type=int, help="feature size; inception: 64, 192, 768 or 2048 (default)")
    add("--weights", metavar="FILE", help="FID weight file; default: cached or downloaded")
    add("--weights-dir", type=Path, help="where that file is kept; default: torch hub's folder")
    add(
        "--metrics",
        type=metric_names,
        default=("fid",),
        help=",".join(METRICS) + ", or all (default fid)",
    )
    add("--bootstrap-samples", type=redraws, default=100, help="of the interval (default 100)")
    add("--legacy", action="store_true", help="pytorch-fid's matrix root with eps 1e-6")
    add("--seed", type=natural, default=2020, help="of KID subsets and bootstrap (default 2020)")
    add("--cache-dir", type=Path, help="where reference statistics are kept")
    add("--no-cache", action="store_true", help="neither read nor write reference statistics")
    add("--keep-features", action="store_true", help="with --save-stats: for KID and the others")
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--save-stats",
        metavar="FILE",
        nargs="?",
        const=Path(),
        type=Path,
        help="only write the .npz of --predicted-path's statistics (pytorch-fid reads it)",
    )
    action.add_argument("--json", metavar="FILE", type=Path, help="write a certificate")
    action.add_argument("--verify", metavar="FILE", type=Path, help="recompute a certificate")
    return parser


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
    return Settings(
        predicted_path=args.predicted_path,
        gt_path=args.gt_path,
        mask_path=args.mask_path,
        features=args.features,
        dims=args.dims,
        weights=args.weights,
        weights_dir=args.weights_dir or default_weights_dir(),
        device=args.device,
        batch_size=args.batch_size,
        workers=args.num_workers,
        metrics=args.metrics,
        bootstrap_samples=args.bootstrap_samples,
        legacy=args.legacy,
        seed=args.seed,
        recursive=args.recursive,
        train_path=args.train_path,
        resize=Size(*args.resize) if args.resize else None,
        cache_dir=None if args.no_cache else args.cache_dir or default_cache_dir(),
    )


def report(outcome: Outcome) -> None:
    """Print the scores, then on stderr what a reader must know about them."""
    key = outcome.backend.distance_key
    for name, value in outcome.scores.items():
        shown = outcome.distance_name if name == key else name
        print(f"{shown}: {value:.4f}" if name == key else f"{shown}: {value:.6g}")
    for note in notes(outcome):
        print(f"note: {note}", file=sys.stderr)


def verify(args: argparse.Namespace, ranks: Ranks) -> int:
    """Recompute what a certificate states, from scratch; print every difference.

    Paths, --device and --weights given on the command line replace the certificate's.
    """
    stated = read_certificate(args.verify)
    given: dict[str, Any] = {
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
