"""Devices: what a CPU run asks of the C library."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from utils.device import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def work():
    a = torch.ones(5_000_000)
    return a + torch.ones(5_000_000)
work(); work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again_instead_of_being_fetched_page_by_page():
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("kept") < 0.1 * faults("given back")
