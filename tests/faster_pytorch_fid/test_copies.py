"""Modules that the scorer, which stands alone, has copies of."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("original", "copy"),
    [
        ("utils/io/streams.py", "fid/streams.py"),
        ("utils/torchrun.py", "fid/torchrun.py"),
        ("utils/startup.py", "fid/startup.py"),
    ],
)
def test_the_scorers_copy_is_the_suites(fid_folder, original, copy):
    assert (fid_folder / copy).read_bytes() == (fid_folder.parent / original).read_bytes()
