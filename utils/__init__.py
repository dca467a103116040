"""Everything around the models: data, training, checkpoints, pictures, reports.

The scorer stands alone in `faster-pytorch-fid/`; its package `fid` is importable from here on.
"""

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "faster-pytorch-fid"))  # before others

import fid  # noqa: F401  reads variables and handles Ctrl-C before any library is imported
