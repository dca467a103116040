"""Prepare a data set in the lab's layout from the embedded photographs or from your own images.

python prepare_data.py photos --out data/photos
python prepare_data.py images cats.zip --out data/cats64 --split 12000 2253 747
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

import utils  # noqa: F401  first: makes failed imports one-line errors
from utils.cli import ArgumentParser, first_line, run, whole
from utils.data.holes import DEFAULT_SHARE, HOLE_KINDS
from utils.data.photos import Photos
from utils.data.prepare import Preparation, prepare
from utils.data.sources import open_pictures

MAX_WORKERS = 256  # threads


def parser() -> ArgumentParser:
    top = ArgumentParser(description=first_line(__doc__))
    sources = top.add_subparsers(dest="source_kind", required=True)
    photos = sources.add_parser("photos", help="crops of photographs shipped with scikit-image")
    photos.set_defaults(split=[2000, 200, 200])
    images = sources.add_parser("images", help="your images, from a folder or a zip file")
    images.add_argument("source", type=Path, help="folder of any depth, or zip file")
    images.set_defaults(split=[12000, 2253, 747])
    for part in (photos, images):
        part.add_argument("--out", "--output", type=Path, required=True, help="folder to write")
        part.add_argument(
            "--split",
            type=int,
            nargs=3,
            metavar=("TRAIN", "VAL", "TEST"),
            help="images in each (default {} {} {})".format(*part.get_default("split")),
        )
        part.add_argument("--image-size", type=int, default=64, help="side in pixels (default 64)")
        part.add_argument("--seed", type=int, default=0, help="of shuffle and holes (default 0)")
        part.add_argument(
            "--holes", choices=HOLE_KINDS, default="lab", help="shape in test/ (default lab)"
        )
        part.add_argument(
            "--hole-share",
            type=float,
            nargs=2,
            default=DEFAULT_SHARE,
            metavar=("LOW", "HIGH"),
            help="hidden part of a test image (default {:g} {:g})".format(*DEFAULT_SHARE),
        )
        threads = whole(1, MAX_WORKERS)
        part.add_argument("--workers", type=threads, default=4, help="reading threads (default 4)")
        part.add_argument("--force", action="store_true", help="replace another data set in --out")
    return top


def main() -> None:
    args = parser().parse_args()
    settings = Preparation(
        split=tuple(args.split),
        image_size=args.image_size,
        seed=args.seed,
        holes=args.holes,
        hole_share=tuple(args.hole_share),
    )
    source = Photos() if args.source_kind == "photos" else open_pictures(args.source)
    prepare(source, args.out, settings, workers=args.workers, force=args.force)


if __name__ == "__main__":
    run(main)
